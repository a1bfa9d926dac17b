# make study   environment, data, laptop study, law, forecast, figures      (PYTHON=python3.12 chooses another)
# make test    environment, all tests
PYTHON ?= python3

study: .venv/runtime
	.venv/bin/python -m scaling.sweep scaling/sweeps/laptop.py

test: .venv/dev
	.venv/bin/python -m pytest -q -n auto tests

.venv/runtime: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/dev: .venv/runtime requirements-dev.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

.PHONY: study test
