# Every target but lock and clean runs `make setup` first, which needs Python 3.11 to 3.14 with venv, git and a C compiler.
PYTHON ?= python3
BIN := .venv/bin
UV = "$$(command -v uv || echo $(BIN)/uv)"
IN_VENV = PATH="$(CURDIR)/$(BIN):$$PATH"
PYTEST = $(IN_VENV) $(BIN)/python -m pytest
# Many tests wait for processes to start, so three workers keep two cores busy.
PARALLEL = --numprocesses 3 --dist loadfile --no-loadscope-reorder
# The build of PyTorch: empty for CUDA, cpu, or another of uv's backends. The name of this file records the choice.
UV_TORCH_BACKEND ?= $(patsubst .venv/installed-%,%,$(wildcard .venv/installed-*))
INSTALLED = .venv/installed$(addprefix -,$(UV_TORCH_BACKEND))
FAILED = { echo "error: the packages could not be installed (uv says why above)" >&2; exit 1; }
.PHONY: setup lock demo test test-all check audit ui clean

setup: $(INSTALLED)

# The packages of requirements-dev.txt, every file checked against its hash. The last step uses no index, so it fails
# if the lock lacks a dependency of pyproject.toml. The lock has no hashes of PyTorch's other builds.
# Bytecode is compiled here, since otherwise the first start of each command compiles what it imports, and every start
# does where PYTHONDONTWRITEBYTECODE is set.
$(INSTALLED): pyproject.toml requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 15) else "error: this is Python %d.%d and StackGAN needs 3.11 to 3.14: run make setup PYTHON=python3.12" % sys.version_info[:2])'
	@$(PYTHON) -m venv --clear .venv
	@command -v uv >/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1' 2>.venv/uv.log \
	  || { echo "error: uv could not be installed (.venv/uv.log): connect to a package index, or install uv yourself" >&2; exit 1; }
ifneq ($(UV_TORCH_BACKEND),)
	@UV_TORCH_BACKEND=$(UV_TORCH_BACKEND) $(UV) pip install --python $(BIN)/python --compile-bytecode --no-verify-hashes \
	  --constraint requirements-dev.txt --editable '.[dev]' || $(FAILED)
else
	@$(UV) pip install --python $(BIN)/python --compile-bytecode --require-hashes --requirement requirements-dev.txt || $(FAILED)
	@$(UV) pip install --python $(BIN)/python --no-index --no-build-isolation --editable '.[dev]' \
	  || { echo "error: this package does not fit what requirements-dev.txt installed (uv says why above): run make lock" >&2; exit 1; }
endif
	@touch $(INSTALLED)

# Two locks for every system and Python version, with the hash of every file: all for development, and what the image
# installs. The second starts from the versions of the first. Versions stay unless pyproject.toml excludes them;
# make lock UPGRADE=--upgrade takes the newest.
COMPILE = env -u UV_TORCH_BACKEND $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --custom-compile-command 'make lock' pyproject.toml
lock:
	$(COMPILE) $(UPGRADE) --extra dev --output-file requirements-dev.txt
	cp requirements-dev.txt requirements.txt.new
	$(COMPILE) --extra cluster --extra pretrained --output-file requirements.txt.new
	mv requirements.txt.new requirements.txt

demo: setup
	$(IN_VENV) dvc repro
	@echo
	@echo "Pictures:  samples/grid_stackgan.png (and samples/grid_stage1.png)"
	@echo "Scores:    reports/evaluate_inception.json"
	@echo "All in one page:  reports/index.html"
	@echo "MLflow UI: make ui, then http://127.0.0.1:5000"

# What a contributor runs: every kind of test, without those that are marked slow.
test: setup
	$(PYTEST) $(PARALLEL) -m "not slow"

# Everything; what measures times runs alone.
test-all: setup
	$(PYTEST) $(PARALLEL) -m "not load"
	$(PYTEST) -m load

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Known vulnerabilities of the locked versions; a package that cannot be looked up is a failure too.
audit: setup
	$(UV) tool run pip-audit==2.10.1 --strict --disable-pip --require-hashes --requirement requirements-dev.txt

ui: setup
	MLFLOW_TRACKING_URI="$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/runs/mlflow.db}" \
	  $(BIN)/mlflow ui --host 127.0.0.1 --port $${PORT:-5000} \
	  --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/runs/mlflow.db}"

clean:
	rm -rf .venv .pytest_cache .ruff_cache *.egg-info
