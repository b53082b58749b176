# Everything a developer types. `make venv` (implied by the rest) builds the environment; nothing is written outside
# this folder but pip's cache.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two cores run the tests about 1.6 times as fast with two processes.
PYTEST_ARGS ?= -q -n 2
# For example BENCH_ARGS="--rounds 5 --write docs/benchmarks.md"; docs/benchmarks.md says more.
BENCH_ARGS ?=

.PHONY: help venv demo run test lint format bench completions man install package test-package test-releases clean

help:
	@echo "make demo     build the environment, serve the bundled model, chat with it, stop"
	@echo "make run      run lmd with the bundled models until Ctrl-C"
	@echo "make test     everything that CI runs: formatting, lint, types, import rules, tests"
	@echo "make lint     the same without the tests"
	@echo "make format   let ruff rewrite what it can"
	@echo "make bench    measure lmd against llama-server"
	@echo "make completions, make man   write packaging/completions and packaging/man anew"
	@echo "make install  as root: lmd for the whole machine, in /opt/lmd, with its systemd units"
	@echo "make package  Debian packages for Debian 12 and 13, into dist; docs/packages.md says more"
	@echo "make test-package   as root: build them and try them in clean machines"
	@echo "make test-releases   as root: the tests of lmd under systemd, in each of those Debians with its package"
	@echo "make venv     the environment alone"
	@echo "make clean    remove the environment and all caches"

venv: $(STAMP)

$(STAMP): pyproject.toml packaging/venv.sh
	@PYTHON='$(PYTHON)' bash packaging/venv.sh $(VENV)
	@touch $@

demo: venv
	@bash tests/demo.sh $(BIN)

run: venv
	LMD_PATHS__MODELS='["$(CURDIR)/tests/models"]' $(BIN)/lmd

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# pytest runs last, so that its closing line is the last line.
test: lint
	$(BIN)/pytest $(PYTEST_ARGS)

format: venv
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: venv
	$(BIN)/python -m tests.bench.compare $(BENCH_ARGS)

completions: venv
	for shell in bash zsh fish; do $(BIN)/lmctl completion $$shell > packaging/completions/lmctl.$$shell || exit 1; done

man: venv
	$(BIN)/python packaging/man/generate.py packaging/man

install:
	bash packaging/install.sh

package:
	bash packaging/deb/build.sh

# What can be missing is asked for before llama.cpp is compiled for minutes.
test-package: venv
	@for release in bookworm trixie; do bash packaging/deb/root.sh $$release >/dev/null || exit 1; done
	@$(MAKE) --no-print-directory package
	LMD_PACKAGES='$(CURDIR)/dist' $(BIN)/pytest -q -rs tests/packaging/test_deb.py

test-releases: venv
	@ls dist/lmd_*.deb >/dev/null 2>&1 || { echo "No package in dist: 'make package' first." >&2; exit 1; }
	for package in dist/lmd_*.deb; do LMD_BOX_PACKAGE=$$package $(BIN)/pytest -q -rs tests/systemd || exit 1; done

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
