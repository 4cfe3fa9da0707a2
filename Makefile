# Two commands do everything: `make demo` and `make test`. Both need Python 3.11 or newer and nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test coverage torture setup browser lint docs bench audit-bench clean

demo: .venv/installed ## invert a shipped MNIST classifier; ends with the path of report.html
	$(BIN)/interpkit invert examples/models/mnist_bn.safetensors --preset vecmat --preset training-like

test: .venv/installed-dev ## run the tests
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

coverage: .venv/installed-dev ## the tests with branch coverage: what they miss; fails under 95 %
	$(BIN)/python -m torture.coverage

torture: .venv/installed-dev ## try the reliability at length, for hours; fills docs/reliability.md
	$(BIN)/python -m torture

setup: .venv/installed-dev ## make .venv with every extra

browser: .venv/installed-dev ## a Chromium for the tests of the report: the system's, or else one is installed
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
	  if command -v $$name; then exit 0; fi; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core && exit 0; \
	fi; \
	$(BIN)/playwright install chromium

lint: .venv/installed-dev ## ruff, import-linter, spelling, prose and strict mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell
	$(BIN)/python tools/prose.py
	$(BIN)/mypy

docs: .venv/installed-dev ## the documentation, into build/docs; a warning is an error
	$(BIN)/sphinx-build --fail-on-warning --keep-going --nitpicky --fresh-env --quiet docs build/docs
	@echo build/docs/index.html

bench: .venv/installed-dev ## measure the figures that the project claims
	$(BIN)/python -m benchmarks

audit-bench: .venv/installed-dev ## train 84 classifiers, most with a planted fault, and audit them; hours, resumes; DATA=folder of the data sets
	$(BIN)/python -m benchmarks.planted --data $(DATA)

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "interpkit needs Python 3.11 or newer: make PYTHON=python3.12"'
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch .venv/installed $@
