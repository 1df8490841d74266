"""Data sets with unusable items: skipped, counted by kind, and an error if there are too many."""

import warnings
from collections import Counter
from collections.abc import Callable
from multiprocessing.sharedctypes import RawArray
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..images import join_counts
from ..inputs import input_size

_TOLD = 5  # warnings with a reason; further items are only counted
_SAMPLE = 32  # items, at most half of which may be broken
_UNTRIED, _USED = 0, 1
_KINDS = {2: "missing", 3: "not fit for it", 4: "not readable"}

ItemT = TypeVar("ItemT", covariant=True)


class Unfit(UserError):
    """An item is intact, but cannot be used for its purpose."""


class OtherSize(UserError):
    """Masks do not have the size of their image."""


class NoMask(UserError):
    """An image has no mask with a pixel."""


class Items(Protocol[ItemT]):
    """A data set whose items are read one by one.

    Reading an unusable item raises a ValueError or an OSError that names it.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> ItemT: ...


def check_fit(image: NDArray[np.uint8], size: int) -> None:
    """Raises Unfit if an image's short side vanishes when the long one is resized to ``size``."""
    height, width = image.shape[:2]
    try:
        input_size(height, width, size)
    except UserError as error:
        raise Unfit(str(error)) from error


class Skipped:
    """Record of the items that were skipped, and why; worker processes share it.

    Args:
        count: number of items in the data set.
        strict: raise the error of an item instead of skipping it.
        what: the name of an item, for messages.
        told: number of items with a warning of their own, which gives the reason.
    """

    def __init__(
        self, count: int, *, strict: bool = False, what: str = "item", told: int = _TOLD
    ) -> None:
        self.strict = strict
        self._what = what
        self._told = told
        self._states = RawArray("b", count)
        self._empty_masks = RawArray("i", count)

    def __len__(self) -> int:
        states = bytes(self._states)
        return sum(states.count(kind) for kind in _KINDS)

    def __contains__(self, place: int) -> bool:
        return self._states[place] > _USED

    def use(self, place: int, empty_masks: int = 0) -> None:
        """Records that an item was used, without its ``empty_masks`` masks that have no pixel."""
        self._states[place] = _USED
        self._empty_masks[place] = empty_masks

    def skip(self, place: int, error: Exception) -> None:
        """Skips an item.

        Raises:
            Exception: the error itself, if `strict`.
            UserError: if most items that were tried so far are broken.
        """
        if self.strict:
            raise error
        kind = 3 if isinstance(error, Unfit) else 2 if isinstance(error, FileNotFoundError) else 4
        self._states[place] = kind
        count, broken = len(self._states), len(self)
        tried = count - bytes(self._states).count(_UNTRIED)
        if 2 * broken > tried and tried >= min(_SAMPLE, count):
            raise UserError(
                f"{self.describe()}, of {tried:,} tried: too many to continue without them; the "
                f"last: {error}"
            ) from error
        if broken <= self._told:
            warnings.warn(
                f"skipped {self._what} {place} of {count} ({broken} skipped so far): {error}",
                stacklevel=3,
            )

    def describe(self) -> str:
        """Returns the numbers of skipped items, by kind, and of skipped masks; "" if none was.

        Examples:
            >>> skipped.describe()
            '3 of 110,000 images are left out: 2 not readable, 1 missing'
        """
        states = bytes(self._states)
        kinds = Counter({kind: states.count(code) for code, kind in _KINDS.items()})
        parts = []
        if len(self):
            items = f"{self._what}s are" if len(states) > 1 else f"{self._what} is"
            parts.append(f"{len(self):,} of {len(states):,} {items} left out: {join_counts(kinds)}")
        if empty := sum(self._empty_masks):
            parts.append(f"masks without a pixel are left out: {empty:,}")
        return "; ".join(parts)

    def tell(self) -> None:
        """Warns of everything that was left out, if anything was."""
        if told := self.describe():
            warnings.warn(told, stacklevel=2)


class SkipUnreadable(Generic[ItemT]):
    """A data set without its unusable items: each is replaced with the next usable one.

    Args:
        items: the data set.
        strict: raise the error of a broken item instead.
        check: called with each item; raises :class:`Unfit` if the item cannot be used.
        what: the name of an item, for messages.

    Attributes:
        skipped (Skipped): the broken items found so far, in all processes.

    Examples:
        >>> data = SkipUnreadable(open_annotated_images("images"))
        >>> for index in range(len(data)):
        ...     train_on(data[index])
        >>> len(data.skipped)
        2
    """

    def __init__(
        self,
        items: Items[ItemT],
        *,
        strict: bool = False,
        check: Callable[[ItemT], None] | None = None,
        what: str = "item",
    ) -> None:
        self._items = items
        self._check = check
        self.skipped = Skipped(len(items), strict=strict, what=what)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> ItemT:
        """Reads an item.

        Raises:
            IndexError: if there is no such item.
            ValueError, OSError: if it is broken and `strict`, or if most items are broken.
        """
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"there is no item {index} among {count}")
        for candidate in range(index % count, index % count + count):
            place = candidate % count
            if place in self.skipped:
                continue
            try:
                item = self._items[place]
                if self._check is not None:
                    self._check(item)
            except (ValueError, OSError) as error:
                self.skipped.skip(place, error)
            else:
                self.skipped.use(place, getattr(item, "empty", 0))
                return item
        raise UserError(self.skipped.describe())
