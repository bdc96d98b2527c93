# make demo   learn guidance on a mixture and write a report to runs/mixture
# make test   the test suite          make lint   ruff, mypy          make clean   forget the environment and the caches
# The environment lives in .venv and is installed again only when setup.py changes. Another interpreter: make PYTHON=python3.12 ...

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := demo
.PHONY: demo test lint clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One line per package instead of pip's pages; errors and warnings pass.
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -e
SHORTEN = { grep --line-buffered -E '^(Collecting|Installing|Successfully)' || true; }

demo: $(VENV)/installed
	$(BIN)/python -m experiments.main --config=configs/mixture.py --workdir=runs/mixture

test: $(VENV)/installed-test
	$(BIN)/pytest

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache learn_to_guide.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0])'
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.py | $(BIN)/python
	@echo "installing the base packages (about a minute)"
	@$(INSTALL) . | $(SHORTEN)
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	@echo "installing the test packages"
	@$(INSTALL) '.[test]' | $(SHORTEN)
	@touch $@
