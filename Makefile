# Each target does what it needs first. `make demo` and `make test` work on a fresh machine.

SHELL := bash

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# By module: the scripts of an environment do not run from every path, such as one with quotes.
RAY := $(BIN)/python -m ray.scripts.scripts
READY := $(VENV)/.ready

# A variable as one word of the shell, whatever was typed: $(call quoted,NAME).
quote = '$(subst ','\'',$(1))'
quoted = $(call quote,$(value $(1)))

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
SSH_USER ?=
SSH_KEY ?=
ENVIRONMENT ?=
STORAGE ?=
# Ray's newer autoscaler never starts the workers of a local cluster.
RAY_LOCAL := RAY_UP_enable_autoscaler_v2=0 $(RAY)

.PHONY: help setup demo test test-all check bench ui page lambda lock cluster-aws cluster-local \
	cluster-local-down clean

help:
	@echo "make setup   the virtual environment in $(VENV) with all dependencies"
	@echo "make demo    the whole way on a made-up data set; DATA=folder WEIGHTS=file for your own"
	@echo "make test    quick tests, one real run of each stage among them (6 minutes on two cores)"
	@echo "make test-all   all tests: faults, clusters and every browser test too (24 minutes on two cores)"
	@echo "make check   lint, types, layers"
	@echo "make bench   measurements, as ratios against the alternative"
	@echo "make ui      the MLflow UI on the default store"
	@echo "make page    the champion behind a page in the browser"
	@echo "make lambda ONNX=file   the AWS Lambda function as build/lambda/function.zip; or MODEL=models:/NAME@champion"
	@echo "make lock    the exact versions and hashes of all packages, from requirements*.txt"
	@echo "make cluster-aws                                        the Ray cluster of cluster.yaml"
	@echo "make cluster-local HEAD=ADDRESS WORKERS='ADDRESS ...'   a Ray cluster of your own machines"
	@echo "make cluster-local-down                                 its end"

setup: $(READY)

$(READY): requirements-dev.lock
	$(call quote,$(PYTHON)) -m venv $(VENV)
	@echo "Installing into $(VENV): about 240 packages, several GB with PyTorch for CUDA"
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off \
		--log $(VENV)/pip.log --require-hashes -r requirements-dev.lock 2>&1 | awk -f .ci/pip_progress.awk
	@touch $@

# After a change of requirements*.txt. Versions that still fit stay; to renew one, or all, that
# nothing names: make lock RENEW="--upgrade-package NAME" or RENEW=--upgrade.
RENEW ?=
LOCK := $(BIN)/python -m uv pip compile --no-config --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --custom-compile-command "make lock"

lock: setup
	$(LOCK) $(RENEW) requirements.txt --output-file requirements.lock
	$(LOCK) $(RENEW) requirements-dev.txt --output-file requirements-dev.lock

demo: setup
	@$(BIN)/python ray_jobs/demo.py $(if $(value DATA),--raw $(call quoted,DATA)) \
		$(if $(value WEIGHTS),--weights $(call quoted,WEIGHTS))

# Three files at a time on two cores, since tests often wait. Threads that wait for work do not take
# the processors from the others.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST) -m "not slow"

test-all: setup
	$(PYTEST)

check: setup
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -c 'from importlinter.cli import lint_imports_command as check; check()'

bench: setup
	$(BIN)/python bench/training.py
	$(BIN)/python bench/search.py
	$(BIN)/python bench/multires.py
	$(BIN)/python bench/serving.py

ui: setup
	$(BIN)/python -m mlflow ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port 5000 --workers 1

page: setup
	$(BIN)/python ray_jobs/serve.py --model models:/drone-classifier@champion --open

lambda: setup
	@$(BIN)/python deploy/lambda/package.py --architecture $(call quoted,ARCHITECTURE) \
		$(if $(value ONNX),--onnx $(call quoted,ONNX)) $(if $(value MODEL),--model $(call quoted,MODEL))

cluster-aws: setup
	@$(BIN)/python deploy/aws_cluster.py
	$(RAY) up cluster.yaml

cluster-local: setup
	@test -n $(call quoted,HEAD) || { echo "error: name the machines: make cluster-local HEAD=ADDRESS WORKERS='ADDRESS ...'"; exit 2; }
	@$(BIN)/python deploy/local_cluster.py --head $(call quoted,HEAD) \
		$(if $(value WORKERS),--workers $(foreach worker,$(value WORKERS),$(call quote,$(worker)))) \
		$(if $(value SSH_USER),--user $(call quoted,SSH_USER)) \
		$(if $(value SSH_KEY),--key $(call quoted,SSH_KEY)) \
		$(if $(value ENVIRONMENT),--environment $(call quoted,ENVIRONMENT)) \
		$(if $(value STORAGE),--storage $(call quoted,STORAGE))
	$(RAY_LOCAL) up -y cluster-local.yaml

cluster-local-down: setup
	$(RAY) down -y cluster-local.yaml

clean:
	rm -rf demo build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
