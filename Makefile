# Everything runs from a clean clone with nothing but Python 3.11 or newer, git and make; `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
# One thread a worker: tiny tensors gain nothing from more, and workers would fight over the cores.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# The mathematics and the files on disk are covered line by line.
FLOOR := */objectives/*,*/likelihoods/*,*/noise.py,*/records.py

.PHONY: help demo test lint format types check clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    the whole story on the embedded model, with a report"
	@echo "make test    the tests, with the coverage floor"
	@echo "make lint    ruff: rules and format"
	@echo "make types   mypy, strict"
	@echo "make check   test, lint and types"
	@echo "make format  rewrite the files in the project's format"
	@echo "make clean   remove the environment and what the tools left"

# Stamps: the environment is built once, and again when the dependencies change.
$(VENV)/.stamp-run: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-run
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/.stamp-run
	$(BIN)/dfb demo

test: $(VENV)/.stamp-dev
	rm -f .coverage .coverage.*
	$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --cov --cov-report= $(PYTEST_ARGS)
	$(BIN)/python -m coverage report --include='$(FLOOR)' --show-missing --fail-under=100

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.stamp-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.stamp-dev
	$(BIN)/mypy

check: lint types test

clean:
	rm -rf $(VENV) build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
