#!/bin/sh
# release_check.sh PYTHON...: builds dist/ as a release is built, checks its metadata, and installs the
# wheel in an empty environment of each PYTHON, where the bundled weights must give a mask.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/build"
"$work/build/bin/python" -m pip install --quiet --disable-pip-version-check build twine
rm -rf dist
# Without options: the source distribution from the checkout, and the wheel from that.
"$work/build/bin/python" -m build --outdir dist .
"$work/build/bin/python" -m twine check --strict dist/*
"$work/build/bin/python" tools/check_metadata.py dist/*.whl

tried=0
for python in "$@"; do
	if ! "$python" -c "" 2>/dev/null; then  # a shim may answer for a Python that is not there
		echo "release-check: $python is not on this machine, so it was NOT tried" >&2
		continue
	fi
	rm -rf "$work/new"
	"$python" -m venv "$work/new"
	bin=$work/new/bin
	"$bin/python" -m pip install --quiet --disable-pip-version-check dist/*.whl
	"$bin/python" -m pip check
	cd "$work"  # where no checkout is in the way
	image=$("$bin/python" -c 'from mobile_sam_plugin.photographs import list_photographs
print(next(path for path in list_photographs() if path.name == "coffee.png"))')
	"$bin/mobile-sam" segment "$image" --point 300,130 --checkpoint bundled --out new/out
	test -s new/out/coffee/overlay.png
	cd - >/dev/null
	echo "release-check: $("$bin/python" --version) passes"
	tried=$((tried + 1))
done
test "$tried" -gt 0
