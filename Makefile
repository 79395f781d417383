# `make demo` and `make test` need only Python and this folder: the first of them makes the environment .venv.
PYTHON ?= python3
WORKERS ?= auto
VENV := .venv
BIN := $(VENV)/bin

# Idle OpenMP threads sleep instead of spinning: the cores are free for what is being measured or tested.
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help demo test lint format clean

help:
	@echo "make demo    profile this machine, search, export, report: pipelines/quickstart.toml into runs/quickstart"
	@echo "make test    all tests (WORKERS=4: that many at once, at most 8)"
	@echo "make lint    ruff and mypy"
	@echo "make format  rewrite the files as ruff would have them"
	@echo "make clean   remove .venv and caches; runs and tables stay"
	@echo "The environment is .venv, made with $(PYTHON); PYTHON=python3.12 chooses another."

demo: $(VENV)/installed
	$(BIN)/hwnas run pipelines/quickstart.toml

test: $(VENV)/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find hwnas profilers tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# One stamp per set of packages, so that an install happens once, and again when pyproject.toml changes.
$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e .
	@touch $@

$(VENV)/installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e ".[$*]"
	@touch $@
