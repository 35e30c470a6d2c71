# Every target sets up .venv by itself when that is needed. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash
DEMO := runs/demo
export PYTHONUNBUFFERED := 1
# Threads that sleep while they wait: on shared cores, spinning threads made training several times slower.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help demo test notebooks fast check export lab app docs docs-serve benchmark speedrun \
        bench bench-data bench-gpu bench-gpu-sela bench-gpu-and bench-gpu-sinkhorn clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.ready: constraints.txt settings.ini setup.py tools/setup.sh
	@PYTHON="$(PYTHON)" tools/setup.sh $(VENV)

demo: $(VENV)/.ready  ## cluster the 1,797 handwritten digits of scikit-learn, about 5 minutes on 2 cores
	@mkdir -p $(DEMO)
	$(BIN)/papermill nbs/train_nmce.ipynb $(DEMO)/train_nmce.ipynb -p dataset digits -p run_dir $(DEMO)/run
	@$(BIN)/python -m nmc_workbench.reports.summary $(DEMO)/train_nmce.ipynb $(DEMO)/run

# Two processes with one thread each. Notebooks that the site has run, and whose code is the same, are not run again.
# A process that dies ends the tests and names the one it ran: after a restart pytest-xdist 3.8 waits without end.
TEST := env OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
  $(BIN)/pytest -q -n 2 --dist loadgroup --max-worker-restart 0

test: $(VENV)/.ready notebooks  ## run every test: the notebooks' own, then tests/
	$(BIN)/ruff check nmc_workbench tests tools
	$(TEST) --durations=30

notebooks: $(VENV)/.ready  ## run every notebook whose code has changed, two at a time, and say how long each took
	$(BIN)/python tools/notebooks.py $(ARGS)

fast: $(VENV)/.ready  ## run the tests that take less than ten seconds each
	$(TEST) -m "not slow"

check: $(VENV)/.ready  ## fail unless library and README are what the notebooks export, and pages say what records say
	@tools/check_sync.sh
	$(BIN)/pytest -q tools/check_records.py

export: $(VENV)/.ready  ## clean the notebooks, export the library, make README.md
	$(BIN)/python tools/parameters.py
	$(BIN)/python tools/tables.py
	$(BIN)/python tools/clean.py
	env -u IN_TEST $(BIN)/nbdev_export
	$(BIN)/python tools/finish_export.py
	$(BIN)/python tools/readme.py

lab: $(VENV)/.ready  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab nbs/train_nmce.ipynb

app: $(VENV)/.ready  ## serve a run's explorer without its code, on 127.0.0.1 behind a token: make app RUN=folder
	@tools/app.sh "$(RUN)" $(ARGS)

docs: $(VENV)/.ready notebooks  ## build the site, _docs/html/index.html; only notebooks whose code has changed are run
	$(BIN)/sphinx-build -W --keep-going -q -j 2 -b html -d _docs/doctrees -c docs . _docs/html
	@echo "docs: _docs/html/index.html; make docs-serve shows them"

docs-serve: docs  ## show the site on 127.0.0.1
	@echo "docs: http://127.0.0.1:8000" && cd _docs/html && ../../$(BIN)/python -m http.server 8000 --bind 127.0.0.1

bench: $(VENV)/.ready  ## measure every figure the pages quote, and write it into docs/records and the pages (hours)
	env -u OMP_WAIT_POLICY $(BIN)/python -m tests.bench --fresh speed coil_step digits spiral \
	  nmc_digits nmc_mixtures nmc_kernels nmc_study sela_digits sinkhorn deepcluster_digits deepcluster_architectures \
	  and_digits discover

bench-data: $(VENV)/.ready  ## measure COIL-20, MNIST and CIFAR-10 on two cores (hours): make bench-data DATA=folder
	env -u OMP_WAIT_POLICY $(BIN)/python -m tests.bench --fresh coil20 mnist cifar10 nmc_study_mnist nmc_study_coil20 \
	  sela_mnist sela_cifar10 sinkhorn explorer deepcluster_study deepcluster_strategies deepcluster_epoch \
	  deepcluster_cifar10 kmeans and_mnist and_cifar10 k_rules --data "$(DATA)"

benchmark: $(VENV)/.ready  ## every method and baseline on four sets (hours, resumable): make benchmark DATA=folder
	@mkdir -p runs/benchmark
	env -u OMP_WAIT_POLICY $(BIN)/papermill nbs/benchmark.ipynb runs/benchmark/benchmark.ipynb --no-progress-bar \
	  --log-output $(if $(DATA),-p data_dir "$(DATA)") $(ARGS)
	$(BIN)/python -m tests.bench benchmark

speedrun: $(VENV)/.ready  ## minutes from random weights to a stated ACC: make speedrun ARGS="--set mnist --data folder"
	$(BIN)/python tools/speedrun.py $(ARGS)

# Without .venv they take the Python at hand, which needs only PyTorch and the core's other packages.
GPU_PYTHON = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
GPU_DATA = $(if $(DATA),--dataset folder --data "$(DATA)")

bench-gpu:  ## measure the CIFAR-10 recipe on a GPU, ten minutes at a time: make bench-gpu DATA=folder
	$(GPU_PYTHON) -m tests.bench.gpu $(GPU_DATA) $(ARGS)

bench-gpu-sela:  ## the same for SeLa: Sinkhorn for ten heads, and nearest neighbours of the CIFAR recipe
	$(GPU_PYTHON) -m tests.bench.sela_gpu $(GPU_DATA) $(ARGS)

bench-gpu-sinkhorn:  ## a pass of Sinkhorn from features on a GPU, by PyTorch and by the kernel of Triton
	$(GPU_PYTHON) -m tests.bench.sinkhorn_gpu $(ARGS)

bench-gpu-and:  ## the same for AND: epochs, discovery and k-means at 50,000, and nearest neighbours by round
	$(GPU_PYTHON) -m tests.bench.and_gpu $(GPU_DATA) $(ARGS)

clean:  ## remove what was built; keeps runs/ and data/
	rm -rf $(VENV) _docs build *.egg-info .pytest_cache .ruff_cache .jupyter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
