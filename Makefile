# Two commands for everyone: `make demo` and `make test`. Each does its own set-up, once.
PYTHON ?= python3
BIN := .venv/bin
PIP := .venv/torch
DEMO := .venv/demo
READY := .venv/ready

.PHONY: demo test test-fast test-cluster soak check check-gpu proto clean
.DELETE_ON_ERROR:

demo: $(DEMO)
	$(BIN)/bertha train reviews.yaml --run runs/reviews --resume
	$(BIN)/bertha serve runs/reviews/bundle \
	  --ask "A warm, funny and beautifully acted film." \
	  --ask "Two hours of my life that I will never get back." \
	  --ask "The plot is thin, but the cast makes it a joy to watch."

# Two files at a time: half of the time is waiting for processes to start.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(READY)
	$(PYTEST) --durations=40

test-fast: $(READY)
	$(PYTEST) -m "not (ray or browser or multiprocess or slow)"

# `up` to `down` on hosts made of namespaces, and on EC2 as moto has it; needs root and `ip netns`,
# skips elsewhere.
test-cluster: $(READY)
	$(BIN)/python -m pytest -x -v --durations=0 tests/e2e/hosts/onprem.py tests/e2e/hosts/ec2.py

# Training, a search and an endpoint on such hosts for an hour, while 100 things are killed.
SOAK := --minutes 60 --kills 100 --seed 0
soak: $(READY)
	PYTHONPATH=. $(BIN)/python benchmarks/soak.py $(SOAK)

check-gpu: $(READY)
	PYTHONPATH=. $(BIN)/python benchmarks/gpu.py

# After a change of the messages that gRPC speaks.
PROTO := serving/protocols/oip_grpc/inference
proto: $(READY)
	$(BIN)/python -m grpc_tools.protoc -I $(dir $(PROTO)) --descriptor_set_out=$(PROTO).binpb \
	  $(notdir $(PROTO)).proto

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/*.Dockerfile
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir .venv/site

# torch first and exactly: a looser pin pulls gigabytes of CUDA on a machine without a GPU.
$(PIP):
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Bertha needs Python 3.11 or newer; set PYTHON="'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	touch $(PIP)

# What the demo needs; what developers need holds it, too.
$(DEMO): pyproject.toml | $(PIP)
	test -e $(READY) || $(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[demo]"
	touch $(DEMO)

$(READY): pyproject.toml | $(PIP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $(READY)

clean:
	rm -rf runs .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
