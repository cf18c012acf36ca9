# Everything a fresh machine needs to run lmcast and its tests.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CLIENTS := $(VENV)/clients
LISTS := tests/clients/environments
CLIENT_PYTHONS := $(patsubst $(LISTS)/%.txt,$(CLIENTS)/%/.made,$(wildcard $(LISTS)/*.txt))
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# An editable install links each file: another list of files is another install.
SOURCES := $(shell find plugins graphs calib exporter -name '*.py' | sort)
PACKAGE := $(VENV)/.package-$(shell echo $(SOURCES) | cksum | cut -d ' ' -f 1)

.PHONY: demo test quick lint types check-suite test-clients bench bench-peers clean

demo: $(PACKAGE)
	PATH="$(CURDIR)/$(BIN):$$PATH" sh samples/smollm2.sh

# mypy takes one core for most of a minute, beside the first tests.
test: $(VENV)/.tests $(VENV)/.llm-compressor $(PACKAGE)
	+$(MAKE) --no-print-directory -j 2 lint types check-suite

lint: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.tests $(PACKAGE)
	$(BIN)/mypy -p lmcast.plugins -p lmcast.graphs -p lmcast.calib -p lmcast.exporter

# In order of names: by numbers of tests, slow files with few would be left to one worker at the end.
check-suite: $(VENV)/.tests $(VENV)/.llm-compressor $(CLIENTS)/genai/.made $(PACKAGE)
	$(BIN)/pytest -n 2 --dist loadscope --no-loadscope-reorder

# What a change of a block, an operator or a table breaks first: structure, eager against its oracle,
# operators through every backend.
QUICK := tests/test_structure.py tests/graphs tests/plugins/test_plugins.py \
    tests/plugins/test_runtimes.py
quick: lint $(PACKAGE)
	$(BIN)/pytest -q -n 2 --dist loadscope --no-loadscope-reorder $(QUICK)

# Every family in the other programs that open engines; `make test-clients ONLY=--only\ genai`.
test-clients: $(CLIENT_PYTHONS) $(CLIENTS)/js/.made $(PACKAGE)
	$(BIN)/python tests/client_table.py --check $(ONLY)
	$(BIN)/pytest -q tests/clients

bench: $(VENV)/.peers
	$(BIN)/python tests/benchmarks/export.py

# Beside other programs, each in an environment of its own; `make bench-peers PEERS='--models smollm2'`.
bench-peers: $(VENV)/.peers
	$(BIN)/python tests/benchmarks/peers.py $(PEERS)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: an open range would fetch the newest build with its GPU libraries.
$(VENV)/.lmcast: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt $(EDITABLE) '.[export,gguf]'
	rm -f $(VENV)/.package-*
	touch $@ $(PACKAGE)

# Strict: files are linked, not mapped by an import hook, so that mypy and editors follow them.
EDITABLE := -C editable_mode=strict -e
$(PACKAGE): | $(VENV)/.lmcast
	rm -rf build $(VENV)/.package-*
	$(BIN)/pip install -q --no-deps $(EDITABLE) .
	touch $@

# A C++ compiler is needed here alone. What builds it, too, is pinned: isolation knows no other way.
$(VENV)/.plugins: $(shell find plugins/native -type f) $(wildcard plugins/*/*_triton.py) \
    | $(VENV)/.lmcast
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install -q \
	    -C cmake.define.CMAKE_COMPILE_WARNING_AS_ERROR=ON ./plugins/native
	touch $@

$(VENV)/.tests: $(VENV)/.lmcast $(VENV)/.plugins
	$(BIN)/pip install -q -c constraints.txt $(EDITABLE) '.[test]'
	touch $@

# llm-compressor wants older libraries than the tests, and takes from theirs what both can use.
PEER := $(VENV)/llm-compressor
$(VENV)/.llm-compressor: tests/layouts/llm_compressor.txt $(VENV)/.tests
	rm -rf $(PEER)
	$(PYTHON) -m venv $(PEER)
	echo $(abspath $(VENV))/lib/python3.*/site-packages \
	    > $$(echo $(PEER)/lib/python3.*/site-packages)/tests.pth
	$(PEER)/bin/pip install -q -c tests/layouts/llm_compressor.txt llmcompressor
	touch $@

# Programs that open engines. What is listed wants other libraries than the tests, or, as
# onnxruntime-genai, would bring a second onnxruntime; the rest is taken from their environment.
$(CLIENT_PYTHONS): $(CLIENTS)/%/.made: $(LISTS)/%.txt $(VENV)/.tests
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	echo $(abspath $(VENV))/lib/python3.*/site-packages \
	    > $$(echo $(@D)/lib/python3.*/site-packages)/tests.pth
	$(@D)/bin/pip install -q --no-deps -r $<
	touch $@

# Without node, or a registry of its packages, the other programs are tested all the same.
$(CLIENTS)/js/.made: $(LISTS)/package.json $(LISTS)/package-lock.json $(VENV)/.tests
	rm -rf $(@D)
	mkdir -p $(@D)
	cp $(LISTS)/package.json $(LISTS)/package-lock.json $(LISTS)/.npmrc $(@D)
	if cd $(@D) && npm ci --silent; then touch .made; \
	else echo 'transformers.js is left out: npm cannot install it here'; fi

$(VENV)/.bench: $(VENV)/.tests
	$(BIN)/pip install -q -c constraints.txt $(EDITABLE) '.[bench]'
	touch $@

# Listed whole, as what a runtime asks for is more than it needs. onnxruntime-genai's builder takes
# torch and transformers from the tests.
$(VENV)/.peers: $(wildcard tests/benchmarks/peers/*.txt) $(VENV)/.bench
	for list in $(wildcard tests/benchmarks/peers/*.txt); do \
	    peer=$(VENV)/peers/$$(basename $$list .txt) && rm -rf $$peer && $(PYTHON) -m venv $$peer \
	    && $$peer/bin/pip install -q --no-deps -r $$list || exit 1; \
	done
	echo $(abspath $(VENV))/lib/python3.*/site-packages \
	    > $$(echo $(VENV)/peers/genai/lib/python3.*/site-packages)/tests.pth
	touch $@
