# Everything starts here: `make help`.

EXPERIMENT ?= digits
DATASET ?=
JOBS ?= 0
RUNS_PER_GPU ?= 1
PROFILE ?=
DEVICE ?=
SYSTEM_PYTHON ?= python3
EXPERIMENTS := $(sort $(basename $(notdir $(wildcard experiments/*.toml))))
# Recipes take these from their environment, as they were given: in the text of a command a value could be a command of the
# shell, and wherever make expands it, one of make's.
VALUES := EXPERIMENT DATASET JOBS RUNS_PER_GPU PROFILE DEVICE
$(foreach name,$(VALUES),$(eval override $(name) := $$(value $(name))))
export $(VALUES) EXPERIMENTS

# An active conda environment made from environment.yml is used as it is; otherwise .venv is made.
ifeq ($(CONDA_DEFAULT_ENV),ffvit)
BIN :=
READY :=
else
BIN := .venv/bin/
READY := .venv/ready
endif

.PHONY: help setup reproduce status missing tune figures site test machine lab faults benchmark readme lock audit
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /\1|/' | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo "  With these, where they apply:"
	@echo "       EXPERIMENT=<name>   one of experiments/:"
	@echo "$$EXPERIMENTS" | fold -s -w 60 | sed 's/^/                           /'
	@echo "       DATASET=<folder>    a local copy of its images"
	@echo "       JOBS=<n>            runs side by side"
	@echo "       RUNS_PER_GPU=<n>    small runs that share a GPU"
	@echo "       PROFILE=slurm       on a cluster"
	@echo "       DEVICE=<cuda|cpu>   of make benchmark"

setup: $(READY) ## Make .venv with the pinned dependencies (the others do this when needed)

.venv/ready: requirements.lock pyproject.toml
	@$(SYSTEM_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ffvit needs Python 3.11 or newer, this is %d.%d; set SYSTEM_PYTHON=<another one>" % sys.version_info[:2])'
	@echo "Setting up .venv: some minutes, once"
	@$(SYSTEM_PYTHON) -m venv .venv
	@.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

reproduce: $(READY) ## Train, evaluate, and make every table and figure of EXPERIMENT
	@$(BIN)python workflow/run.py reproduce "$$EXPERIMENT" --dataset "$$DATASET" --jobs "$$JOBS" --runs-per-gpu "$$RUNS_PER_GPU" --profile "$$PROFILE"

status: $(READY) ## List which runs of EXPERIMENT are recorded, begun or missing
	@$(BIN)python -m ffvit status "$$EXPERIMENT"

missing: $(READY) ## Train and score those that are missing, without notebooks: how long, how far, until when
	@$(BIN)python -m ffvit missing "$$EXPERIMENT" --jobs "$$JOBS" $${DATASET:+"dataset=$$DATASET"}

tune: $(READY) ## Search settings for each model of EXPERIMENT, by equal effort
	@$(BIN)python -m ffvit tune "$$EXPERIMENT" --jobs "$$JOBS" $${DATASET:+"dataset=$$DATASET"}

figures: $(READY) ## Make the tables and figures of EXPERIMENT again from recorded results: no training, no GPU
	@$(BIN)python workflow/run.py figures "$$EXPERIMENT" --jobs "$$JOBS" --profile "$$PROFILE"

site: $(READY) ## Make the website of notebooks, records and docs in site/, as make reproduce does too
	@$(BIN)python -m website.build

test: $(READY) ## Check style and types, and run the tests, each notebook included
	@$(BIN)ruff check . && $(BIN)ruff format --check . && $(BIN)python -m mypy
	@$(BIN)python -m pytest -n 2 --durations=15 -m "not machine" tests

machine: $(READY) ## Run the tests that kill, start several processes, and run whole pipelines
	@$(BIN)python -m pytest -n 2 --durations=15 -m machine tests

# Without asking elsewhere for news and newer versions, or a person whether it may: workflow/jupyterlab says so.
lab: $(READY) ## Open JupyterLab on the notebooks
	@JUPYTER_CONFIG_PATH=workflow/jupyterlab$${JUPYTER_CONFIG_PATH:+:$$JUPYTER_CONFIG_PATH} $(BIN)jupyter lab --notebook-dir=. notebooks/02_train.ipynb

faults: $(READY) ## Kill, fill and break runs in every way we know, and see that each goes on
	@$(BIN)python benchmarks/faults.py

# A script has its mark when it has ended, and what it measured so far beside it, so that the same command goes on with the
# one that was interrupted; when all have ended, all of that goes. A GPU is often lent for ten minutes: on one, only what has
# rows of it is measured, and of the steps what fits.
ifeq ($(DEVICE),cuda)
MEASURED := speed images pyramids steps
LIMIT := --seconds 240
else
MEASURED := speed startup overhead steps images same_recipe pyramids cores
LIMIT :=
endif
MARKS := runs/benchmark$(addprefix -,$(filter cuda cpu,$(DEVICE)))
ON_DEVICE := $${DEVICE:+--device "$$DEVICE"}
MARK = mkdir -p $(@D) && touch $@

benchmark: $(MEASURED:%=$(MARKS)/%) ## Measure a step, the start, the loop beside a bare one, images, pyramids, runs that share cores
	@if [ -e $(MARKS)/speed ]; then rm -r $(MARKS); else echo "steps are left to measure: the same command goes on with them"; fi

$(MARKS)/speed: | $(READY)
	@$(BIN)python benchmarks/speed.py --keep $@.json $(LIMIT) $(ON_DEVICE); ended=$$?; \
	[ $$ended = 0 ] || [ $$ended = 75 ] || exit $$ended; \
	$(BIN)python benchmarks/speed.py --write $@.json && if [ $$ended = 0 ]; then $(MARK); fi

$(MARKS)/images: | $(READY)
	@$(BIN)python benchmarks/images.py --keep $@.json --dataset "$$DATASET" $(ON_DEVICE)
	@$(BIN)python benchmarks/images.py --write $@.json && $(MARK)

$(MARKS)/same_recipe: | $(READY)
	@$(BIN)python benchmarks/same_recipe.py --keep $@.json && $(MARK)

$(MARKS)/steps $(MARKS)/pyramids: | $(READY)
	@$(BIN)python benchmarks/$(@F).py $(ON_DEVICE) && $(MARK)

$(MARKS)/startup $(MARKS)/overhead $(MARKS)/cores: | $(READY)
	@$(BIN)python benchmarks/$(@F).py && $(MARK)

.NOTPARALLEL: # what is timed needs the machine to itself

readme: $(READY) ## Put what comes from records into the README again
	@$(BIN)python benchmarks/page.py

lock: $(READY) ## Pin again what pyproject.toml asks for
	@$(BIN)uv pip compile pyproject.toml --universal --python-version 3.11 --all-extras --upgrade --generate-hashes --no-header --output-file requirements.lock

audit: $(READY) ## Ask a database of known holes about the pinned packages, where it can be reached
	@.ci/audit $(BIN)
