#!/bin/sh
# install.sh FOLDER: installs this checkout with the service, for a CPU, into a new environment.
# The Dockerfile runs it; a test runs it on its own.
set -eu
folder=$1
here=$(cd "$(dirname "$0")/.." && pwd)
python3 -m venv "$folder"
pip() { "$folder/bin/python" -m pip --disable-pip-version-check --no-cache-dir "$@"; }
# torch's own index has builds without CUDA, which are a tenth of the size.
# shellcheck disable=SC2086
pip install --quiet torch torchvision ${TORCH_INDEX---index-url https://download.pytorch.org/whl/cpu}
pip install --quiet "$here[serve]"
# The OpenCV without windows needs no library of a desktop; both have the same files.
pip uninstall --quiet --yes opencv-python
pip install --quiet opencv-python-headless
"$folder/bin/mobile-sam" --version
