# `make help` lists the targets. PYTHON chooses the interpreter that the environment is made with: make install PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE := setup.py $(wildcard QEfficient/devices/cpu/native/*.[ch]pp)

.DEFAULT_GOAL := help
.PHONY: help install demo test lint models bench

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 18

install: $(STAMP)  ## .venv with the versions of constraints.txt; nothing when up to date

$(STAMP): pyproject.toml constraints.txt $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "QEfficient needs Python 3.10 or newer, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
# The library must be built for the OpenVINO that it will run with: older and newer pip, by different names.
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt PIP_BUILD_CONSTRAINT=$(CURDIR)/constraints.txt \
		$(BIN)/python -m pip install --quiet -e '.[test,dev]' -c constraints.txt
	@touch $@

demo: install  ## the built-in demo model says something
	$(BIN)/qefficient infer --model-name demo --prompt "In the beginning" --generation-len 32

test: install  ## all tests, on two processes
	$(BIN)/python -m pytest -n 2

lint: install  ## ruff, formatting, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

models: install  ## check tiny models of every supported type against Hugging Face
	$(BIN)/qefficient models --test

bench: install  ## measure (see benchmarks/)
	$(BIN)/python -m benchmarks
