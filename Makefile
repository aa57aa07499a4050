# The front door. Each target sets up what it needs; the second start is fast.
# `make demo` and `make test` need only git, make and Python 3.11 or later.

SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2
PIP = { $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip; } >/dev/null  # uv's have none

.PHONY: setup dev demo test check bench evaluate live lock clean

setup: .venv/run.stamp
dev: .venv/dev.stamp

# With uv if it is there, with pip if not. The lock is whole, so pip need not resolve (--no-deps): older ones fail at it.
.venv/run.stamp: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; set PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || if command -v uv >/dev/null; then uv venv -q -p $(PYTHON) .venv; else $(PYTHON) -m venv .venv; fi
	@echo "Setting up .venv (once)" >&2
	@if command -v uv >/dev/null; then \
	  VIRTUAL_ENV=.venv uv pip install -q --compile-bytecode --require-hashes -r requirements.lock && VIRTUAL_ENV=.venv uv pip install -q --no-deps --no-build-isolation -e . ; \
	else \
	  $(PIP) && \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements.lock && \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e . ; \
	fi
	@touch $@

.venv/dev.stamp: requirements-dev.lock .venv/run.stamp
	@echo "Adding the tools for tests (once)" >&2
	@if command -v uv >/dev/null; then \
	  VIRTUAL_ENV=.venv uv pip install -q --compile-bytecode --require-hashes -r requirements-dev.lock; \
	else \
	  $(PIP) && \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements-dev.lock; \
	fi
	@touch $@

.venv/bench.stamp: requirements-bench.lock .venv/dev.stamp
	@echo "Adding a peer of the benchmark (once)" >&2
	@if command -v uv >/dev/null; then \
	  VIRTUAL_ENV=.venv uv pip install -q --compile-bytecode --require-hashes -r requirements-bench.lock; \
	else \
	  $(PIP) && \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements-bench.lock; \
	fi
	@touch $@

demo: setup
	@$(BIN)/gatehound demo --out demo --clobber

test: dev
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

check: dev
	@$(BIN)/ruff format --check -q . || { echo "Hint: .venv/bin/ruff format ." >&2; exit 1; }
	@$(BIN)/ruff check -q .
	@$(BIN)/lint-imports --no-cache > /tmp/gatehound-imports.$$$$ || { cat /tmp/gatehound-imports.$$$$; exit 1; }; rm -f /tmp/gatehound-imports.$$$$
	@$(BIN)/mypy
	@$(BIN)/sqlfluff lint -q queries/detections/*.sql

bench: .venv/bench.stamp
	@$(BIN)/python -m tests.bench.run

# Takes about an hour; goes on where it was stopped.
evaluate: dev
	@$(BIN)/python -m tests.evaluate.run --work .evaluate --robustness --scale --out evaluation.json --document docs/evaluation.md

live: dev
	@.ci/live

lock:
	uv pip compile pyproject.toml --extra build --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -q -o requirements.lock
	uv pip compile pyproject.toml --extra build --extra dev --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -q -c requirements.lock -o requirements-dev.lock
	uv pip compile pyproject.toml --extra build --extra dev --extra bench --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -q -c requirements-dev.lock -o requirements-bench.lock

clean:
	rm -rf .venv demo build dist .pytest_cache .mypy_cache .ruff_cache
