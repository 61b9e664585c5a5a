# `make sweep` runs the main job, `make test` the tests. Both set everything up first, in .venv, and need the network for that
# alone. `make help` lists the rest.

PYTHON ?= python3
SPACE ?= search_spaces/quickstart.yaml
ARGS ?=
STORE ?= runs/mlflow.db
PORT ?= 5000
IMAGE ?= seqrec-sweeps
RESULTS ?=

VENV := .venv
# The stamp's name holds the contents of what it stands for, so that a file merely touched installs nothing again.
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)
PIP := $(VENV)/bin/python -m pip --quiet --quiet --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.PHONY: help setup sweep test soak lint format mlflow docker constraints clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1|/p' Makefile | while IFS='|' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

setup: $(STAMP)  ## .venv with the pinned dependencies (PYTHON=python3.12 picks the interpreter)

$(STAMP):
	@command -v $(PYTHON) >/dev/null || { echo "PYTHON: got $(PYTHON); expected a Python >= 3.11 on the PATH." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "PYTHON: got $$($(PYTHON) --version 2>&1); expected Python >= 3.11. hint: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "PYTHON: $(PYTHON) cannot make environments. hint: apt-get install python3-venv" >&2; exit 2; }
	@echo "setting up $(VENV) with $$($(PYTHON) --version); the first time takes a few minutes ..." >&2
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@rm -f $(VENV)/.installed-*
	@touch $@

sweep: setup  ## the main job (SPACE=search_spaces/rece.yaml ARGS='--plan')
	@$(VENV)/bin/python -m sweeps.run $(SPACE) $(ARGS)

test: setup  ## the tests but for the long drills
	@$(VENV)/bin/python -m pytest -m 'not soak' $(ARGS)

soak: setup  ## the long drills, faults on a cluster; 45 minutes, Linux and root (ARGS='-k cut', RESULTS=a file for what they find)
	@SEQREC_SOAK_RESULTS=$(RESULTS) $(VENV)/bin/python -m pytest -m soak tests/soak $(ARGS)

lint: setup  ## ruff and mypy, as the pre-commit hooks run them
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

format: setup  ## rewrite the sources in the house style
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

mlflow: setup  ## MLflow's pages on 127.0.0.1 (STORE=runs/mlflow.db PORT=5000)
	@test -f $(STORE) || { echo "STORE: got $(STORE); expected the store of a sweep. hint: make sweep" >&2; exit 2; }
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true \
	    $(VENV)/bin/mlflow ui --host 127.0.0.1 --port $(PORT) --workers 1 --backend-store-uri "sqlite:///$(abspath $(STORE))"

docker:  ## the image of docker/README.md
	docker build --file docker/Dockerfile --tag $(IMAGE) .

constraints:  ## constraints.txt anew, from an empty environment
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	    $(PYTHON) -m venv "$$scratch/venv" && \
	    "$$scratch/venv/bin/python" -m pip --quiet --disable-pip-version-check install --editable '.[dev,postgres]' && \
	    "$$scratch/venv/bin/python" -m pip freeze --exclude-editable > "$$scratch/found" && \
	    { grep '^#' constraints.txt; sed 's/^\(torch==[0-9.]*\)+.*/\1/' "$$scratch/found" | LC_ALL=C sort -f; } > "$$scratch/new" && \
	    cp "$$scratch/new" constraints.txt

clean:  ## remove the environment and the tools' caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
