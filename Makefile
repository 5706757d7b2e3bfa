# Every target makes its own .venv when there is none: nothing has to be installed first but Python 3.10 or newer.
# PYTHON=python3.12 picks another Python; LESSON=nbs/lessons/NN_topic.ipynb another lesson.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN := _run
LESSONS = $(sort $(wildcard nbs/lessons/*.ipynb))
SOLUTIONS = $(sort $(wildcard nbs/solutions/*.ipynb))
API = $(sort $(shell find nbs/api -name "*.ipynb" -not -path "*/.ipynb_checkpoints/*"))
INDEX = $(wildcard nbs/index.ipynb)
LESSON ?= nbs/lessons/01_image_classification.ipynb
TESTS ?= tests
WORKERS ?= 2
PYTEST_FLAGS ?=
LAB_FLAGS ?=

.PHONY: help venv lesson lab test export notebooks run-all gpu readme lint wheel clean

help:  ## what there is (this list)
	@echo "make TARGET, where TARGET is"
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | while IFS=$$'\t' read -r name what; do \
		printf '  %-10s %s\n' "$$name" "$$what"; done

venv: $(STAMP)  ## the environment in .venv (every other target makes it, too)

# -qq leaves out pip's warnings and keeps its errors.
$(STAMP): settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); coursekit needs Python 3.10 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV) with $$($(PYTHON) -V)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing coursekit and what the course needs into $(VENV) (some minutes and about 5 GB the first time)"
	@(while sleep 60 >/dev/null 2>&1 </dev/null; do echo "  still at it, $$((SECONDS / 60)) min"; done) & tick=$$!; trap "kill $$tick" EXIT; \
		$(BIN)/python -m pip install -qq --disable-pip-version-check -e ".[dev]"; echo "installed in $$SECONDS s"
	@touch $@

lesson: $(STAMP)  ## run lesson 1 from top to bottom and print its numbers (LESSON=... for another)
	@test -f "$(LESSON)" || { echo "there is no notebook $(LESSON)"; exit 1; }
	@$(BIN)/python tools/notebooks.py run --out $(RUN) $(LESSON)

lab: $(STAMP)  ## JupyterLab, open at lesson 0 (LESSON=... for another)
	@$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_FLAGS) \
		$(if $(filter file,$(origin LESSON)),$(firstword $(LESSONS)),$(LESSON))

# Two processes with a thread each: on two cores they finish in a little over half the time of one process after the other.
test: $(STAMP)  ## every test: notebooks, browser, wheel and all (TESTS=tests/test_x.py for some, WORKERS=0 for one process)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(TESTS) $(PYTEST_FLAGS)

export: $(STAMP)  ## write coursekit/*.py from nbs/api
	@$(BIN)/nbdev_export

notebooks: $(STAMP)  ## run every notebook again and keep its outputs, cleaned
	@$(BIN)/python tools/notebooks.py run --inplace --keep-going $(API) $(LESSONS) $(INDEX)

run-all: $(STAMP)  ## run every notebook, solutions too, into _run; the sources stay as they are
	@$(BIN)/python tools/notebooks.py run --out $(RUN) --keep-going $(API) $(LESSONS) $(SOLUTIONS) $(INDEX)

gpu: $(STAMP)  ## say which accelerator there is; fails where there is none
	@$(BIN)/python -c 'import torch; d = torch.accelerator.current_accelerator(check_available=True); \
		assert d is not None, "no accelerator is available to PyTorch"; \
		print(torch.__version__, d, torch.cuda.get_device_name() if d.type == "cuda" else "")'

readme: $(STAMP)  ## README.md from nbs/index.ipynb
	@$(BIN)/python tools/readme.py

lint: $(STAMP)  ## ruff, types, notebooks and workflows
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python tools/notebooks.py check $(API) $(LESSONS) $(SOLUTIONS) $(INDEX)
	@$(BIN)/python tools/lint_workflows.py || test $$? -eq 3

wheel: $(STAMP)  ## the wheel, in dist/
	@rm -rf build dist
	@$(BIN)/python -m pip wheel -qq --no-deps --no-build-isolation --wheel-dir dist .
	@rm -rf build
	@ls -l dist/*.whl

clean:  ## throw away what was made, .venv excepted
	@rm -rf $(RUN) build dist *.egg-info _docs _proc .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find coursekit nbs tests tools -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
