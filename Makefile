# One command each; all of them work from a clean clone with python3 (>= 3.10), make and g++.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := pyproject.toml setup.py $(wildcard csrc/*/*)

.PHONY: demo check test test-slow bench bench-pytest docs clean

demo: .venv/installed            ## a photograph to tokens and back, in demo/
	@mkdir -p demo
	$(BIN)/vqtok tokenize examples/photo.jpg -o demo/photo.vqt --overwrite
	$(BIN)/vqtok detokenize demo/photo.vqt -o demo/photo.png --overwrite
	$(BIN)/vqtok inspect demo/photo.vqt --picture demo/tokens.png --overwrite
	$(BIN)/vqtok reconstruct examples/photo.jpg -o demo/side-by-side.png --overwrite
	@echo "Look at $(CURDIR)/demo/side-by-side.png and $(CURDIR)/demo/tokens.png"

test: check                      ## lint, types and tests: what CI runs

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pytest -n 2 -m "not slow and not gpu"

test-slow: .venv/installed-dev   ## the minutes-long tests
	$(BIN)/pytest -m slow

bench: .venv/installed-bench     ## vqtok beside other libraries, and what the command costs
	$(BIN)/vqtok bench
	$(BIN)/python benchmarks/command.py

bench-pytest: .venv/installed-bench  ## the same cases under pytest-benchmark
	$(BIN)/pytest benchmarks/test_bench.py --benchmark-columns=median,min,rounds

docs: .venv/installed-dev        ## the blocks of README and docs/models.md and every docstring's example, run
	$(BIN)/pytest tests/contracts/test_readme.py tests/contracts/test_public_api.py

.venv/installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/installed-dev: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch .venv/installed $@

.venv/installed-bench: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,bench]'
	touch $@

clean:
	rm -rf .venv build dist demo *.egg-info vqtok/_native/*.so
