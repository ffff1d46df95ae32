# make study: from a bare machine to figures. make test: from a bare machine to tested.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
RUN := $(VENV)/bin/python
# a process of tests on every core
SPREAD := --numprocesses logical --maxprocesses 8 --dist worksteal

.PHONY: study test test-slow test-slurm test-chaos lint clean
study: $(VENV)/.installed
	$(RUN) -m study.sweep $(ARGS)

test: $(VENV)/.installed
	$(RUN) -m pytest $(SPREAD) $(ARGS)

test-slow: $(VENV)/.installed
	$(RUN) -m pytest $(SPREAD) -m slow $(ARGS)

test-slurm: $(VENV)/.installed
	$(RUN) -m pytest -m slurm $(ARGS)

test-chaos: $(VENV)/.installed
	$(RUN) -m pytest -m chaos -s $(ARGS)

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) *.egg-info
