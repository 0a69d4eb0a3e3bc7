# `make help` lists the targets. Everything runs in .venv, which `make install` makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install test lint demo bench tiny hierarchies clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## Make .venv with hrzs and what its tests need

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $(STAMP)

lint: $(STAMP) ## Style, format and types
	$(BIN)/ruff check hrzs tests
	$(BIN)/ruff format --check hrzs tests
	$(BIN)/mypy

test: lint ## Lint, types and every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

demo: $(STAMP) ## The main job on embedded defaults: tree, eval, finetune, attack, eval, one table and a picture
	$(BIN)/python -m hrzs.demo demo

bench: $(STAMP) ## Speed and memory, as ratios in one run
	$(BIN)/python -m pytest -q -s -p no:xdist tests/benchmarks -m benchmark

tiny: $(STAMP) ## Train the embedded model from random weights (overwrites hrzs/models/tiny/model.safetensors)
	$(BIN)/hrzs finetune --config hrzs/models/tiny/pretrain.yaml -o runs/tiny
	cp runs/tiny/model.safetensors hrzs/models/tiny/model.safetensors

hierarchies: $(STAMP) ## Make the published trees again
	$(BIN)/hrzs build-tree --source wordnet --classes shapes -o hierarchies/shapes.yaml

clean: ## Remove what make made (not the virtual environment)
	rm -rf demo dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
