# `make help` lists the targets. Everything runs in .venv, which `make install` makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install test lint docs demo bench gpu soak oldest results tiny hierarchies clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## Make .venv with hrzs and what its tests and its documentation need

# Without --no-compile, pip compiles every module of torch and others for a minute, most of which nobody imports.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[test,docs]'
	@touch $(STAMP)

lint: $(STAMP) ## Style, format and types
	$(BIN)/ruff check hrzs tests docs
	$(BIN)/ruff format --check hrzs tests docs/*.py
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Where bytecode is not kept, each process that a test starts would compile hrzs anew.
test: lint ## Lint, types and every test
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n 2 --dist worksteal

docs: $(STAMP) ## The documentation site, in build/site, with its references and links checked; needs Python 3.11
	$(BIN)/python docs/make_site.py

# One adversary before and after. PGD-10 on a fixed subset: a demonstration, not a result.
ADVERSARY = --tree demo/tree.yaml --steps 10 --limit 192 --scoring prompt --no-matrix --no-canaries
demo: $(STAMP) ## The main job on embedded defaults: tree, eval, finetune, attack, eval, one table and a picture
	rm -rf demo && mkdir demo
	$(BIN)/hrzs build-tree --source wordnet --show -o demo/tree.yaml
	$(BIN)/hrzs eval $(ADVERSARY) --json demo/before.json
	$(BIN)/hrzs finetune --tree demo/tree.yaml --max-steps 100 --batch-size 64 -o demo/run
	$(BIN)/hrzs attack --model demo/run --tree demo/tree.yaml --attack superclass-pgd --limit 48 -o demo/attack
	$(BIN)/hrzs eval --model demo/run $(ADVERSARY) --against demo/before.json --report demo/report.html
	@echo "pictures: demo/report.html demo/attack/gallery.png"

bench: $(STAMP) ## Speed and memory, as ratios in one run; HRZS_AUTOATTACK=a checkout of fra31/auto-attack adds AutoAttack
	$(BIN)/python -m pip install --quiet --editable '.[test,bench]'
	$(BIN)/python -m pytest -q -s -p no:xdist tests/benchmarks -m benchmark

gpu: $(STAMP) ## What hrzs does on a GPU, in at most 8 minutes: runs/gpu/gpu.json and gpu.txt
	$(BIN)/python tests/benchmarks/gpu.py --output runs/gpu

soak: $(STAMP) ## Kill every command at random moments, and watch the memory of long runs: many minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s -n 0 tests -m soak

OLD := build/oldest
# What these tests look at was otherwise then: last bits, devices and compilation (torch 2.6), a list of names
# (torchvision 0.21), the order of a schema (msgspec 0.21), how help is drawn (typer 0.15), metadata (packaging).
NEWER = test_weights_cast_once_are_autocasts or test_devices or test_a_compiled_encoder or flowers102 \
	or test_the_schema_in_the_docs or test_a_command_takes_them or test_every_option_is_there or test_the_archives or pmg-aft-3
oldest: ## Install the oldest versions that pyproject.toml admits, and run all tests with them: half an hour
	$(PYTHON) -m venv --clear $(OLD)
	$(OLD)/bin/python -m pip install --quiet uv
	$(OLD)/bin/uv pip compile --quiet --resolution lowest-direct --python $(OLD)/bin/python pyproject.toml -o $(OLD)/lowest.txt
	$(OLD)/bin/uv pip install --quiet --python $(OLD)/bin/python --constraint $(OLD)/lowest.txt --editable '.[test]'
	OMP_NUM_THREADS=1 $(OLD)/bin/python -m pytest -q -n 2 --dist worksteal -W default -k 'not ($(NEWER))'

IMAGES ?= tiny-imagenet
CONFIG ?= clip-rn-64.json
WEIGHTS ?= clip-rn-64.safetensors
JOBS ?= 1
results: $(STAMP) ## What is missing of docs/results/, then its tables; IMAGES=, CONFIG=, WEIGHTS= say where things lie, JOBS= how many run side by side
	$(BIN)/python docs/make_results.py --plan | tail -1
	$(BIN)/python docs/make_results.py --images $(IMAGES) --config $(CONFIG) --weights $(WEIGHTS) --jobs $(JOBS)
	$(BIN)/python docs/show_results.py

tiny: $(STAMP) ## Train the embedded model from random weights (overwrites hrzs/models/tiny/model.safetensors)
	$(BIN)/hrzs finetune --config hrzs/models/tiny/pretrain.yaml -o runs/tiny
	cp runs/tiny/model.safetensors hrzs/models/tiny/model.safetensors

BUILD_TREE = $(BIN)/hrzs build-tree --quiet
hierarchies: $(STAMP) ## Make the published trees again that are not edited by hand
	for d in shapes tiny_imagenet cifar10 stl10 caltech101 caltech256; do \
	  $(BUILD_TREE) --classes $$d -o hierarchies/$$d.yaml || exit 1; done
	$(BUILD_TREE) --classes imagenet --trees 3 -o hierarchies/imagenet.yaml
	$(BUILD_TREE) --classes cifar100 -o build/cifar100.yaml
	$(BUILD_TREE) --source file --tree build/cifar100.yaml --tree hierarchies/cifar100_coarse.yaml -o hierarchies/cifar100.yaml

clean: ## Remove what make made (not the virtual environment)
	rm -rf demo dist build .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
