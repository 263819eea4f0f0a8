# Installs, runs and tests Headrace on one machine. `make` alone lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install install-sim install-dev up test check format

# The engine of `make up`, and what else to give it: make up ENGINE=sim ARGS="--workers 2 --port 9000"
ENGINE ?= vllm
ARGS ?=
# Which build of vLLM is installed: cpu or gpu. They pin different builds of torch: one environment holds one.
HARDWARE ?= cpu

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv

# An installation is as good as what it was made from. The stamps hold that in their names; a larger one
# stands for the smaller ones too.
REQUIREMENTS := $(shell cat pyproject.toml deploy/cpu-excludes.txt | sha256sum | cut -c1-16)
SIM := $(VENV)/.installed-sim-$(REQUIREMENTS)
VLLM := $(VENV)/.installed-$(HARDWARE)-$(REQUIREMENTS)
DEV := $(VENV)/.installed-$(HARDWARE)-dev-$(REQUIREMENTS)

# uv does not read pip's configuration. Local wheels, where pip is told of some, include the CPU build of
# torch; elsewhere that comes from PyTorch's own index. Its vision and audio companions on PyPI are built
# for another torch and would keep vLLM from being imported: they are left out.
LINKS = $(shell $(BIN)/python -m pip config get global.find-links 2>/dev/null || true) $(PIP_FIND_LINKS)
INDEX = $(shell $(BIN)/python -m pip config get global.index-url 2>/dev/null || true)
WHEELS = $(foreach link,$(sort $(LINKS)),--find-links $(link)) $(if $(INDEX),--default-index $(INDEX))
CPU_BUILD = --excludes deploy/cpu-excludes.txt $(if $(strip $(LINKS)),,--torch-backend cpu)
BUILD = $(if $(filter cpu,$(HARDWARE)),$(CPU_BUILD))
# Bytecode is made now, in parallel, and not by each process at its first start (vLLM: 20 s, in two processes).
UV_INSTALL = $(UV) pip install --quiet --compile-bytecode --python $(BIN)/python $(WHEELS)

# Real processes on a busy machine are late at times. What failed runs once more, by itself; what fails then
# has failed. The report of the first time stays above, and what passed the second time is worth a look.
ONCE_MORE = { [ $$? -eq 1 ] && echo "Once more, what failed:" && $(BIN)/pytest -q --last-failed; }

help:
	@echo "make up [ENGINE=sim]  install what is missing, start everything, print the URL"
	@echo "make install          only install, into $(VENV)"
	@echo "make check            format, lint, types, import rules, unit tests"
	@echo "make test             all tests, with everything they need"
	@echo "make format           rewrite the code as the formatter wants it"

install: $(VLLM)
	@echo "Installed in $(VENV); start with: make up"

install-sim: $(SIM)

install-dev: $(DEV)

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "Headrace needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@echo "Creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(SIM): | $(UV)
	@echo "Installing Headrace"
	@$(UV_INSTALL) --editable .
	@rm -f $(VENV)/.installed-*
	@touch $(SIM)

$(VLLM): | $(UV)
	@echo "Installing Headrace and vLLM ($(HARDWARE)): gigabytes, the first time"
	@$(UV_INSTALL) $(BUILD) --editable '.[$(HARDWARE)]'
	@rm -f $(VENV)/.installed-*
	@touch $(SIM) $(VLLM)

$(DEV): | $(UV)
	@echo "Installing Headrace, vLLM ($(HARDWARE)) and what tests need: gigabytes, the first time"
	@$(UV_INSTALL) $(BUILD) --editable '.[$(HARDWARE),dev]'
	@rm -f $(VENV)/.installed-*
	@touch $(SIM) $(VLLM) $(DEV)

up: $(if $(filter sim,$(ENGINE)),$(SIM),$(VLLM))
	@exec $(BIN)/headrace up --engine $(ENGINE) $(ARGS)

check: $(DEV)
	@$(BIN)/ruff format --check --quiet . || { echo "run: make format"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo >/dev/null || $(BIN)/lint-imports
	@$(BIN)/pytest -q tests/unit

test: $(DEV)
	@if [ -x tests/install-browser ]; then PATH="$(CURDIR)/$(BIN):$$PATH" tests/install-browser; fi
	@$(BIN)/pytest -q || $(ONCE_MORE)

format: $(DEV)
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .
