# make study     environment, data, laptop study, law, forecast, figures      (PYTHON=python3.12 chooses another)
# make test      environment, linter, all tests
# make published published data, fetched and fitted again beside what was published
# make notebook  run the notebooks in scaling/ again and keep what it prints and draws;
#                STUDY=out/laptop make notebook: the lesson on that study, as a page, out/laptop/scaling_laws.html
PYTHON ?= python3

study: .venv/runtime
	.venv/bin/python -m scaling.sweep scaling/sweeps/laptop.py

test: .venv/dev
	.venv/bin/ruff check --quiet .
	.venv/bin/python -m pytest -q -n auto tests

published: .venv/runtime
	.venv/bin/python -m scaling.published --fit

notebook: .venv/dev
ifdef STUDY
	.venv/bin/python -m scaling.page "$(STUDY)"
else
	.venv/bin/jupyter-execute --inplace scaling/scaling_laws.ipynb scaling/published_studies.ipynb
endif

# The .pth file lets `python -m scaling.NAME` and `python scaling/NAME.py` work from any folder.
.venv/runtime: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "$(PYTHON) is older than Python 3.10; name another: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	.venv/bin/python -c 'import os, sysconfig; print(os.getcwd(), file=open(sysconfig.get_path("purelib") + "/nanoscale.pth", "w"))'
	touch $@

.venv/dev: .venv/runtime requirements-dev.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

.PHONY: study test published notebook
