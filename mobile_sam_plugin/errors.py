"""What callers can put right, told apart from faults of this package by its class."""


class UserError(ValueError):
    """An argument, an option or a file that cannot be used; the message says which, and why."""


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether memory ran out, the device's too; torch need not have been imported."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


class MissingExtra(ImportError):
    """A library that an extra of this package brings is not installed."""

    @classmethod
    def of(cls, library: str, extra: str) -> "MissingExtra":
        """The error for a library, which says how to install it.

        Args:
            library: its name on the package index, or two or more names joined by "and".
            extra: the extra of this package that brings it.
        """
        verb = "are" if " and " in library else "is"
        return cls(
            f'{library} {verb} not installed: run pip install "mobile-sam-plugin[{extra}]"',
            name=library,
        )
