# Everything a newcomer or a developer runs. `make` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests run side by side; each has a time limit of its own.
JOBS ?= 2

.PHONY: help demo test bench lint clean

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: ## Set up what it needs and run a notebook whose cells run on two targets
	tools/setup demo
	tools/demo

test: ## Set up what it needs and run every test
	tools/setup test
	tools/test $(JOBS)

bench: ## Measure against the peers, and print the ratios
	tools/setup test
	$(BIN)/python benches/run.py

lint: ## Check format and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

clean: ## Remove everything that was built
	rm -rf target $(VENV) notebooks/out tests/out kernelspec/data/share/cellferry
