# From a bare python3 (3.11 or newer): every target makes the environment it needs, once.
#   make test PYTHON=/path/to/python    uses that interpreter and what it has: no venv, no installs
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
PYTHON3 ?= python3
ARGS ?=

KIND := $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo gpu || echo cpu)
DEVICE := $(if $(filter gpu,$(KIND)),cuda,cpu)

ifeq ($(origin PYTHON),command line)
  PY := $(PYTHON)
  READY := in-place
  export PYTHONPATH := $(CURDIR):$(CURDIR)/kernels$(if $(PYTHONPATH),:$(PYTHONPATH))
else
  PY := $(VENV)/bin/python
  # The name of the stamp is a hash of all that decides what is installed: equal, nothing is done.
  INPUTS := $(sort $(wildcard requirements/* csrc/*)) setup.py CMakeLists.txt pyproject.toml \
            ovlt/system/torchvision_shim.py
  READY := $(VENV)/.ovlt-stamp-$(KIND)-$(shell cat $(INPUTS) | sha256sum | cut -c1-16)
endif

# What `make bench` compares with lies in a folder of its own (requirements/bench.txt says why).
PEERS := $(VENV)/peers/.$(shell sha256sum requirements/bench.txt | cut -c1-16)
RESULTS = bench/results/$(shell date -u +%F)-$(KIND).json

# The environment that must be there before Python starts (ovlt/system/env.py holds the table).
RUN = eval "$$($(PY) -m ovlt.system.env $(DEVICE))"; exec $(PY)

.PHONY: help install demo results cycle test lint format bench clean in-place
help: ## this list
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10
	@echo; echo 'Variables: ARGS="..." for the command, VENV=$(VENV), PYTHON3=$(PYTHON3) makes the venv,'
	@echo 'PYTHON=/path/to/python uses that interpreter as it is, without a venv.'

install: $(READY) ## make .venv with everything pinned, and build the C++ extension
	@echo "ovlt is installed for $(PY)"
demo: $(READY) ## train a small model from start to end, and write its report
	@$(RUN) -m ovlt.demo $(ARGS)
results: $(READY) ## make the numbers of the README again
	@$(RUN) -m ovlt.demo --results $(ARGS)
cycle: $(READY) ## two iterations of distillation, SFT and GRPO on the small world
	@$(RUN) -m ovlt.cycle recipes/smoke.toml $(ARGS)
test: $(READY) ## all tests
	@requirements/system.sh browser
	@$(RUN) -m pytest -q tests --durations=10 $(ARGS)
lint: $(READY) ## ruff and basedpyright
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m basedpyright --level error
format: $(READY) ## let ruff mend and format the code
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .
bench: export OVLT_PEERS := $(abspath $(VENV))/peers
bench: $(READY) $(PEERS) ## every kernel against its peers, into bench/results/ and the README
	@mkdir -p bench/results
	@$(RUN) -m pytest -q bench --benchmark-only --benchmark-json=$(RESULTS) $(ARGS)
	@$(PY) bench/table.py $(RESULTS) --readme $(KIND) >/dev/null
	@echo "wrote $(RESULTS), .md and .svg beside it, and the README's table"
clean: ## remove what was built; .venv and runs/ stay
	@rm -rf build dist *.egg-info kernels/ovlt_kernels/_C.so .pytest_cache .ruff_cache
	@rm -f $(VENV)/.ovlt-stamp-*
	@find ovlt kernels tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/peers/.%:
	@rm -rf $(VENV)/peers
	@$(PY) -m pip --disable-pip-version-check install -q --no-deps --target $(VENV)/peers \
	  -r requirements/bench.txt
	@touch $@

$(VENV)/.ovlt-stamp-%:
	@requirements/install.sh "$(VENV)" "$(PYTHON3)" $(KIND)
	@rm -f $(VENV)/.ovlt-stamp-*
	@touch $@

in-place:
	@$(PY) setup.py -q build_native || echo "ovlt: no C++ extension; plain PyTorch is used" >&2
