# The project's commands; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One file a set-up: a second call finds it newer than what it depends on, and installs nothing.
BASE := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
OUT ?= demo

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-engines lint docs bench clean

help:  ## list these commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|' 2>/dev/null \
	  || grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST)

setup: $(DEV)  ## make .venv with everything that the other commands need

demo: $(BASE)  ## run the main job on data that scikit-learn carries, and write the report into demo/
	@$(BIN)/taskloom demo --out $(OUT)

# One thread for each worker: two that both ask for all processors are slower than one.
test: $(DEV)  ## run the whole test suite, on up to four processors at once
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4

test-engines: $(DEV)  ## run the tests on Ray and NVIDIA FLARE, also those that take minutes
	@TASKLOOM_ENGINES=1 $(BIN)/python -m pytest -m engine

lint: $(DEV)  ## check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/ty check

docs: $(DEV)  ## build the documentation into site/, warnings as errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: $(DEV)  ## run the benchmarks, and write their JSON into benchmarks/results/
	@for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script || exit 1; done

clean:  ## remove what the commands above made
	rm -rf $(VENV) site demo

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "taskloom needs Python 3.11 or newer: make PYTHON=/path/to/it" >&2; exit 1; }
	@echo "making $(VENV) ..." && $(PYTHON) -m venv $(VENV)

$(BASE): $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing taskloom (torch is large: this can take minutes) ..."
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(DEV): $(BASE)
	@echo "installing the tools for tests, docs and style ..."
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
