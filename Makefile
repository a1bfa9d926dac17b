# make study     environment, data, laptop study, law, forecast, figures      (PYTHON=python3.12 chooses another)
# make test      environment, linter, all tests
# make notebook  run scaling/scaling_laws.ipynb again and keep what it prints and draws
PYTHON ?= python3

study: .venv/runtime
	.venv/bin/python -m scaling.sweep scaling/sweeps/laptop.py

test: .venv/dev
	.venv/bin/ruff check --quiet .
	.venv/bin/python -m pytest -q -n auto tests

notebook: .venv/dev
	.venv/bin/jupyter-execute --inplace scaling/scaling_laws.ipynb

.venv/runtime: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/dev: .venv/runtime requirements-dev.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

.PHONY: study test notebook
