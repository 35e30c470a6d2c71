# Every target sets up .venv by itself when it has to. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash
DEMO := runs/demo
export PYTHONUNBUFFERED := 1
# Threads that sleep while they wait: on cores shared with other programs, spinning ones made training several times slower.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help demo test fast check export readme lab app docs docs-serve bench bench-data bench-gpu bench-gpu-sela clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.ready: constraints.txt settings.ini setup.py tools/setup.sh
	@PYTHON="$(PYTHON)" tools/setup.sh $(VENV)

demo: $(VENV)/.ready  ## cluster the 1,797 handwritten digits of scikit-learn, about 5 minutes on 2 cores
	@mkdir -p $(DEMO)
	$(BIN)/papermill nbs/train_nmce.ipynb $(DEMO)/train_nmce.ipynb -p dataset digits -p run_dir $(DEMO)/run
	@$(BIN)/python -m nmc_workbench.summary $(DEMO)/train_nmce.ipynb $(DEMO)/run

test: $(VENV)/.ready  ## run every test: the notebooks' own, then tests/
	$(BIN)/ruff check nmc_workbench tests tools
	$(BIN)/nbdev_test --n_workers 2 --do_print
	$(BIN)/pytest -q --durations=10

fast: $(VENV)/.ready  ## run the tests that take less than ten seconds each
	$(BIN)/pytest -q -m "not slow"

check: $(VENV)/.ready  ## fail unless the library and README.md are what the notebooks export
	@tools/check_sync.sh

export: $(VENV)/.ready  ## clean the notebooks, export the library, make README.md
	$(BIN)/python tools/tables.py && $(BIN)/python tools/clean.py && env -u IN_TEST $(BIN)/nbdev_export && $(BIN)/python tools/readme.py

lab: $(VENV)/.ready  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab nbs/train_nmce.ipynb

app: $(VENV)/.ready  ## serve a run's explorer without its code, on 127.0.0.1 behind a token: make app RUN=runs/demo/run
	@tools/app.sh "$(RUN)" $(ARGS)

docs: $(VENV)/.ready  ## build the site: _docs/html/index.html; what has run is kept, and run again when its code changes
	$(BIN)/sphinx-build -W --keep-going -q -j 2 -b html -d _docs/doctrees -c docs . _docs/html
	@echo "docs: _docs/html/index.html; make docs-serve shows them"

docs-serve: docs  ## show the site on 127.0.0.1
	@echo "docs: http://127.0.0.1:8000" && cd _docs/html && ../../$(BIN)/python -m http.server 8000 --bind 127.0.0.1

bench: $(VENV)/.ready  ## measure every figure the pages quote (about two hours), and write them into docs/records and the pages
	env -u OMP_WAIT_POLICY $(BIN)/python -m tests.bench --fresh speed coil_step digits spiral nmc_digits nmc_mixtures nmc_kernels nmc_study sela_digits sinkhorn

bench-data: $(VENV)/.ready  ## measure the recipes for two cores on COIL-20, MNIST and CIFAR-10: make bench-data DATA=folder (about an hour)
	env -u OMP_WAIT_POLICY $(BIN)/python -m tests.bench --fresh coil20 mnist cifar10 nmc_study_mnist nmc_study_coil20 sela_mnist sela_cifar10 sinkhorn explorer --data "$(DATA)"

# Without .venv it takes the Python at hand, which needs PyTorch and the core's other packages only.
bench-gpu:  ## measure the CIFAR-10 recipe on a GPU: make bench-gpu DATA=folder; ends by itself after ten minutes, the same command goes on
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m tests.bench.gpu $(if $(DATA),--dataset folder --data "$(DATA)") $(ARGS)

bench-gpu-sela:  ## the same for SeLa: Sinkhorn for ten heads, and nearest neighbours of the CIFAR recipe
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m tests.bench.sela_gpu $(if $(DATA),--dataset folder --data "$(DATA)") $(ARGS)

clean:  ## remove what was built; keeps runs/ and data/
	rm -rf $(VENV) _docs build *.egg-info .pytest_cache .ruff_cache .jupyter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
