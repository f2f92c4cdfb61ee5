# make demo   the whole chain on the packaged model, from a fresh clone
# make test   lint, types, import contracts and tests
# make docs   the generated pages of docs/
#
# Each target alone creates its environment. Needed beside make: Python 3.11 or later and a C++ compiler.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

export PIP_PROGRESS_BAR ?= off

SOURCES := pyproject.toml README.md LICENSE $(shell find api boards compiler hw models sim -type f -not -path '*/__pycache__/*' 2>/dev/null)

.DELETE_ON_ERROR:
.PHONY: demo test lint types contracts pytest docs clean

demo: $(VENV)/project.stamp $(VENV)/run.stamp
	$(BIN)/tritloom demo

test: lint types contracts pytest

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Types and import contracts are judged on the installed package: static tools do not follow the folder mapping of pyproject.toml.
types: $(VENV)/project.stamp $(VENV)/test.stamp
	@rm -rf build/types && mkdir -p build/types
	@cp -R "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tritloom" build/types/
	$(BIN)/basedpyright --pythonpath $(BIN)/python

contracts: $(VENV)/project.stamp $(VENV)/test.stamp
	$(BIN)/lint-imports

pytest: $(VENV)/project.stamp $(VENV)/test.stamp
	$(BIN)/python -m pytest

docs: $(VENV)/project.stamp $(VENV)/test.stamp
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) build demo-output *.egg-info

# The environment, then what the chain needs, then what the tests need, then the project itself: each step is repeated only
# when its inputs change. The project is installed as a wheel, not in place, so that what is tested is what a user gets.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("tritloom needs Python 3.11 or later; run: make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: pyproject.toml | $(BIN)/python
	@echo "Installing tritloom and the tools of the chain from PyPI (about 1 GB on disk)"
	@rm -rf build
	$(PIP) install --quiet '.[models,sim,fpga,qonnx]'
	@rm -rf build
	@touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp
	@echo "Installing the tools of the tests from PyPI"
	@rm -rf build
	$(PIP) install --quiet '.[dev]'
	@rm -rf build
	@touch $@

$(VENV)/project.stamp: $(SOURCES) $(VENV)/run.stamp
	@rm -rf build
	$(PIP) install --quiet --no-deps --force-reinstall .
	@rm -rf build
	@touch $@
