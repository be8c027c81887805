# umbel: two commands to begin with, `make demo` and `make test`. Needs only Python 3.11+ and make.
# Another Python: make demo PYTHON=/path/to/python3.12

.DEFAULT_GOAL := help
.NOTPARALLEL:
.SUFFIXES:
SHELL := /bin/bash

# Nothing phones home, nothing is fetched while it runs, and output appears when it happens.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export PYTHONUNBUFFERED := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# 3.11 first: it is what constraints.txt was tested with.
NEW_ENOUGH := import sys; raise SystemExit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	"$$p" -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && { command -v "$$p"; break; }; done)

VENV := .venv
BIN := $(VENV)/bin
DEVICE_VENV := .venv-device
DEVICE_BIN := $(DEVICE_VENV)/bin
LOCKS := pyproject.toml constraints.txt
PIP_INSTALL := -m pip install --quiet --constraint constraints.txt

.PHONY: help demo test test-slow torture fuzz check lint types layers device wheel format clean

help:
	@echo "make demo       the whole loop with made-up people, then a table and a report"
	@echo "make test       the quick tests and the doctests"
	@echo "make test-slow  the slow tests"
	@echo "make torture    a device is killed at its work, and its disk fills up (about 15 minutes)"
	@echo "make fuzz       a million hostile inputs (about 15 minutes on two cores)"
	@echo "make check      everything that must hold: the one gate, the same as .ci/run"
	@echo "make format     put the code into its one format"
	@echo "make clean      remove the environments and what was built (runs/ stays)"
	@echo "Each sets up what it needs the first time. Another Python: make demo PYTHON=python3.12"

demo: $(VENV)/ready
	$(BIN)/umbel simulate demo

# A process for each core; the tests of a file stay together, for they share what they were given.
test: $(VENV)/ready
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-slow: $(VENV)/ready
	$(BIN)/python -m pytest -m slow

# Both go on where they were stopped; what they find stays in runs/.
torture: $(VENV)/ready
	$(BIN)/python -m tests.robustness.kills --count 500 --out runs/kills
	$(BIN)/python -m tests.robustness.full_disk --out runs/full-disk

fuzz: $(VENV)/ready
	$(BIN)/python -m tests.robustness.fuzzing.run --count 1000000 --out runs/fuzz

# The tests come last, so that the last lines say what they found.
check: lint types layers device test

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/ready
	$(BIN)/mypy

layers: $(VENV)/ready
	$(BIN)/lint-imports

# What a device runs, in an environment that has only a device's libraries.
device: $(DEVICE_VENV)/ready
	$(DEVICE_BIN)/python scripts/check_device_env.py
	$(DEVICE_BIN)/python -m pytest -m "device and not slow" \
	  --ignore=src/umbel/device_client/flower_app.py --ignore=src/umbel/device_client/flower_link.py \
	  tests/shared tests/device_client tests/test_device_isolation.py tests/test_cli.py \
	  src/umbel/shared src/umbel/device_client

# The wheel, built and imported from an empty folder. `make test` does it too.
wheel: $(VENV)/ready
	$(BIN)/python -m pytest tests/test_packaging.py

define make_venv
@test -n "$(PYTHON)" && "$(PYTHON)" -c '$(NEW_ENOUGH)' || { \
  echo "umbel needs Python 3.11 or newer and found none. Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
  exit 1; }
@test -x $(1)/bin/python && $(1)/bin/python -c '$(NEW_ENOUGH)' && $(1)/bin/python -m pip --version >/dev/null 2>&1 || { \
  rm -rf $(1) && echo "setting up $(1) with $(PYTHON)" && "$(PYTHON)" -m venv $(1); }
endef

# torch comes first and pinned, so that no open range can draw in its CUDA build.
$(VENV)/ready: $(LOCKS)
	$(call make_venv,$(VENV))
	@echo "installing (about 90 seconds the first time)"
	@$(BIN)/python $(PIP_INSTALL) torch
	@$(BIN)/python $(PIP_INSTALL) --editable '.[simulation,dev]'
	@touch $@

$(DEVICE_VENV)/ready: $(LOCKS)
	$(call make_venv,$(DEVICE_VENV))
	@echo "installing a device's libraries only"
	@$(DEVICE_BIN)/python $(PIP_INSTALL) --no-compile --editable '.[device]' pytest hypothesis
	@touch $@

clean:
	rm -rf $(VENV) $(DEVICE_VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
