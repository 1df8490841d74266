"""Checks that a wheel says what an index and its users need to know: check_metadata.py WHEEL."""

import sys
import zipfile
from email import message_from_string

ADDRESSES = {"Documentation", "Source", "Issues", "Changelog"}
CLASSIFIERS = {"Typing :: Typed", "Programming Language :: Python :: 3.10"}


def check(wheel: str) -> None:
    """Raises SystemExit, which names what is missing."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (file,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        metadata = message_from_string(archive.read(file).decode())
    missing = [name for name in ("Author", "Summary", "Requires-Python") if not metadata[name]]
    if metadata["License-Expression"] != "Apache-2.0":
        missing.append("License-Expression")
    addresses = {line.split(",")[0] for line in metadata.get_all("Project-URL", [])}
    missing += sorted(ADDRESSES - addresses)
    missing += sorted(CLASSIFIERS - {*metadata.get_all("Classifier", [])})
    if "](docs/" in str(metadata.get_payload()):
        missing.append("addresses in the README that hold outside of the repository")
    if "mobile_sam_plugin/py.typed" not in names:
        missing.append("py.typed")
    if missing:
        sys.exit(f"{wheel} lacks: {', '.join(missing)}")


if __name__ == "__main__":
    check(sys.argv[1])
