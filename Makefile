# Two commands for everyone: `make demo` and `make test`. Each does its own set-up, once.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test test-fast test-cluster check clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/python -m trainers reviews.yaml --run runs/reviews --resume
	$(BIN)/python -m serving run runs/reviews/bundle \
	  --ask "A warm, funny and beautifully acted film." \
	  --ask "Two hours of my life that I will never get back." \
	  --ask "The plot is thin, but the cast makes it a joy to watch."

# Two files at a time: half of the time is waiting for processes to start.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(READY)
	$(PYTEST)

test-fast: $(READY)
	$(PYTEST) -m "not slow"

# `up` to `down` on hosts made of namespaces, and on EC2 as moto has it; needs root and `ip netns`,
# skips elsewhere.
test-cluster: $(READY)
	$(BIN)/python -m pytest -x -v --durations=0 tests/e2e/hosts/onprem.py tests/e2e/hosts/ec2.py

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first and exactly: a looser pin pulls gigabytes of CUDA on a machine without a GPU.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Bertha needs Python 3.11 or newer; set PYTHON="'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $(READY)

clean:
	rm -rf runs .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
