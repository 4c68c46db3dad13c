PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: setup quickstart test test-all lint docs bench

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: setup
	$(BIN)/peft-bidora train examples/quickstart.yaml --overwrite

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A worker for each core, with one thread each: threads that wait for each other's cores spin.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal

test: lint
	$(PYTEST)

test-all: lint
	$(PYTEST) -m 'not gpu'

# The site, in docs/_build/html. A warning is an error.
docs: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

# DATA holds a folder for each data set, as benchmarks/methods.py says. An hour and more. betty-ml is for comparison alone.
bench: setup
	@test -n "$(DATA)" || { echo "make bench DATA=DIR: the folder of the data sets is missing"; exit 2; }
	$(BIN)/python -m pip install --quiet --no-deps betty-ml==0.1.1
	$(BIN)/python benchmarks/step.py --layers 3 --threads 1 --rounds 9
	$(BIN)/python benchmarks/step.py --layers 3 --threads 1 --rounds 9 --precision bfloat16 --name cpu-bfloat16 \
		--only dora-peft dora-ours retrain-ours search-4-central search-1-central predict
	$(BIN)/python benchmarks/memory.py --threads 1
	$(BIN)/python benchmarks/scale.py steps --threads 1
	$(BIN)/python benchmarks/scale.py runs
	$(BIN)/python benchmarks/regularizer.py
	$(BIN)/python benchmarks/fidelity.py --data-dir $(DATA)
	$(BIN)/python benchmarks/predict.py memory
	$(BIN)/python benchmarks/predict.py speed --data-dir $(DATA)
	$(BIN)/python benchmarks/run.py --data-dir $(DATA) --variants default
	$(BIN)/python benchmarks/lanes.py --data-dir $(DATA) --override search.steps=60 retrain.steps=60 eval_steps=30 save_steps=30
	$(BIN)/python benchmarks/small_memory.py --threads 1
	$(BIN)/python benchmarks/processes.py
	$(BIN)/python benchmarks/sharded.py
	$(BIN)/python benchmarks/page.py
	$(BIN)/python benchmarks/results_page.py
