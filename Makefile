# make run      install what is missing, then serve data/ at http://127.0.0.1:8080
# make test     every test          make check   what must hold before a commit
# make bench    the benchmark table make soak    the fault tests, ten times as long
# make demo     see it work         make lock    renew requirements/*.txt
# make protos   renew what is generated from runner/rpc/proto/*.proto
# make clean    remove .venv and caches; data/ stays
#
# Needs make and Python 3.11 or newer. Another one than python3: make run PYTHON=python3.12
# More arguments: make run ARGS="--port 9000", make test ARGS="-k inbox", make bench ARGS="latency"

PYTHON ?= python3
ARGS ?=
JOBS ?= 2

BIN := .venv/bin
CODE := $(wildcard runner handlers examples tests bench)
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input --quiet
COMPILE := $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-emit-index-url --group build --extra video

# The interpreter that .venv was made from may be gone since; then nothing in it is of use.
$(shell test -x .venv/bin/python || rm -rf .venv)

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev run demo test cover check format bench soak protos lock upgrade build clean

help:
	@awk '/^$$/ { exit } { sub(/^# ?/, ""); print }' Makefile

# A stamp is newer than its lock when the environment holds what the lock says: nothing is asked of pip twice.
setup: .venv/run.stamp
setup-dev: .venv/dev.stamp

.venv/made.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "file-runner needs Python 3.11 or newer, $(PYTHON) is not: try make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { \
		echo "$(PYTHON) cannot make .venv; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

.venv/run.stamp: requirements/run.txt pyproject.toml .venv/made.stamp
	@echo "Installing into .venv; this happens once and takes about a minute."
	@$(PIP) --no-deps --require-hashes -r requirements/run.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q runner
	@touch $@

# dev.txt holds all of run.txt in the same versions.
.venv/dev.stamp: requirements/dev.txt requirements/run.txt pyproject.toml .venv/made.stamp
	@echo "Installing into .venv, with the tools for tests; this happens once."
	@$(PIP) --no-deps --require-hashes -r requirements/dev.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q runner
	@touch .venv/run.stamp $@

run: setup
	@$(BIN)/runner serve $(ARGS)

demo: setup
	@$(BIN)/runner demo $(ARGS)

test: setup-dev
	@$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

cover: setup-dev
	@$(BIN)/python -m pytest -n $(JOBS) --cov --cov-report=term $(ARGS)

check: setup-dev
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/mypy $(CODE)
	@$(BIN)/python -m pytest --quiet --no-header tests/test_layers.py

format: setup-dev
	@$(BIN)/ruff check --fix-only $(CODE)
	@$(BIN)/ruff format $(CODE)

bench: setup-dev
	@$(BIN)/python -m bench $(ARGS)

soak: setup-dev
	@$(BIN)/python -m pytest --soak 10 --timeout 0 $(or $(wildcard tests/crash),tests) $(ARGS)

protos: setup-dev
	@$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. runner/rpc/proto/*.proto

# uv keeps the versions that the files name already; `make upgrade` asks for the newest.
lock: setup-dev
	@$(COMPILE) $(UPGRADE) --output-file requirements/run.txt
	@$(COMPILE) $(UPGRADE) $(addprefix --extra ,crawl dev fast grpc ml otel redis) --constraint requirements/run.txt --output-file requirements/dev.txt

upgrade:
	@$(MAKE) lock UPGRADE=--upgrade

build: setup-dev
	@$(BIN)/python -m hatchling build

clean:
	rm -rf .venv dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage* htmlcov
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
