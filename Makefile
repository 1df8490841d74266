# make demo: set-up, then a photograph, a click and a box in; masks, a picture and JSON out.
# make test: set-up, then ruff, mypy and all tests.
# make benchmark: set-up, then the speed beside that of installed parts; half an hour on two cores.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test benchmark clean

demo: .venv/ready
	$(BIN)/mobile-sam segment examples/images/coffee.png --point 300,130 --box 170,10,430,300 \
		--checkpoint bundled --out demo

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

benchmark: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[benchmark]'
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv demo

# Runs again only when the requirements have changed.
.venv/ready: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or later is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@
