# Everything runs in .venv, which is made when it is missing.
#   make demo     trains a small T5 on the embedded tasks and writes a report
#   make test     linters and the default test suite
#   make parity   comparisons with torch models and lm-evaluation-harness, tests of Apache Beam, the longest tests,
#                 the benchmarks' environment
#   make bench    every benchmark, one JSON line each

PYTHON ?= python3
BIN := .venv/bin
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python

.PHONY: demo test lint parity bench clean
.DEFAULT_GOAL := demo

.venv/uv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxmtl needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	touch $@

.venv/demo: .venv/uv setup.py
	$(INSTALL) --editable '.[cpu,data]'
	touch $@

.venv/test: .venv/demo
	$(INSTALL) --editable '.[cpu,data,dev]'
	touch $@

# pip, not uv: where a CPU build of torch is at hand, only pip finds it.
.venv/parity: .venv/test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(INSTALL) --editable '.[cpu,beam,dev,lm_eval,parity]'
	touch $@

demo: .venv/demo
	$(BIN)/jaxmtl demo

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/shellcheck launch/*.sh .ci/run

test: lint
	$(BIN)/pytest -n 2 --dist loadfile

parity: .venv/parity
	$(BIN)/pytest -n 2 --dist loadfile -m 'torch or beam or lm_eval or long'

bench: .venv/parity
	for name in feed train fewshot decode rank adapter_inference start load; do $(BIN)/python benchmarks/$$name.py || exit 1; done

clean:
	rm -rf .venv runs .pytest_cache
