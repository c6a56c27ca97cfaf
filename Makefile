# make setup: .venv with everything; make caption, make test and make lint stand on it.
PYTHON ?= python3
# Together, in one command: torchvision must be built for the torch that is there.
TORCH ?= torch==2.14.1 torchvision==0.29.1
BIN := .venv/bin
STAMP := .venv/.flamvid-installed

.PHONY: setup caption test lint

setup: $(STAMP)

KERNELS := $(wildcard kernels/CMakeLists.txt kernels/*.cpp kernels/*.h kernels/*/*.cpp kernels/*/*.h)

$(STAMP): pyproject.toml setup.py CMakeLists.txt $(KERNELS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet 'setuptools>=77' 'cmake>=3.28' ninja
	# Without isolation, so that the kernels are built for this torch; PATH, to find this cmake.
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation \
		--editable '.[dev]'
	touch $@

caption: setup
	$(BIN)/flamvid caption examples/cat.mp4

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
