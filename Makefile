# What there is to do here: `make help`. Everything stays in this folder: .venv and .weir.

PYTHON ?= python3
ARGS ?=
SEEDS ?= 20

BIN := .venv/bin

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup setup-all demo up down status test unit faults soak lint format types docs bench schemas protos lock hooks clean distclean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[1m%-10s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  ARGS=... is handed on to the command, PYTHON=... chooses the interpreter of the first set-up."

setup: ## Install what the embedded stack needs, in this folder
	@$(PYTHON) infra/bootstrap.py

$(BIN)/python:
	@$(PYTHON) infra/bootstrap.py --only venv

setup-all:
	@$(PYTHON) infra/bootstrap.py --all

demo: ## A synthetic bank's payments, decided live in the terminal
	@$(PYTHON) infra/bootstrap.py --quiet
	@$(BIN)/weir demo $(ARGS)

up: ## Start the embedded stack, and leave it running
	@$(PYTHON) infra/bootstrap.py --quiet
	@$(BIN)/weir up $(ARGS)

down: | $(BIN)/python ## Stop the embedded stack (ARGS=--wipe forgets its data)
	@$(BIN)/weir down $(ARGS)

status: | $(BIN)/python ## What of the embedded stack runs
	@$(BIN)/weir status $(ARGS)

test: setup-all ## Every test, against real servers
	$(BIN)/python -m pytest $(ARGS)

unit: setup ## The tests that need no server
	$(BIN)/python -m pytest tests/unit tests/conformance $(ARGS)

faults: setup ## Real servers, killed, stopped, cut off, filled up; then the topics are checked
	$(BIN)/python -m pytest tests/faults --all-faults $(ARGS)

soak: setup ## The same by random schedules: SEEDS=200 (ARGS="--fault-seed 7" for one of them again)
	$(BIN)/python -m tests.faults.soak --seeds $(SEEDS) $(ARGS)

lint: | $(BIN)/python ## Ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: | $(BIN)/python ## Let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: | $(BIN)/python ## mypy, strict
	$(BIN)/mypy

docs: | $(BIN)/python ## Build the site into site/, a warning fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: setup ## What a decision costs, against a floor and against peers
	$(BIN)/python -m bench $(ARGS)

schemas: | $(BIN)/python ## Check schemas/ against what was registered
	$(BIN)/python -m weir.codec.compatibility $(ARGS)

protos: | $(BIN)/python ## Make the gRPC code of protos/ again
	$(BIN)/python infra/build/hatch_build.py

lock: setup ## Pin the dependencies anew (ARGS=--upgrade takes the newest)
	$(BIN)/python -m infra.install.relock $(ARGS)

hooks: setup ## Run lint and types before each commit
	$(BIN)/pre-commit install

clean: ## Remove caches and built pages; .venv and .weir stay
	rm -rf site dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -path ./.venv -prune -o -path ./.weir -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## Stop the stack and remove all that setup made, data too
	@if [ -x $(BIN)/weir ] && [ -e .weir/run ]; then $(BIN)/weir down; fi
	rm -rf .venv .weir weir/_proto
