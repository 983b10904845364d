# From a bare python3 (3.11 or newer): every target makes the environment it needs, once.
#   make test PYTHON=/path/to/python    uses that interpreter and its packages: no venv, no installs
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
PYTHON3 ?= python3
ARGS ?=
FLASH ?= 0

KIND := $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo gpu || echo cpu)

ifeq ($(origin PYTHON),command line)
  PY := $(PYTHON)
  READY := in-place
  export PYTHONPATH := $(CURDIR):$(CURDIR)/kernels$(if $(PYTHONPATH),:$(PYTHONPATH))
else
  PY := $(VENV)/bin/python
  # The name of the stamp is a hash of everything that decides what is installed: if it is there,
  # the installation is up to date.
  INPUTS := $(sort $(wildcard requirements/* csrc/*)) setup.py CMakeLists.txt pyproject.toml \
            ovlt/system/torchvision_shim.py
  READY := $(VENV)/.ovlt-stamp-$(KIND)-$(shell cat $(INPUTS) | sha256sum | cut -c1-16)
  # Only on demand: compiled for half an hour or more, and torch has the same kernel.
  FLASH_READY := $(if $(filter 1,$(FLASH)),$(VENV)/.ovlt-flash-$(shell \
                   cat requirements/flash-attn.txt requirements/torch-gpu.txt | sha256sum | cut -c1-16))
endif
OVLT := $(PY) -m ovlt

# What `make bench` compares with is in a folder of its own (requirements/bench.txt says why).
PEERS := $(VENV)/peers/.$(shell sha256sum requirements/bench.txt | cut -c1-16)
RESULTS = bench/results/$(shell date -u +%F)-$(KIND).json
# The newest stored results of this kind of machine; those of a whole cycle have another name.
STORED = $(lastword $(sort $(wildcard bench/results/????-??-??-$(KIND).json)))

# A check times ovlt and what its ratios need, not the peers.
CHECK_ONCE = $(PY) -m pytest -q bench --benchmark-only -k "ovlt or floor or eager or pil" $(ARGS) \
  --benchmark-json
COMPARE = $(PY) bench/check.py $(if $(ARGS),--some) $(STORED)

# A file of tests is one worker's, since its tests share models and engines. Without pytest-xdist
# (`make test PYTHON=...`) everything runs in one process.
PYTEST = $(PY) -m pytest -q $$($(PY) -c 'import xdist' 2>/dev/null && \
  echo "-n 2 --dist loadfile --no-loadscope-reorder -p no:benchmark")

.PHONY: help install demo results cycle check test test-old golden lint format bench bench-check docs \
        wheel clean in-place
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14
	@echo; echo 'Variables: ARGS="..." for the command, VENV=$(VENV), PYTHON3=$(PYTHON3) makes the venv,'
	@echo 'PYTHON=/path/to/python uses that interpreter as it is, without a venv.'

install: $(READY) $(FLASH_READY) ## make .venv, pinned, and the C++ extension; FLASH=1: flash-attn too
	@echo "ovlt is installed for $(PY)"
demo: $(READY) ## train a small model from start to end, and write its report
	@$(OVLT) demo $(ARGS)
results: $(READY) ## make the demo's numbers again, three seeds
	@$(OVLT) demo --results $(ARGS)
cycle: $(READY) ## two iterations of distillation, SFT and GRPO on the small world
	@$(OVLT) cycle recipes/smoke.toml $(ARGS)
check: $(READY) ## lint and the fast tests, in two or three minutes
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PYTEST) -m "not slow and not vllm and not gpu" tests $(ARGS)
test: $(READY) ## all tests
	@requirements/system.sh browser
	@$(PYTEST) --durations=10 tests $(ARGS)
test-old: ## most tests with torch 2.11, transformers 5.17, vLLM 0.25.1 and Python 3.12
	@tests/old/run.sh $(ARGS)
golden: $(READY) ## compare training with the stored curves; ARGS=--update stores new ones
	@$(PY) tests/golden/curves.py $(ARGS)
lint: $(READY) ## ruff and basedpyright
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m basedpyright --level error
format: $(READY) ## let ruff fix and format the code
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .
bench: export OVLT_PEERS := $(abspath $(VENV))/peers
bench: $(READY) $(PEERS) ## every kernel against its peers, into bench/results/ and the docs
	@mkdir -p bench/results
	@$(PY) -m pytest -q bench --benchmark-only --benchmark-json=$(RESULTS) $(ARGS)
	@$(PY) bench/table.py $(RESULTS) --publish $(KIND) >/dev/null
	@echo "wrote $(RESULTS), .md and .svg beside it"
bench-check: $(READY) ## time the kernels again, and compare with the stored results
	@mkdir -p build
	@test -n "$(STORED)" || { echo "bench/results has nothing of a $(KIND) machine: make bench"; exit 2; }
	@$(CHECK_ONCE)=build/bench-1.json; $(COMPARE) build/bench-1.json && exit; [ $$? = 1 ] || exit 2; \
	  echo "once more, because noise only ever adds"; \
	  $(CHECK_ONCE)=build/bench-2.json; $(COMPARE) build/bench-1.json build/bench-2.json
docs: $(READY) ## the documentation as a site, in build/site
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --site-dir build/site
	@echo "wrote build/site/index.html"
wheel: $(READY) ## a wheel with the recipes and the extension, in dist/
	@rm -rf build/lib build/bdist.* dist
	@$(PY) -m pip --disable-pip-version-check wheel -q --no-deps --no-build-isolation -w dist .
	@ls dist/*.whl
clean: ## remove what was built; .venv and runs/ stay
	@rm -rf build dist *.egg-info kernels/ovlt_kernels/_C.so .pytest_cache .ruff_cache
	@rm -f $(VENV)/.ovlt-stamp-* $(VENV)/.ovlt-flash-*
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

$(VENV)/.ovlt-flash-%: | $(READY)
	@command -v nvcc >/dev/null || { echo "flash-attn is compiled here, and there is no nvcc: install \
	CUDA's, or leave FLASH=1 out; torch's own varlen attention is used then" >&2; exit 1; }
	@echo "flash-attn from source (half an hour or more)"
	@$(PY) -m pip --disable-pip-version-check install -q --no-build-isolation \
	  -r requirements/flash-attn.txt -c requirements/torch-gpu.txt -c requirements/lock-gpu.txt
	@rm -f $(VENV)/.ovlt-flash-*
	@touch $@

in-place:
	@$(PY) setup.py -q build_native || echo "ovlt: no C++ extension; plain PyTorch is used" >&2
