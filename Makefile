# medsynth: what to type. `make` alone lists the targets.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
WORKERS ?= 2

# Passed to `medsynth reproduce` only when set: make reproduce PROFILE=demo DATA=brain_ms=/path/to/brain_ms
REPRODUCE_ARGS = $(if $(PROFILE),--profile '$(PROFILE)') $(if $(DATA),--data '$(DATA)') \
	$(if $(RECIPE),--recipe '$(RECIPE)') $(if $(SEED),--seed '$(SEED)')
REPRODUCE_ENV = $(if $(HOME_DIR),MEDSYNTH_HOME='$(HOME_DIR)')

.DEFAULT_GOAL := help
.PHONY: help .venv reproduce check test slow fingerprints export book

help: ## say what can be made
	@echo 'Everything runs in .venv, which is made on first use (Python 3.11 or newer; PYTHON=... picks one).'
	@echo
	@sed -n 's/^\([a-z.]*\):.*## /  make \1|/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'
	@echo
	@echo 'reproduce takes PROFILE=smoke|demo|gpu|paper, DATA=NAME[=PATH], RECIPE=, SEED= and HOME_DIR=, all optional:'
	@echo '  make reproduce PROFILE=demo DATA=brain_ms=/path/to/brain_ms'

.venv: $(STAMP) ## install medsynth and its tools, at the versions in constraints.txt

# `installing` becomes the stamp when all is there; left behind by an interruption, it has the next run start afresh.
$(STAMP): settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("medsynth needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@test ! -e .venv/installing || rm -rf .venv
	$(PYTHON) -m venv .venv
	@touch .venv/installing && rm -f $@
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@mv .venv/installing $@

reproduce: $(STAMP) ## make the thesis's tables and figures again
	$(REPRODUCE_ENV) $(BIN)/medsynth reproduce $(REPRODUCE_ARGS)

TESTS = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: $(STAMP) ## run what takes seconds: house rules, units, fingerprints; 2 minutes on WORKERS cores (2)
	FINGERPRINTS=changed $(TESTS) -m "not slow and not long and not browser"

test: $(STAMP) ## run every test but the slow ones; 15 minutes on WORKERS cores (2)
	$(TESTS) -m "not slow" --durations 25

slow: $(STAMP) ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow

fingerprints: $(STAMP) ## keep the numbers of versions that are new; what is kept is never changed
	OMP_NUM_THREADS=1 $(BIN)/python tests/fingerprints/store.py --write

export: $(STAMP) ## write medsynth/ from the notebooks
	$(BIN)/nbdev-export

book: $(STAMP) ## run every chapter, keep its outputs, and clean what changes from run to run
	$(BIN)/jupyter-nbconvert --to notebook --execute --inplace nbs/*.ipynb
	$(BIN)/nbdev-clean
