# Every target makes its own .venv if there is none, so all you need to install first is Python 3.10 or newer.
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
LESSON ?= nbs/lessons/01_image_classification.ipynb
TESTS ?= tests
WORKERS ?= 2
PYTEST_FLAGS ?=
MINUTES ?= 120
OLDEST := .venv-oldest
OLDEST_TESTS := $(addprefix tests/test_,oldest.py cli.py export.py images.py widgets.py tabular.py collab.py text_models.py)
LAB_FLAGS ?=

.PHONY: help venv lesson lab test test-oldest soak export notebooks run-all gpu readme docs slides lint wheel package clean

help:  ## this list
	@echo "make TARGET, where TARGET is"
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | while IFS=$$'\t' read -r name what; do \
		printf '  %-10s %s\n' "$$name" "$$what"; done

venv: $(STAMP)  ## make the environment in .venv (so does every other target)

# tools/install.py has uv do it, and pip where uv cannot be had.
$(STAMP): settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); coursekit needs Python 3.10 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV) with $$($(PYTHON) -V)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing coursekit and what the course needs into $(VENV) (about 5 GB the first time; it may take some minutes)"
	@(while sleep 60 >/dev/null 2>&1 </dev/null; do echo "  still installing after $$((SECONDS / 60)) min"; done) & tick=$$!; trap "kill $$tick" EXIT; \
		$(BIN)/python tools/install.py; echo "installed in $$SECONDS s"
	@touch $@

lesson: $(STAMP)  ## run lesson 1 from top to bottom and print its numbers (LESSON=... for another)
	@test -f "$(LESSON)" || { echo "there is no notebook $(LESSON)"; exit 1; }
	@$(BIN)/python tools/notebooks.py run --out $(RUN) $(LESSON)

lab: $(STAMP)  ## JupyterLab, open at lesson 0 (LESSON=... for another)
	@$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_FLAGS) \
		$(if $(filter file,$(origin LESSON)),$(firstword $(LESSONS)),$(LESSON))

# Two processes with a thread each: on two cores they finish in a little over half the time of one process after the other.
test: $(STAMP)  ## every test (TESTS=tests/test_x.py runs some, WORKERS=0 uses one process)
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(TESTS) $(PYTEST_FLAGS)

# In an environment of its own, as pip would never choose by itself: no newer version of anything than settings.ini asks for. The imitation of the
# Hub in the tests needs a newer huggingface_hub than the package does.
test-oldest:  ## imports, commands, fits and exports with the oldest version of everything that settings.ini allows
	@test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/python tools/install.py --oldest
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} COURSEKIT_OLDEST=1 $(OLDEST)/bin/python -m pytest -n $(WORKERS) $(OLDEST_TESTS) -k "not hub and not owners" $(PYTEST_FLAGS)

soak: $(STAMP)  ## two hours of fits, predictions and widgets in one kernel, which must not grow (MINUTES=30 takes less)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py --minutes $(MINUTES)

export: $(STAMP)  ## write coursekit/*.py from nbs/api
	@$(BIN)/nbdev_export

notebooks: $(STAMP)  ## run API notebooks, lessons and index again and keep their outputs
	@$(BIN)/python tools/notebooks.py run --inplace --keep-going nbs/api nbs/lessons nbs/index.ipynb

run-all: $(STAMP)  ## run every notebook into _run and leave the sources alone
	@$(BIN)/python tools/notebooks.py run --out $(RUN) --keep-going nbs/api nbs/lessons nbs/solutions nbs/index.ipynb

gpu: $(STAMP)  ## say which accelerator there is; fails where there is none
	@$(BIN)/python -c 'import torch; d = torch.accelerator.current_accelerator(check_available=True); \
		assert d is not None, "no accelerator is available to PyTorch"; \
		print(torch.__version__, d, torch.cuda.get_device_name() if d.type == "cuda" else "")'

readme: $(STAMP)  ## README.md from nbs/index.ipynb
	@$(BIN)/python tools/readme.py

docs: $(STAMP)  ## the site, made from the notebooks, in _docs/index.html (warnings are errors)
	@OMP_NUM_THREADS=1 $(BIN)/python docs/build.py

slides: $(STAMP)  ## a deck of slides for each lesson, in _slides/index.html
	@$(BIN)/python docs/slides.py

lint: $(STAMP)  ## ruff, types, layers, sizes, notebooks and workflows
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python tests/test_structure.py
	@$(BIN)/python tools/notebooks.py check nbs
	@$(BIN)/python tools/lint_workflows.py || test $$? -eq 3

wheel: $(STAMP)  ## the wheel, in dist/
	@rm -rf build dist
	@$(BIN)/python -m pip wheel -qq --no-deps --no-build-isolation --wheel-dir dist .
	@rm -rf build
	@ls -l dist/*.whl

package: $(STAMP)  ## sdist and wheel for the index, in dist/, checked
	@rm -rf build dist
	@$(BIN)/python -m build -q --no-isolation
	@rm -rf build
	@$(BIN)/python -m twine check --strict dist/*
	@$(BIN)/python -c 'from pathlib import Path; big = [f"{p} has {p.stat().st_size / 1e6:.0f} MB, at most 20" \
		for p in Path("dist").iterdir() if p.stat().st_size > 20e6]; assert not big, big'

clean:  ## delete everything that was made, except .venv and .venv-oldest
	@rm -rf $(RUN) build dist *.egg-info _docs _proc _slides .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	@find coursekit nbs tests tools -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
