PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LOG := $(VENV)/install.log
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

BENCHMARKS := $(filter-out report,$(basename $(notdir $(wildcard benchmarks/[a-z]*.py))))

.DEFAULT_GOAL := help
.PHONY: help gpu train test nightly images check bench docs proto sbom format clean

help:
	@echo "make train   train the tiny model with CEPO: embedded Redis, four services, a few minutes on two cores"
	@echo "make gpu     install for NVIDIA GPUs instead: driver 580 or newer (CUDA 13), Ampere or newer; then .venv/bin/cepo"
	@echo "make test    the CPU test suite; ARGS=\"-k name\" for a part of it"
	@echo "make nightly the long tests that 'make test' leaves out; ARGS as for test"
	@echo "make images  the pip steps of the container images, and a run in namespaces like containers; needs root, no Docker"
	@echo "make check   format, lint, types, import rules, generated code, dependencies"
	@echo "make docs    the reference pages of docs/ from the code"
	@echo "make bench   every benchmark, to benchmarks/results and docs/benchmarks.md; ARGS=--quick for about a minute each"

define VENV_3_11
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "Python 3.11 is needed; set PYTHON=python3.11"; exit 2; }
	@echo "installing into $(VENV) (about $(1) GB, a few minutes; what pip says is in $(LOG))"
	@$(PYTHON) -m venv --clear $(VENV)
	@if [ -t 1 ]; then \
		while sleep 1; do printf '\r%s of about $(1)000 MB ' "$$(du -sm $(VENV) | cut -f 1)"; done & ticker=$$!; \
		trap 'kill $$ticker; echo' EXIT; trap 'exit 130' INT TERM; \
	fi; \
	{ $(2) && $(PIP) --no-deps --no-build-isolation --editable .; } >$(LOG) 2>&1 \
		|| { echo >&2; tail -n 5 $(LOG) >&2; echo "the installation failed; see $(LOG)" >&2; exit 1; }
	@echo "installed; to type cepo instead of $(BIN)/cepo: source $(VENV)/bin/activate"
endef

$(INSTALLED): pyproject.toml deploy/requirements/cpu.txt
	$(call VENV_3_11,4,$(PIP) torch==2.13.0 && $(PIP) --no-deps --requirement deploy/requirements/cpu.txt)
	@touch $@

gpu:
	$(call VENV_3_11,15,$(PIP) --no-deps --requirement deploy/requirements/gpu.txt)
	@$(BIN)/python -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "PyTorch finds no GPU: is the driver 580 or newer?")'

train: $(INSTALLED)
	@$(BIN)/cepo train deploy/runs/tiny_cepo.toml $(ARGS)

test: $(INSTALLED)
ifdef ARGS
	@$(BIN)/python -m pytest $(ARGS)
else
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/pipeline
	@$(BIN)/python -m pytest tests/pipeline
endif

nightly: $(INSTALLED)
	@$(BIN)/python -m pytest -m nightly $(ARGS)

images: $(INSTALLED)
	@$(BIN)/python -m pytest -m nightly tests/images $(ARGS)

check: $(INSTALLED)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python proto/generate.py --check
	@$(BIN)/python deploy/requirements/audit.py --check

bench: $(INSTALLED)
	@for name in $(BENCHMARKS); do echo "$$name"; $(BIN)/python -m benchmarks.$$name $(ARGS) || exit 1; done
	@$(BIN)/python -m benchmarks.report

docs: $(INSTALLED)
	@$(BIN)/python -m cepo.run.reference docs

proto: $(INSTALLED)
	@$(BIN)/python proto/generate.py

sbom: $(INSTALLED)
	@$(BIN)/python deploy/requirements/audit.py

format: $(INSTALLED)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) benchmarks/.venv-trl runs .mypy_cache .ruff_cache .pytest_cache *.egg-info
