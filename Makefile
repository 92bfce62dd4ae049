# `make` or `make help` lists the targets. Each target does its own set-up: environments are made once and again only when a requirements file changes.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
MODELS := .cache/models

.PHONY: help setup setup-engine check test test-engine e2e e2e-full demo demo-serve models bench generate verify lock clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

# --- environments: as in production, the platform, MLflow and the engine do not share one
UV := $(shell command -v uv || echo .cache/uv/bin/uv)
INSTALL = $(UV) pip install --quiet --require-hashes

.cache/uv/bin/uv: requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv .cache/uv || { echo "python3-venv is missing. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@.cache/uv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@

.venv/ready: requirements/platform.txt requirements/gateway.txt requirements/dev.txt pyproject.toml | $(UV)
	@echo "setting up the platform's environment (.venv)"
	@$(UV) venv --quiet --clear --python "$$(command -v $(PYTHON))" .venv
	@$(INSTALL) --python $(BIN)/python -r requirements/platform.txt -r requirements/gateway.txt -r requirements/dev.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

.venv-mlflow/ready: requirements/mlflow.txt | $(UV)
	@echo "setting up MLflow's environment (.venv-mlflow)"
	@$(UV) venv --quiet --clear --python "$$(command -v $(PYTHON))" .venv-mlflow
	@$(INSTALL) --python .venv-mlflow/bin/python -r requirements/mlflow.txt
	@touch $@

.venv-engine/ready: requirements/engine.txt requirements/embedding.txt pyproject.toml | .venv/ready $(UV)
	@$(BIN)/understudy doctor --machine
	@echo "setting up the engine's environment (.venv-engine: Ray and vLLM, 6 GB; some minutes)"
	@$(UV) venv --quiet --clear --python "$$(command -v $(PYTHON))" .venv-engine
	@$(INSTALL) --compile-bytecode --no-deps --python .venv-engine/bin/python -r requirements/engine.txt -r requirements/embedding.txt
	@$(UV) pip install --quiet --python .venv-engine/bin/python --no-deps --editable .
	@touch $@

setup: .venv/ready .venv-mlflow/ready ## make the environments of the platform and of MLflow
setup-engine: setup .venv-engine/ready ## the same and the engine's (Ray, vLLM)

# --- checks and tests
check: setup ## ruff, mypy --strict, import-linter
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

test: setup ## unit and integration tests (real MLflow, SQLite, PostgreSQL, uvicorn; fake engines)
	@$(BIN)/pytest $(ARGS)

test-engine: setup-engine ## tests on real Ray Serve and vLLM
	@$(BIN)/pytest -m engine --timeout 900 tests/engine $(ARGS)

# E2E_BUILD_IMAGE NAME [buildah or docker arguments] FOLDER: builds an image and hands it to the cluster; default: docker, and kind where the context is one.
e2e: setup models ## the chart on the cluster of KUBECONFIG: builds images, installs, rolls out, breaks, uninstalls
	@$(BIN)/pytest -m e2e --timeout 1800 tests/e2e $(ARGS)

e2e-full: setup models ## the same, every command of docs/operations and every fault that a test knows of
	@$(BIN)/pytest -m "e2e or e2e_full" --timeout 1800 tests/e2e $(ARGS)

# --- the main job
models: setup-engine ## train the demo's models (cached)
	@OMP_WAIT_POLICY=PASSIVE .venv-engine/bin/python -m pipelines.demo_models --out $(MODELS)

demo: setup-engine ## the whole story on this machine: six versions of a model, five rollouts
	@$(BIN)/understudy demo --config demo/demo.yaml --models $(MODELS) $(ARGS)

demo-serve: setup-engine ## leave the platform running on this machine and print its addresses
	@$(BIN)/understudy demo --config demo/demo.yaml --models $(MODELS) --serve $(ARGS)

bench: setup-engine models ## measure what the README claims, into benchmarks/results/
	@$(BIN)/python -m benchmarks.gateway
	@$(BIN)/python -m benchmarks.stack
	@$(BIN)/python -m benchmarks.controller
	@$(BIN)/python -m benchmarks.evidence

# --- what is generated
generate: setup ## write what is generated: reference pages, the resource's definition, the chart's schema and README
	@PYTHONPATH=. $(BIN)/python docs/generate.py
	@$(BIN)/python charts/generate.py
	@PYTHONPATH=. $(BIN)/python monitoring/generate.py
verify: generate ## fail when what is generated is not what is committed
	@git diff --exit-code --stat -- docs/reference charts/understudy || { echo "generated files differ: commit what 'make generate' wrote"; exit 1; }

COMPILE = $(UV) pip compile --quiet --universal --no-emit-index-url --generate-hashes --python-version 3.11
lock: | $(UV) ## compile requirements/*.in to *.txt
	@for name in uv platform gateway mlflow dev; do $(COMPILE) requirements/$$name.in -o requirements/$$name.txt; done
	@$(COMPILE) --override requirements/engine-overrides.txt requirements/engine.in -o requirements/engine.txt
	@$(COMPILE) --no-deps requirements/embedding.in -o requirements/embedding.txt

clean: ## remove environments, models and the demo's files
	rm -rf .venv .venv-mlflow .venv-engine .cache demo/run demo/report.html demo/report.json
