# make demo   a virtual environment, the package, and demo.mp4 from the embedded model
# make test   the same, then ruff, mypy and the suite      make test-more   the tests that take long
# make fuzz   a hundred commands with odd places, kills, interrupts and full disks, 300 with damaged files (minutes)
# make test-cpus   the tests with a tolerance as other processors would compute them, and what room their bounds leave
# make test-mutations   mistakes of training, search and generation, each made in a copy: its tests must fail (minutes)
# make docs   write the generated pages and docs/demo.png again (a minute)        make clean   remove what was made here

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# CPU builds of torch: tried first where there is no NVIDIA GPU. Where it does not answer, the plain registry serves $(TORCH).
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
WORKERS ?= 2
PROMPT ?= a large red circle moving right over a black background
DEMO ?= demo.mp4

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-more fuzz test-cpus test-mutations lint docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/evdit generate "$(PROMPT)" -o "$(DEMO)" --overwrite
	@echo "The video: $(abspath $(DEMO))"

# A worker keeps to neighbouring tests (worksteal), so that what a file's tests share is made once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

test: lint
	$(PYTEST) -m "not slow and not fuzz" --durations=10

fuzz: $(VENV)/installed-dev
	$(PYTEST) tests/fuzz --durations=5

test-more: $(VENV)/installed-dev
	$(PYTEST) -m slow --durations=0 --durations-min=1

CPUS := OMP_NUM_THREADS=1 OMP_NUM_THREADS=2 ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 \
	ONEDNN_MAX_CPU_ISA=SSE41 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=COMPATIBLE \
	"ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE"

test-cpus: $(VENV)/installed-dev
	@errors=$$(mktemp -d); failed=0; \
	for cpu in $(CPUS); do \
		echo "$$cpu"; \
		env OMP_NUM_THREADS=1 $$cpu EVDIT_ERRORS="$$errors/$$cpu" $(BIN)/python -m pytest -q -m numerical -n $(WORKERS) || failed=1; \
	done; \
	$(BIN)/python -m tests.closeness "$$errors"/* || failed=1; \
	rm -r "$$errors"; exit $$failed

test-mutations: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutations

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed-dev
	$(BIN)/python docs/build.py
	$(BIN)/python docs/demo.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "evdit needs Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv is missing: on Debian, apt install python3-venv"; rm -rf $(VENV); exit 1; }

# An open range for torch would bring gigabytes of CUDA to a machine without a GPU, so it is pinned first.
$(VENV)/torch-installed: $(VENV)/bin/python
	@if nvidia-smi > /dev/null 2>&1 || [ "$$(uname)" != Linux ]; then $(PIP) install -q "$(TORCH)"; \
	elif $(PYTHON) -c "import urllib.request as web; web.urlopen('$(TORCH_INDEX)/torch/', timeout=5)" 2> /dev/null; then \
		$(PIP) install -q --index-url "$(TORCH_INDEX)" "$(TORCH)"; \
	else echo "$(TORCH_INDEX) does not answer: taking $(TORCH) from the plain registry"; $(PIP) install -q "$(TORCH)"; fi
	@touch $@

$(VENV)/installed: pyproject.toml $(VENV)/torch-installed
	$(PIP) install -q -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml $(VENV)/installed
	$(PIP) install -q -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache "$(DEMO)" "$(basename $(DEMO)).json"
	find vdit_cli tests docs -name __pycache__ -type d -prune -exec rm -rf {} +
