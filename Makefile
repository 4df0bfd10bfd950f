# Each target does what it needs first. `make demo` and `make test` work on a fresh machine.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# What `make demo` runs on: nothing (a made-up set), or your own folder of class folders and weights.
DATA ?=
WEIGHTS ?=

.PHONY: help setup demo test check bench ui clean

help:
	@echo "make setup   the virtual environment in $(VENV) with all dependencies"
	@echo "make demo    the whole way on a made-up data set; DATA=folder WEIGHTS=file for your own"
	@echo "make test    all tests"
	@echo "make check   lint, types, layers"
	@echo "make bench   measurements, as ratios against the alternative"
	@echo "make ui      the MLflow UI on the default store"

setup: $(READY)

$(READY): requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: setup
	@$(BIN)/python ray_jobs/demo.py $(if $(DATA),--raw "$(DATA)") $(if $(WEIGHTS),--weights "$(WEIGHTS)")

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python bench/training.py
	$(BIN)/python bench/search.py

ui: setup
	$(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port 5000 --workers 1

clean:
	rm -rf demo .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
