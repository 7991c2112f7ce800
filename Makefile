# make install | compare | test [DATA=DIR] | check | clean
PYTHON ?= python3
DATA ?=
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed
CORE := CMakeLists.txt $(wildcard src/quatrain/kernels/_core/*.cpp src/quatrain/kernels/_core/*.h)

.PHONY: install compare test check clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt Makefile $(CORE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Quatrain needs Python 3.11 or newer; try: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv .venv || { echo "no venv module: on Debian, apt install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[report,parquet,audio,text,dev]'
	@ls .venv/lib/python3*/site-packages/quatrain/kernels/_core/libquatrain_base.so >/dev/null 2>&1 \
		|| echo "no C++ compiler found: ops on the CPU use the vectorised PyTorch path"
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
