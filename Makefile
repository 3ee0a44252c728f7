# The few commands that people and .ci/run call; `make` lists them.
# PYTHON=... picks the interpreter for the virtual environment (3.11 to 3.14).
VENV ?= .venv
CORE_VENV ?= .venv-core
SPARSEML_VENV ?= .venv-sparseml-cli
export PYTHON
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# A worker for each core, a file's tests on one worker. Threads that wait sleep: the
# workers and the processes that they start would spin on each other's cores.
WORKERS := -n auto --dist loadscope
ON_BOTH_HOSTS := tests/modifiers tests/recipe 
test test-core: export OMP_WAIT_POLICY = PASSIVE
MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL := help
.PHONY: help install install-sparseml-cli venv quickstart test test-all test-core \
	test-sparseml-cli lint format bench-prepare bench-quick clean

help:  ## List the targets
	@echo "obert_modifiers needs Python 3.11 to 3.14; no target needs a GPU. Targets:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install:  ## Make .venv, or bring it up to date, with the package in it
	@tools/venv.sh $(VENV) full

venv: install

install-sparseml-cli:  ## Make .venv-sparseml-cli, in which SparseML's own scripts run
	@tools/venv.sh $(SPARSEML_VENV) sparseml-cli

quickstart: install  ## Prune the embedded encoder: dense, GMP* and oBERT, one table
	@echo "==> Running the quickstart, 9 to 13 minutes on 2 cores"
	@$(BIN)/obert quickstart

test: install  ## Run the quick tests
	@echo "==> Running the quick tests"
	@$(PYTEST) -m "not slow" $(WORKERS)
	@if $(BIN)/python -m pip show -q sparseml 2>/dev/null; then \
		echo "==> Running those of modifiers and recipes without SparseML"; \
		PYTHONPATH=tests/without_sparseml \
			$(PYTEST) -m "not slow" $(WORKERS) $(ON_BOTH_HOSTS); \
	fi

test-all: install  ## Run every test, the slow ones too
	@echo "==> Running all tests"
	@$(PYTEST)

test-core:  ## Test kernels and core where sparseml and transformers are not installed
	@tools/venv.sh $(CORE_VENV) core
	@echo "==> Running the tests of kernels and core in $(CORE_VENV)"
	@$(CORE_VENV)/bin/python -m pytest -m "not slow" $(WORKERS) tests/core tests/kernels

test-sparseml-cli: install-sparseml-cli  ## Test SparseML's own scripts with our modifiers
	@echo "==> Running the tests of SparseML's own scripts in $(SPARSEML_VENV)"
	@$(SPARSEML_VENV)/bin/python -m pytest tests/sparseml_cli

lint: install  ## Check style (ruff) and the types of kernels and core (mypy)
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "==> mypy"
	@$(BIN)/mypy

format: install  ## Format the code and sort its imports
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench-prepare: install  ## Fine-tune and keep the model that the short benchmarks prune
	@$(BIN)/python benchmarks/prepare.py --datasets movie_snippets

bench-quick: bench-prepare  ## Run every benchmark in its short form
	@set -e; for file in benchmarks/bench_*.py; do \
		[ -e "$$file" ] || { echo "no benchmarks/bench_*.py here"; exit 1; }; \
		echo "==> $$file --quick"; $(BIN)/python "$$file" --quick; \
	done

clean:  ## Remove the environments and the caches
	rm -rf $(VENV) $(CORE_VENV) $(SPARSEML_VENV) build dist .mypy_cache .pytest_cache .ruff_cache
