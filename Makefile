# make install | compare | test [DATA=DIR] | check | clean
PYTHON ?= python3
DATA ?=
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install compare test check clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Quatrain needs Python 3.11 or newer; try: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv .venv || { echo "no venv module: on Debian, apt install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[report,dev]'
	@touch $@

compare: install
	$(BIN)/quatrain compare $(ARGS)

test: install check
	$(BIN)/python -m pytest -n 2 $(if $(DATA),"--data=$(DATA)") $(ARGS)

check: install
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
