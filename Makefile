# Everything runs from a clean clone with nothing but Python 3.11 or newer, git and make; `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
NEWEST ?= .venv-newest
WORKERS ?= 2
BIN := $(VENV)/bin
# One thread a worker: tiny tensors gain nothing from more, and workers would fight over the cores.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# The mathematics and the files on disk are covered line by line, by the unit tests alone.
FLOOR := */objectives/*,*/likelihoods/*,*/noise.py,*/records.py
# The unit tests: the mathematics, the layers, and what needs neither a model nor a command.
UNIT := $(addprefix tests/,catalog evaluation labeling likelihoods objectives test_architecture.py test_noise.py test_records.py)
# What reaches every line of the floor.
FLOOR_TESTS := $(UNIT) tests/borders/test_templates.py
PYTEST := $(THREADS) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help demo test quick lint format types check docs lock newest clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    the whole story on the embedded model, with a report"
	@echo "make test    the tests, with the coverage floor"
	@echo "make quick   the unit tests alone, in less than a minute"
	@echo "make lint    ruff: rules and format"
	@echo "make types   mypy, strict"
	@echo "make check   test, lint and types"
	@echo "make format  rewrite the files in the project's format"
	@echo "make docs    the site of documents, in build/docs"
	@echo "make lock    lock the newest versions that pyproject.toml allows (requirements/*.txt)"
	@echo "make newest  install without the lock, run the tests, write docs/newest.md"
	@echo "make clean   remove the environment and what the tools left"

# What is installed is what requirements/*.txt names, version by version and hash by hash, so that a machine set up next
# year gets what the tests of this commit saw. uv, itself locked, installs it in a third of pip's time (CONTRIBUTING.md);
# where it cannot, as behind an index that only pip knows of, pip installs the very same files. `make INSTALLER=pip` asks
# pip at once.
INSTALLER ?= uv
WITH_PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
ifeq ($(INSTALLER),uv)
install = $(BIN)/uv pip install --quiet --python $(BIN)/python $(1) || { echo "uv could not; pip goes on" >&2; $(WITH_PIP) $(1); }
else
install = $(WITH_PIP) $(1)
endif
LOCK := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	--custom-compile-command "make lock" $(LOCK_ARGS)

# Stamps: the environment is built once, and again when the locked versions or the project's own metadata change.
$(VENV)/.stamp-run: requirements/run.txt requirements/installer.txt pyproject.toml
	$(call environment,$(VENV))
	$(WITH_PIP) --no-deps --require-hashes --requirement requirements/installer.txt
	$(call install,--no-deps --require-hashes --requirement requirements/run.txt)
	$(call install,--no-deps --no-build-isolation --editable .)
	touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-run requirements/dev.txt
	$(call install,--no-deps --require-hashes --requirement requirements/dev.txt)
	touch $@

# An environment in folder $(1), unless there is one that works; a Python that is too old is named.
define environment
	@$(PYTHON) -c 'import sys; sys.exit(f"Python 3.11 or newer is needed, $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(1)/bin/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(1)
endef

# The locked versions anew: the newest that pyproject.toml allows.
lock: $(VENV)/.stamp-run
	$(LOCK) --extra dev pyproject.toml requirements/build.in --output-file requirements/dev.txt
	$(LOCK) --constraint requirements/dev.txt pyproject.toml requirements/build.in --output-file requirements/run.txt
	echo uv | $(LOCK) --constraint requirements/dev.txt - --output-file requirements/installer.txt

# What a user's `pip install` gives today, without the lock: installed beside, and tested. Writes docs/newest.md.
newest:
	rm -rf $(NEWEST)
	$(MAKE) VENV=$(NEWEST) NEWEST= $(NEWEST)/.stamp-newest
	$(THREADS) $(NEWEST)/bin/python tools/newest.py --workers $(WORKERS) --output docs/newest.md

$(VENV)/.stamp-newest:
	$(call environment,$(VENV))
	$(WITH_PIP) --no-deps --require-hashes --requirement requirements/installer.txt
	$(call install,--upgrade --editable '.[dev]')
	touch $@

demo: $(VENV)/.stamp-run
	$(BIN)/dfb demo

test: $(VENV)/.stamp-dev
	$(if $(PYTEST_ARGS),$(PYTEST) $(PYTEST_ARGS),$(ALL_TESTS))

# The floor is of the unit tests: counting lines costs the others time, and tells nothing of them.
define ALL_TESTS
rm -f .coverage .coverage.*
	$(PYTEST) --cov --cov-report= $(FLOOR_TESTS)
	$(BIN)/python -m coverage report --include='$(FLOOR)' --show-missing --fail-under=100
	$(PYTEST) $(addprefix --ignore=,$(FLOOR_TESTS))
endef

quick: $(VENV)/.stamp-dev
	$(PYTEST) -q -m 'not slow and not gpu' $(UNIT) $(PYTEST_ARGS)

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.stamp-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.stamp-dev
	$(BIN)/mypy

check: lint types test

docs: $(VENV)/.stamp-dev
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

clean:
	rm -rf $(VENV) $(NEWEST) build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
