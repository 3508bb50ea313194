# dolmen: `make run` starts a store, `make test` tests it. Everything is set up on the way.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
STAMP := $(VENV)/.installed
# Most tests wait for disks, servers and engines, which each process starts for itself.
AT_ONCE := --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: run test test-long lint bench format clean help

help:            ## what there is to make
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

$(RUNS): pyproject.toml constraints.txt src/dolmen/native.c
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "dolmen needs Python 3.11 or later; set PYTHON=/path/to/python3"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(STAMP): $(RUNS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

run: $(RUNS)     ## start a store on ./dolmen-data: uploads on port 9991, downloads on 9992
	$(BIN)/dolmen serve

test: $(STAMP)   ## every test that fits in minutes
	tests/engines/install
	$(BIN)/python -m pytest $(AT_ONCE)

test-long: $(STAMP) ## the same trials with far more examples, for hours
	tests/engines/install
	DOLMEN_TEST_LONG=1 $(BIN)/python -m pytest $(AT_ONCE)

lint: $(STAMP)   ## style, types, and which module may import which
	$(BIN)/ruff format --check src tests bench
	$(BIN)/ruff check src tests bench
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## put the source into its one form
	$(BIN)/ruff format src tests bench
	$(BIN)/ruff check --fix src tests bench

bench: $(STAMP)  ## figures beside nginx (LONG=1 for the long forms)
	bench/install
	$(BIN)/python -m bench $(if $(LONG),--long)

clean:           ## remove what make made (not ./dolmen-data)
	rm -rf $(VENV) build src/*.egg-info src/dolmen/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
