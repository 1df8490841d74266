"""The photographs of ``examples/images``, which the wheel holds as ``example_images``."""

from pathlib import Path


def list_photographs() -> list[Path]:
    """Returns the paths of the photographs, in a checkout and where a wheel is installed."""
    package = Path(__file__).parent
    folder = package / "example_images"
    if not folder.is_dir():  # a checkout
        folder = package.parent / "examples" / "images"
    return sorted(path for path in folder.glob("*") if path.suffix in (".jpg", ".png"))
