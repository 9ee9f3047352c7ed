# Needs only make and a python3 with venv; everything else is installed into .venv, at the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test bench targets lint format clean

demo: $(READY)  ## the main job: plain Adam against a tower, a table and quickstart.png
	$(BIN)/python examples/quickstart.py

# Two workers of one thread each: the tests' networks are too small to gain from more threads in one.
test: lint  ## formatter check, linter, type checker, all tests with doctests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

bench: $(READY)  ## what a tower costs, beside torch, the published package and others: tables and a picture in runs/bench
	$(BIN)/python -m benchmarks

targets: $(READY)  ## the promised figures, each with its limit: met or missed
	$(BIN)/python -m benchmarks.targets

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is newer than what it was made from; an interrupted install leaves no stamp and is made again.
$(READY): setup.cfg setup.py constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --use-pep517 -c constraints.txt -e ".[dev]"
	touch $@
