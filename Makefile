# make setup: .venv with everything; make caption, make test and make lint stand on it.
PYTHON ?= python3
# Together, in one command: torchvision must be built for the torch that is there.
TORCH ?= torch==2.14.1 torchvision==0.29.1
BIN := .venv/bin
STAMP := .venv/.flamvid-installed

.PHONY: setup caption test lint kernels-check train-demo

setup: $(STAMP)

KERNELS := $(wildcard kernels/CMakeLists.txt kernels/*.* kernels/*/*.*)
# The CUDA kernels take minutes to compile: only for a GPU that is here.
export FLAMVID_BUILD_CUDA ?= $(if $(wildcard /dev/nvidia0),auto,0)

$(STAMP): pyproject.toml setup.py CMakeLists.txt $(KERNELS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

caption: setup
	$(BIN)/flamvid caption examples/cat.mp4

# A process for each core, up to four, with a thread each.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Train on generated clips and ask about what was held out: five minutes on two fast cores.
train-demo: setup
	$(BIN)/python tools/train_demo.py

kernels-check: setup
	tools/kernels_check.sh $(BIN)/python
