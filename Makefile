# Two commands on a fresh machine: `make demo` and `make test`. Both set up what they need in .venv first.
PYTHON ?= python3
VENV ?= .venv
# Tests and small models are faster without many threads each.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(VENV)/bin/setpoint train --out runs/demo-$$(date +%Y%m%d-%H%M%S)

test: lint
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist
