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
	if ! command -v "$python" >/dev/null; then
		echo "release-check: $python is not on this machine, so it was NOT tried" >&2
		continue
	fi
	"$python" -m venv "$work/$python"
	"$work/$python/bin/python" -m pip install --quiet --disable-pip-version-check dist/*.whl
	"$work/$python/bin/python" -m pip check
	image=$("$work/$python/bin/python" -c 'from mobile_sam_plugin.photographs import list_photographs as l
print(next(str(p) for p in l() if p.name == "coffee.png"))')
	(cd "$work" && "$work/$python/bin/mobile-sam" segment "$image" --point 300,130 \
		--checkpoint bundled --out "$work/out-$python" && test -s "$work/out-$python/coffee/overlay.png")
	echo "release-check: $python passes"
	tried=$((tried + 1))
done
test "$tried" -gt 0
