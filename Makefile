# make demo: the whole way on handwritten digits. make test: the quick tests. Both install what
# they need into .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: setup demo test unit coverage sizes lint notebooks

setup: $(INSTALLED)

# Whatever is downloaded has to have the sha256 of requirements.txt; an editable project has none, so it comes after.
# uv takes a third of pip's time. It does not read pip's settings: where they are needed, pip installs.
HASHED := --require-hashes --requirement requirements.txt
$(INSTALLED): pyproject.toml requirements.txt
	@echo "Installs the packages of requirements.txt into .venv: 4 GB on disk, a few minutes."
	$(PYTHON) -m venv .venv
	sed -n '/^uv==/,/[^\\]$$/p' requirements.txt > .venv/uv.txt
	$(BIN)/python -m pip install --disable-pip-version-check --require-hashes --requirement .venv/uv.txt
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode $(HASHED) || \
		$(BIN)/python -m pip install --disable-pip-version-check $(HASHED)
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
	@echo "Ready: $(BIN)/python -m vggkeras --help"

demo: setup
	$(BIN)/python -m vggkeras demo

# In two processes: each has half of the folders, and one that has done its half takes tests of the other's.
# The slow tests (full-size networks, minutes): make test PYTEST='-m slow'
TWO := -n 2 --dist worksteal
PYTEST ?= -m 'not slow'
test: setup
	$(BIN)/python -m pytest $(TWO) $(PYTEST)

# The tests that neither train nor export a network nor start a process.
unit: setup
	$(BIN)/python -m pytest $(TWO) -m 'not slow and not integration'

# Which lines and branches the tests of `make test` run.
coverage: setup
	$(BIN)/python -m pytest $(TWO) $(PYTEST) --cov=vggkeras --cov=export --cov-branch --cov-report=term

sizes: setup
	$(BIN)/python tests/sizes.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: setup
	$(BIN)/python notebooks/execute.py
