# Two commands do everything on a fresh machine with Python 3.11 to 3.13 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs install browser clean

install: $(VENV)/.installed

# pip resolves; the lock gives the versions that were tested. Where torch is installed already (README: without CUDA), it stays.
$(VENV)/.installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[cluster,dev,docs,thesaurus,tracking]'
	touch $@

demo: install
	$(BIN)/mindvideo run demo --out runs/demo

lint: install
	$(BIN)/python -m pip check
	$(BIN)/ruff check src tests tools benchmarks docs
	$(BIN)/ruff format --check src tests tools benchmarks docs
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site is in site/; nothing is fetched, neither here nor by a reader's browser. `mkdocs serve` shows it while you write.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The report is tested in a real browser: chromium or Chrome from PATH, or the one MINDVIDEO_CHROMIUM names.
browser:
	@test -n "$$MINDVIDEO_CHROMIUM" || command -v chromium >/dev/null || command -v chromium-browser >/dev/null \
	|| command -v google-chrome >/dev/null || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && echo "the report's tests need a Chromium browser: installing the system package 'chromium' with apt-get (some 300 MB);" \
	    "to use another, stop now and set MINDVIDEO_CHROMIUM=/path/to/browser" \
	  && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } \
	|| { echo "expected a Chromium browser for the report's tests, found none; install 'chromium' or set MINDVIDEO_CHROMIUM" >&2; exit 1; }

test: install browser lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

clean:
	rm -rf runs site .pytest_cache .mypy_cache .ruff_cache
