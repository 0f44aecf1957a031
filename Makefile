# All commands run in .venv, which `tools/set_up.py` creates; `make PYTHON=python3.12 test` selects a Python.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: set-up demo demo-detect proof proof-detect test lint types test-fast test-slow test-lowest fuzz benchmarks docs format clean

set-up:
	@$(PYTHON) tools/set_up.py

demo: set-up
	$(BIN)/python tools/demo.py

# Detection of actions; uses the encoder of `make demo`, which it trains first if it is missing.
demo-detect: set-up
	$(BIN)/python tools/demo_detect.py

# Pre-training against training from scratch over several seeds: docs/proof.md. The same command resumes.
proof: set-up
	$(BIN)/python benchmarks/proof.py

# The same for detection; uses the encoders of `make proof` if they exist.
proof-detect: set-up
	$(BIN)/python benchmarks/proof_detection.py

test: lint types test-fast

lint: set-up
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: set-up
	$(BIN)/mypy

# Two processes with one thread each: the tests are small, and more threads would compete for the cores.
test-fast: set-up
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n 2 -q

test-slow: set-up
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow -q

# The lowest supported versions, in an environment of their own; TORCH=2.13.0 uses another torch.
TORCH ?= 2.11.0
test-lowest:
	@$(PYTHON) tools/set_up.py .venv-lowest constraints-lowest.txt $(TORCH)
	OMP_NUM_THREADS=1 .venv-lowest/bin/pytest -m "not slow" -n 2 -q

# More damaged files than in `make test`; FIRST=N starts from another seed.
SECONDS ?= 600
FIRST ?= 100000
fuzz: set-up
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) --first $(FIRST)

benchmarks: set-up
	$(BIN)/python benchmarks/run.py

# The documentation, into site/; Python 3.11 or newer.
docs: set-up
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: set-up
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-lowest demo runs build site *.egg-info .pytest_cache .mypy_cache .ruff_cache
