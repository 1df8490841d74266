# make demo: sets up the base package, then segments a photograph by a point and a box.
# make test: sets up all extras and tools, then runs ruff, mypy and all tests, a file a core.
# make notebooks: runs the notebooks in examples/ and keeps their pictures in them.
# make docs: builds the documentation into site/; a broken link or name ends it.
# make coverage: runs the tests, says which lines none of them runs, and writes the figure into
#	CONTRIBUTING.md.
# make release-check: builds the package as a release is built, installs it afresh, and tries it.
# make audit: lists known vulnerabilities of what is installed.
# make benchmark: measures the speed beside the original MobileSAM's; ten minutes on two cores.
# make bundled-checkpoint PACK=pack.npz: trains the weights in the package further and measures them;
#	hours on two cores, minutes with GPU=1. Run it again to resume.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test audit docs notebooks coverage release-check chromium benchmark gpu bundled-checkpoint clean

demo: .venv/ready
	$(BIN)/mobile-sam segment examples/images/coffee.png --point 300,130 --box 170,10,430,300 \
		--checkpoint bundled --out demo

test: .venv/ready-to-test chromium
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

docs: .venv/ready-to-test
	$(BIN)/python tools/command_pages.py
	$(BIN)/zensical build --strict --clean

notebooks: .venv/ready-to-test
	PYTHONWARNINGS="ignore:IProgress" OMP_NUM_THREADS=2 $(BIN)/jupyter execute --inplace --NbClientApp.log_level=WARN examples/*.ipynb

coverage: .venv/ready-to-test
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
		--cov --cov-report term:skip-covered --cov-report html
	$(BIN)/python -m tools.coverage_figure

# RANGE are the ends of the range of Pythons; the script skips those that are not here, and says so.
RANGE ?= python3.10 python3.13
release-check:
	PYTHON=$(PYTHON) sh tools/release_check.sh $(RANGE)

# Known vulnerabilities of what is installed, from the package index's database. A package that cannot
# be looked up ends it, for pip-audit alone would call it free of them. A version's local part, such as
# +cpu, is not in the database.
audit: .venv/ready-to-test
	$(INSTALL) pip-audit
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//' > .venv/installed.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement .venv/installed.txt || { echo \
		"make audit: vulnerabilities are listed above, or the database could not be asked"; exit 1; }

benchmark: .venv/ready-to-test
	$(BIN)/python -m benchmarks speed

# From the weights before, at sizes that grow to the 1024 pixels at which the model is used: there the
# batch norms' statistics and the predicted IoU are others than at smaller sizes.
# PACK is the training data, see examples/unpack_training_data.py; VALID photographs with masks.
# GPU=1 composes on a GPU, with larger batches and without scenes.
PACK ?=
VALID ?= scenes:500
RUNS ?= runs
START ?= bundled
GPU ?=
ifdef GPU
MIXTURE = --weights 60,40 --on-device --mixed-precision bf16
AT_224 = --batch-size 128 --steps 1200
AT_448 = --batch-size 32 --steps 1100 --learning-rate 5e-4
AT_1024 = --batch-size 8 --steps 730 --learning-rate 1.5e-4
else
MIXTURE = scenes --weights 52,35,13 --texture-images examples/images
AT_224 = --batch-size 16 --steps 625 --ema-decay 0.998
AT_448 = --batch-size 8 --steps 900 --learning-rate 2.5e-4 --ema-decay 0.99
AT_1024 = --batch-size 4 --steps 100 --learning-rate 1e-4 --ema-decay 0.95
endif
SUPERVISED = $(BIN)/mobile-sam distill supervised composites $(RUNS)/data/labelled $(MIXTURE) \
	--focal-weight 4 --save-every 20 \
	--objects $(RUNS)/data/objects --photographs $(RUNS)/data/photographs
# The C library keeps large blocks instead of fetching them from the kernel at every step.
TUNING = GLIBC_TUNABLES=glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000:glibc.malloc.hugetlb=1

# On a machine with a CUDA device: the tests that need one, then its speed beside the original's.
gpu: .venv/ready-to-test
	$(BIN)/pytest -m gpu
	$(BIN)/python -m benchmarks gpu --profile

bundled-checkpoint: .venv/ready-to-test
	@test -f "$(PACK)" || { echo 'name the training data: make bundled-checkpoint PACK=pack.npz'; exit 2; }
	test -d $(RUNS)/data || { $(BIN)/python examples/unpack_training_data.py $(PACK) $(RUNS)/unpacked \
		&& mv $(RUNS)/unpacked $(RUNS)/data; }
	$(TUNING) $(SUPERVISED) --out $(RUNS)/224 --seed 1 --checkpoint $(START) --img-size 224 \
		$(AT_224)
	$(TUNING) $(SUPERVISED) --out $(RUNS)/448 --seed 2 --checkpoint $(RUNS)/224/last.safetensors \
		--img-size 448 $(AT_448)
	$(TUNING) $(SUPERVISED) --out $(RUNS)/1024 --seed 3 --checkpoint $(RUNS)/448/last.safetensors \
		--img-size 1024 $(AT_1024)
	$(BIN)/mobile-sam convert $(RUNS)/1024/last.safetensors $(RUNS)/mobile_sam.safetensors --dtype float16
	$(BIN)/mobile-sam evaluate $(VALID) --checkpoint $(RUNS)/mobile_sam.safetensors \
		--metrics click,click_best,box --out $(RUNS)/scores
	@echo 'Where these scores are above those in mobile_sam_plugin/weights/README.md:'
	@echo '  cp $(RUNS)/mobile_sam.safetensors mobile_sam_plugin/weights/'

clean:
	rm -rf .venv demo dist htmlcov site

# Debian's browser for the tests of the web pages, which are skipped where it cannot be had: without
# root, apt-get or a network.
chromium:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && timeout 120 apt-get -qq update \
		&& DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends chromium; \
	} >/dev/null 2>&1 || true

# Both run again only when the requirements have changed.
.venv/ready: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or later is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	touch $@

.venv/ready-to-test: .venv/ready
	$(INSTALL) --editable '.[test]'
	touch $@
