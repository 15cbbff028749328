# make run: serve on http://localhost:8000 with no configuration. make test: all tests.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: run test check faults bench example smoke move clean

$(VENV)/run: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/dev: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@ $(VENV)/run

run: $(VENV)/run
	exec $(BIN)/gunicorn --config gunicorn.conf.py

test: $(VENV)/dev
	$(BIN)/python -m pytest --quiet --numprocesses 2 --dist worksteal \
		--cov --cov-report=term --cov-fail-under=95

# The fault tests at their full size, with their figures: an hour, on a quiet machine.
faults: $(VENV)/dev
	FRONTDESK_FULL=1 $(BIN)/python -m pytest --quiet -rP --show-capture=stdout tests/faults tests/test_openapi.py

# The example site on http://localhost:8001, the service for it on http://localhost:8000.
example: $(VENV)/run
	-command -v npm >/dev/null && $(MAKE) --silent examples/portfolio/formspree.js
	$(PYTHON) -m http.server --directory examples/portfolio 8001 & site=$$!; \
	trap "kill $$site" EXIT INT TERM; ALLOWED_ORIGINS=http://localhost:8001 SITE_NAME="Mara Lind" \
	$(BIN)/gunicorn --config gunicorn.conf.py

examples/portfolio/formspree.js:
	cd tests/browser && npm install --no-package-lock --ignore-scripts --silent
	cp tests/browser/node_modules/@formspree/ajax/dist/global.js $@

# A tick for each thing that works: make smoke URL=https://desk.example
smoke:
	tools/smoke.sh $(URL)

# Copy all data into another, empty database: make move FROM=sqlite:///frontdesk.db TO=postgres://...
move: $(VENV)/run
	$(BIN)/python tools/move.py "$(FROM)" "$(TO)"

check: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench:
	$(PYTHON) bench/run.py $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
