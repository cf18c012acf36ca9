# Everything a fresh machine needs to run lmcast and its tests.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test lint types check-suite bench clean

demo: $(VENV)/.lmcast
	PATH="$(CURDIR)/$(BIN):$$PATH" sh samples/smollm2.sh

test: lint types check-suite

lint: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy follows installed packages, but not an editable install: it gets a plain one of its own.
types: $(VENV)/.tests
	rm -rf build $(VENV)/plain
	$(BIN)/pip install -q --no-deps --target $(VENV)/plain .
	rm -rf build
	cd $(VENV)/plain && ../bin/mypy --config-file ../../pyproject.toml \
	    -p lmcast.plugins -p lmcast.graphs -p lmcast.calib -p lmcast.exporter

# In order of names: by numbers of tests, slow files with few would be left to one worker at the end.
check-suite: $(VENV)/.tests $(VENV)/.llm-compressor
	$(BIN)/pytest -n 2 --dist loadscope --no-loadscope-reorder

bench: $(VENV)/.bench
	$(BIN)/python tests/benchmarks/export.py
	$(BIN)/python tests/benchmarks/run.py

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: an open range would fetch the newest build with its GPU libraries.
$(VENV)/.lmcast: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[gguf]'
	touch $@

# A C++ compiler is needed here alone. What builds it, too, is pinned: isolation knows no other way.
$(VENV)/.plugins: $(shell find plugins/tensorrt -type f) $(wildcard plugins/kernels/*_triton.py) \
    | $(VENV)/.lmcast
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install -q \
	    -C cmake.define.CMAKE_COMPILE_WARNING_AS_ERROR=ON ./plugins/tensorrt
	touch $@

$(VENV)/.tests: $(VENV)/.lmcast $(VENV)/.plugins
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	touch $@

# llm-compressor wants older libraries than the tests, and takes from theirs what both can use.
PEER := $(VENV)/llm-compressor
$(VENV)/.llm-compressor: tests/llm_compressor.txt $(VENV)/.tests
	rm -rf $(PEER)
	$(PYTHON) -m venv $(PEER)
	echo $(abspath $(VENV))/lib/python3.*/site-packages \
	    > $$(echo $(PEER)/lib/python3.*/site-packages)/tests.pth
	$(PEER)/bin/pip install -q -c tests/llm_compressor.txt llmcompressor
	touch $@

$(VENV)/.bench: $(VENV)/.tests
	$(BIN)/pip install -q -c constraints.txt -e '.[bench]'
	touch $@
