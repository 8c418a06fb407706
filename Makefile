# The commands of this checkout. Each makes what it needs: system packages (through apt, as root or
# with passwordless sudo), a Python environment in .venv, and the program, built once for all uses.
# A second run repeats only what has changed.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory
.NOTPARALLEL:

PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# A stamp carries the checksum of what it stands for, so that a changed file is noticed whatever its date.
sum = $(shell cat $(1) 2>/dev/null | sha256sum | cut -c1-16)
DEMO_PACKAGES := .venv/stamps/demo-$(call sum,notebooks/requirements.txt)
TEST_PACKAGES := .venv/stamps/test-$(call sum,tests/requirements.txt)

.PHONY: help demo test bench lint fmt clean demo-system test-system demo-packages test-packages program

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: demo-system demo-packages program ## run the example notebook, its cells in three places
	@tools/demo

test: test-system test-packages program ## check the sources, run the Rust tests, then the tests through real clients
	@tools/test

bench: test-system test-packages program ## measure against ipykernel, side by side
	@$(BIN)/python -m benches

lint: ## formatting and clippy
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --release --locked -- -D warnings

fmt: ## format the Rust sources
	@cargo fmt --all

clean: ## remove what the other targets made
	rm -rf .venv dist notebooks/out tests/out
	cargo clean

demo-system:
	@tools/prerequisites rust cc python

test-system:
	@tools/prerequisites rust cc python chromium nextest

demo-packages: $(DEMO_PACKAGES)
test-packages: $(TEST_PACKAGES)

.venv/stamps/made:
	@rm -rf .venv
	$(PYTHON) -m venv .venv
	@mkdir -p .venv/stamps && touch $@

$(DEMO_PACKAGES): | .venv/stamps/made
	$(BIN)/python -m pip install --quiet -r notebooks/requirements.txt
	@touch $@

$(TEST_PACKAGES): | .venv/stamps/made
	$(BIN)/python -m pip install --quiet -r tests/requirements.txt
	@touch $@

# Cargo knows best whether something must be built; an unchanged wheel is not installed again.
program: | .venv/stamps/made
	@tools/install-wheel
