# make run: serve on http://localhost:8000 with no configuration. make test: all tests.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: run test check messages faults bench example smoke move clean

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

# The catalogs' round: collect the sentences, hand them to each language, compile.
# Between the last two a translator works in frontdesk/locales/*/LC_MESSAGES/*.po.
messages: $(VENV)/dev
	$(BIN)/python tools/formats.py
	$(BIN)/pybabel --quiet extract --mapping frontdesk/locales/babel.cfg --output frontdesk/locales/frontdesk.pot \
		--keywords marked --keywords plural:1,2 --add-comments TRANSLATORS --sort-by-file --add-location file \
		--project Frontdesk --version 1 --copyright-holder "the Frontdesk authors" \
		--msgid-bugs-address https://github.com/frontdesk/frontdesk/issues \
		*.py frontdesk
	for folder in frontdesk/locales/*/; do code=$$(basename $$folder); \
		[ $$code = en ] || [ -e $$folder/LC_MESSAGES/frontdesk.po ] || $(BIN)/pybabel --quiet init --domain frontdesk \
		--input-file frontdesk/locales/frontdesk.pot --output-dir frontdesk/locales --locale $$code; done
	$(BIN)/pybabel --quiet update --domain frontdesk --input-file frontdesk/locales/frontdesk.pot \
		--output-dir frontdesk/locales --no-fuzzy-matching --ignore-obsolete --ignore-pot-creation-date
	$(BIN)/pybabel --quiet compile --domain frontdesk --directory frontdesk/locales --statistics

bench:
	$(PYTHON) bench/run.py $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
