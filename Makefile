# make run: serve on http://localhost:8000 with no configuration, or with that of .env.
# make test: all tests. make quick: those that start no server, browser or Postgres.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Reads files of settings, for the commands here only: a server has an environment.
DOTENV = python-dotenv==1.2.4
SERVE = $(BIN)/gunicorn --config gunicorn.conf.py

.PHONY: run test quick check messages faults bench example smoke move restore pictures clean

$(VENV)/run: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Frontdesk needs Python 3.11 or later, and $(PYTHON) is not: make PYTHON=/path/to/python3.13 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt $(DOTENV)
	touch $@

$(VENV)/dev: $(VENV)/run requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

run: $(VENV)/run
	@exec $(BIN)/python tools/with_env.py .env $(SERVE)

test: $(VENV)/dev
	$(BIN)/python -m pytest --quiet --numprocesses 2 --dist worksteal \
		--cov --cov-report=term --cov-fail-under=95

# What is fast says pyproject.toml (markers) and tests/conftest.py.
quick: $(VENV)/dev
	$(BIN)/python -m pytest --quiet --numprocesses 2 --dist worksteal -m "not slow"

# The fault tests at their full size, with their figures: an hour, on a quiet machine.
faults: $(VENV)/dev
	FRONTDESK_FULL=1 $(BIN)/python -m pytest --quiet -rP --show-capture=stdout tests/faults tests/test_openapi.py

# The example site on http://localhost:8001, the service for it on http://localhost:8000.
# make example SITE=tischlerei: the one in German.
SITE = portfolio
example: $(VENV)/run
	@$(BIN)/python -m http.server --directory examples/$(SITE) 8001 >/dev/null 2>&1 & site=$$!; \
	trap "kill $$site 2>/dev/null" EXIT INT TERM; echo "The example site: http://localhost:8001"; \
	$(BIN)/python tools/with_env.py examples/$(SITE).env $(SERVE)

examples/portfolio/formspree.js:
	cd tests/browser && npm install --no-package-lock --ignore-scripts --silent
	cp tests/browser/node_modules/@formspree/ajax/dist/global.js $@

# A tick for each thing that works: make smoke URL=https://desk.example
smoke:
	tools/smoke.sh $(URL)

# Copy all data into another, empty database: make move FROM=sqlite:///frontdesk.db TO=postgres://...
move: $(VENV)/run
	$(BIN)/python tools/move.py "$(FROM)" "$(TO)"

# Put a backup in the database's place: make restore FROM=frontdesk-3.sqlite3 TO=sqlite:///frontdesk.db
TO_RESTORE = $(or $(TO),sqlite:///frontdesk.db)
restore: $(VENV)/run
	@$(BIN)/python tools/restore.py "$(FROM)" "$(TO_RESTORE)"

# The README's pictures, taken from examples/portfolio by Chromium.
pictures: $(VENV)/dev
	$(BIN)/python tools/pictures.py

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
		*.py frontdesk
	for folder in frontdesk/locales/*/; do code=$$(basename $$folder); \
		[ $$code = en ] || [ -e $$folder/LC_MESSAGES/frontdesk.po ] || $(BIN)/pybabel --quiet init --domain frontdesk \
		--input-file frontdesk/locales/frontdesk.pot --output-dir frontdesk/locales --locale $$code; done
	$(BIN)/pybabel --quiet update --domain frontdesk --input-file frontdesk/locales/frontdesk.pot \
		--output-dir frontdesk/locales --no-fuzzy-matching --ignore-obsolete --ignore-pot-creation-date
	$(BIN)/pybabel --quiet compile --domain frontdesk --directory frontdesk/locales --statistics

bench: $(VENV)/dev
	$(BIN)/python -m bench.run $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
