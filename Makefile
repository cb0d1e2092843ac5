# One door for people and for .ci/run. `make` alone lists the targets. `make clean` first, then PYTHON=python3.12 make test takes another
# interpreter.
PYTHON ?= python3
# processes of `make test`, each of one thread
WORKERS ?= 2
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INSTALL := -c constraints-cpu.txt -e '.[dev]'

.DEFAULT_GOAL := help
.PHONY: help install demo test check lint types layers bench test-slow test-gpu test-compile test-real-data clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv and install the package, editable, with its development tools

$(STAMP): pyproject.toml constraints-cpu.txt
	@echo "installing into $(VENV), which takes a minute or more ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(INSTALL)
	@touch $@

demo: install ## defocus a histology image, restore it, write figures to out/demo
	$(BIN)/pathorestore demo -o out/demo
	@echo "before and after, side by side:"
	@find out/demo -name '*.png' | sort | sed 's/^/  /'

test: install ## the default tests, minutes on two CPU cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: lint types layers ## everything that reads the source: ruff, mypy, import-linter

lint: install ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## mypy --strict on the package
	$(BIN)/mypy

layers: install ## imports go downward only
	$(BIN)/lint-imports

bench: install ## the benchmarks, ratios against a baseline of the same run, as out/bench.json
	@mkdir -p out
	$(BIN)/python -m pytest benchmarks --benchmark-json=out/bench.json

test-slow: install ## tests of minutes
	$(BIN)/python -m pytest -m slow

test-gpu: install ## tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

test-compile: install ## tests of torch.compile and export
	$(BIN)/python -m pytest -m compile

test-real-data: install ## tests on the images PATHORESTORE_DATA, the slide PATHORESTORE_SLIDE, the stains PATHORESTORE_STAINS
	@test -n "$(PATHORESTORE_DATA)$(PATHORESTORE_SLIDE)$(PATHORESTORE_STAINS)" || { echo "set PATHORESTORE_DATA or PATHORESTORE_STAINS to a folder of images, or PATHORESTORE_SLIDE to a slide, first"; exit 2; }
	$(BIN)/python -m pytest -m real_data

clean: ## remove what the targets made, .venv included
	rm -rf $(VENV) out build dist *.egg-info .benchmarks .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
