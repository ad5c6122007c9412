.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
PROTOC_BIN := .venv-protos/bin
GNOSTIC := github.com/google/gnostic/cmd/protoc-gen-openapi@v0.7.1
# What tests run beside the servers, each in an environment of its own.
CLIENTS := tritonclient kserve perf models

# What PyTorch asks for, but computes without on a CPU: 3.7 GB.
NOT_FOR_PYTORCH := triton cuda-bindings cuda-pathfinder cuda-toolkit $(addprefix nvidia-, \
  cublas cuda-cccl cuda-nvrtc cudnn-cu13 cufft cufile cusolver cusparse cusparselt-cu13 nccl-cu13 \
  nvjitlink nvshmem-cu13 nvtx)

# How tests run that train: beside others that look at the clock more closely.
YIELDING := nice -n 5

# A test may start ten processes: each would compile what it imports again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-beside test-training test-services check lint type contracts protos protos-current \
  openapi baseline lock clean

help: ## Show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: .venv/.done ## Make the virtual environment (done by every target that needs it)

.venv/.done: requirements/dev.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

.venv-tritonclient/.done .venv-kserve/.done: .venv-%/.done: requirements/%.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

.venv-pytorch/.done: requirements/pytorch.txt requirements/without_cuda.sh pyproject.toml
	$(PYTHON) -m venv .venv-pytorch
	.venv-pytorch/bin/pip install --quiet --disable-pip-version-check --no-compile --no-deps \
	  --require-hashes -r $<
	.venv-pytorch/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	requirements/without_cuda.sh .venv-pytorch/bin/python
	touch $@

# Files of packages, without what those depend on.
.venv-perf/.done .venv-models/.done: .venv-%/.done: requirements/%.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $<
	$(BESIDE_$*)
	touch $@

# A library that perf_analyzer links, where Debian's packages can be had; without it, its tests skip.
BESIDE_perf = -cd .venv-perf && apt-get download -qq libb64-0d && dpkg -x libb64-0d_*.deb .

.venv-protos/.done: requirements/protos.txt
	$(PYTHON) -m venv .venv-protos
	$(PROTOC_BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/protos.txt
	touch $@

demo: setup ## The whole job on real data: train, prove, publish, serve, call
	$(BIN)/python demo/main_job.py

test: setup ## Every test: those that train in what time the others leave
	$(MAKE) --no-print-directory --jobs=2 test-beside test-services

test-services: setup $(CLIENTS:%=.venv-%/.done)
	$(BIN)/pytest -m "not slow"
	SERVERY_TEST_TRANSPORT=grpcio $(BIN)/pytest -m "not slow" tests/inference
	$(BIN)/pytest -m slow --ignore tests/trainer

# Shown when it has ended, for the others are shown as they run.
test-beside:
	mkdir -p build
	$(MAKE) test-training >build/test-training.log 2>&1; ended=$$?; cat build/test-training.log; exit $$ended

test-training: setup .venv-pytorch/.done
	$(YIELDING) $(BIN)/pytest --timeout 300 -m slow tests/trainer
	OMP_NUM_THREADS=1 $(YIELDING) .venv-pytorch/bin/pytest --timeout 300 -k "not keras or pytorch" \
	  tests/trainer/test_pytorch*.py tests/trainer/test_frameworks.py tests/trainer/test_training.py

check: lint type contracts test ## Everything CI runs

lint: setup ## Style and import boundaries
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: setup ## Strict types
	$(BIN)/mypy

contracts: setup protos-current protos/google ## Style of the contracts, no breaking change, stubs up to date
	$(BIN)/buf lint protos
	$(BIN)/buf format --diff --exit-code --path protos/servery protos
	$(BIN)/buf breaking protos --against protos/baseline.binpb

# What the contracts import of google/api, for buf, which looks nowhere else.
protos/google: .venv-protos/.done
	mkdir -p protos/google/api
	cp .venv-protos/lib/python3*/site-packages/google/api/annotations.proto \
	  .venv-protos/lib/python3*/site-packages/google/api/http.proto protos/google/api
	touch $@

protos: .venv-protos/.done ## Generate the stubs again
	find client/servery -path '*/v1/*_pb2*' -delete
	$(PROTOC_BIN)/python protos/generate.py client
	$(MAKE) openapi

openapi: .venv-protos/.done ## Write docs/reference/openapi.yaml again, where Go can build its generator
	$(call write_openapi,docs/reference/openapi.yaml)

# Writes the file $(1); where there is no Go, or nothing to build from, says so and leaves it.
define write_openapi
	if GOBIN=$(CURDIR)/build/tools go install $(GNOSTIC); then \
	  PATH=$(CURDIR)/build/tools:$$PATH $(PROTOC_BIN)/python protos/openapi.py $(1); \
	else echo "$(1) is as it was: its generator needs go and the network"; fi
endef

protos-current: .venv-protos/.done ## Fail if stubs or OpenAPI document are not those of the contracts
	rm -rf build/protos && mkdir -p build/protos
	$(PROTOC_BIN)/python protos/generate.py build/protos
	for stubs in build/protos/servery/*/v1; do \
	  diff -r -x __pycache__ $$stubs client/$${stubs#build/protos/} || exit 1; done
	cp docs/reference/openapi.yaml build/openapi.yaml
	$(call write_openapi,build/openapi.yaml)
	diff docs/reference/openapi.yaml build/openapi.yaml

baseline: setup protos/google ## Accept the contracts as they are as the ones not to break
	$(BIN)/buf build protos -o protos/baseline.binpb

lock: ## Resolve the pinned requirements again
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header --extra dev pyproject.toml -o requirements/dev.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header requirements/protos.in -o requirements/protos.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header requirements/tritonclient.in -o requirements/tritonclient.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header requirements/kserve.in -o requirements/kserve.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header --extra registry --extra trainer-pytorch -c requirements/dev.txt \
	  $(NOT_FOR_PYTORCH:%=--no-emit-package %) pyproject.toml requirements/pytorch.in \
	  -o requirements/pytorch.txt
	for files in models perf; do \
	  uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-annotate --no-header --no-deps requirements/$$files.in -o requirements/$$files.txt; done

clean: ## Remove what the other targets made
	rm -rf .venv .venv-protos .venv-pytorch $(CLIENTS:%=.venv-%) build protos/google
