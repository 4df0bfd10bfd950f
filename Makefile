# Each target does what it needs first. `make demo` and `make test` work on a fresh machine.

SHELL := bash

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# What `make demo` runs on: nothing (a made-up set), or your own folder of class folders and weights.
DATA ?=
WEIGHTS ?=

# For `make lambda`: an exported model or a registered one, and the function's processor.
ONNX ?=
MODEL ?=
ARCHITECTURE ?= x86_64

# Machines of your own for `make cluster-local`: addresses, who logs in, a private key; optionally a
# Python environment that is on all of them, and a folder or URI that all of them share.
HEAD ?=
WORKERS ?=
SSH_USER ?= $(shell id -un)
SSH_KEY ?= ~/.ssh/id_ed25519
ENVIRONMENT ?=
STORAGE ?=
# Ray's newer autoscaler never starts the workers of a local cluster.
RAY_LOCAL := RAY_UP_enable_autoscaler_v2=0 $(BIN)/ray

.PHONY: help setup demo test test-all check bench ui page lambda cluster-local cluster-local-down clean

help:
	@echo "make setup   the virtual environment in $(VENV) with all dependencies"
	@echo "make demo    the whole way on a made-up data set; DATA=folder WEIGHTS=file for your own"
	@echo "make test    quick tests, one real run of each stage among them (6 minutes on two cores)"
	@echo "make test-all   all tests: faults, clusters and every browser test too (16 minutes)"
	@echo "make check   lint, types, layers"
	@echo "make bench   measurements, as ratios against the alternative"
	@echo "make ui      the MLflow UI on the default store"
	@echo "make page    the champion behind a page in the browser"
	@echo "make lambda ONNX=file   the AWS Lambda function as build/lambda/function.zip; or MODEL=models:/NAME@champion"
	@echo "make cluster-local HEAD=ADDRESS WORKERS='ADDRESS ...'   a Ray cluster of your own machines"
	@echo "make cluster-local-down                                 its end"

setup: $(READY)

$(READY): requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): about 240 packages, several GB with PyTorch for CUDA"
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off \
		--log $(VENV)/pip.log -r requirements-dev.txt 2>&1 | awk -f .ci/pip_progress.awk
	@touch $@

demo: setup
	@$(BIN)/python ray_jobs/demo.py $(if $(DATA),--raw "$(DATA)") $(if $(WEIGHTS),--weights "$(WEIGHTS)")

# Three files at a time on two cores, since tests often wait. Threads that wait for work do not take
# the processors from the others.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST) -m "not slow"

test-all: setup
	$(PYTEST)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python bench/training.py
	$(BIN)/python bench/search.py
	$(BIN)/python bench/multires.py
	$(BIN)/python bench/serving.py

ui: setup
	$(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port 5000 --workers 1

page: setup
	$(BIN)/python ray_jobs/serve.py --model models:/drone-classifier@champion --open

lambda: setup
	@$(BIN)/python deploy/lambda/package.py --architecture $(ARCHITECTURE) $(if $(ONNX),--onnx "$(ONNX)") $(if $(MODEL),--model "$(MODEL)")

cluster-local: setup
	@test -n "$(HEAD)" || { echo "error: name the machines: make cluster-local HEAD=ADDRESS WORKERS='ADDRESS ...'"; exit 2; }
	$(BIN)/python deploy/local_cluster.py --head $(HEAD) $(if $(WORKERS),--workers $(WORKERS)) --user $(SSH_USER) --key $(SSH_KEY) \
		$(if $(ENVIRONMENT),--environment $(ENVIRONMENT)) $(if $(STORAGE),--storage $(STORAGE))
	$(RAY_LOCAL) up -y cluster-local.yaml

cluster-local-down: setup
	$(BIN)/ray down -y cluster-local.yaml

clean:
	rm -rf demo build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
