# Every target sets up what it needs; a fresh machine needs Python 3.11 to 3.14, git and a C compiler.
PYTHON ?= python3
BIN := .venv/bin
UV = "$$(command -v uv || echo $(BIN)/uv)"
IN_VENV = PATH="$(CURDIR)/$(BIN):$$PATH"
PYTEST = $(IN_VENV) $(BIN)/python -m pytest
.PHONY: setup lock demo test test-all check audit ui clean

setup: .venv/installed

# The packages of requirements-dev.txt, every file checked against its hash; the last step then finds all that
# pyproject.toml asks for. UV_TORCH_BACKEND=cpu takes PyTorch's CPU builds, which the lock has no hashes of.
.venv/installed: pyproject.toml requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 15) else "error: this is Python %d.%d and StackGAN needs 3.11 to 3.14: make setup PYTHON=python3.12" % sys.version_info[:2])'
	@$(PYTHON) -m venv .venv
	@command -v uv >/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1' 2>.venv/uv.log \
	  || { echo "error: uv could not be installed (.venv/uv.log): connect to a package index, or install uv yourself" >&2; exit 1; }
ifdef UV_TORCH_BACKEND
	@UV_TORCH_BACKEND=$(UV_TORCH_BACKEND) $(UV) pip install --python $(BIN)/python --no-verify-hashes --constraint requirements-dev.txt --editable '.[dev]' \
	  || { echo "error: the packages could not be installed (uv says why above)" >&2; exit 1; }
else
	@$(UV) pip install --python $(BIN)/python --require-hashes --requirement requirements-dev.txt \
	  || { echo "error: the packages could not be installed (uv says why above)" >&2; exit 1; }
	@$(UV) pip install --python $(BIN)/python --no-index --no-build-isolation --editable '.[dev]' \
	  || { echo "error: requirements-dev.txt does not fit pyproject.toml (uv says why above): make lock" >&2; exit 1; }
endif
	@touch .venv/installed

# Two locks of equal versions, with hashes and for every system: all for development, and what the image installs.
# Versions stay unless pyproject.toml excludes them; make lock UPGRADE=--upgrade takes the newest.
lock:
	$(UV) pip compile --quiet --custom-compile-command 'make lock' $(UPGRADE) --extra dev pyproject.toml --output-file requirements-dev.txt
	cp requirements-dev.txt requirements.txt
	$(UV) pip compile --quiet --custom-compile-command 'make lock' --extra cluster --extra pretrained pyproject.toml --output-file requirements.txt

demo: setup
	$(IN_VENV) dvc repro
	@echo
	@echo "Pictures:  samples/grid_stackgan.png (and samples/grid_stage1.png)"
	@echo "Scores:    reports/evaluate_inception.json"
	@echo "All in one page:  reports/index.html"
	@echo "MLflow UI: make ui, then http://127.0.0.1:5000"

# What a contributor runs: every kind of test, without those that are marked slow.
test: setup
	$(PYTEST) -m "not slow"

test-all: setup
	$(PYTEST)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Known vulnerabilities of the locked versions; a package that cannot be looked up is a failure too.
audit: setup
	$(UV) tool run pip-audit --strict --disable-pip --require-hashes --requirement requirements-dev.txt

ui: setup
	MLFLOW_TRACKING_URI="$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/runs/mlflow.db}" \
	  $(BIN)/mlflow ui --host 127.0.0.1 --port $${PORT:-5000} \
	  --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/runs/mlflow.db}"

clean:
	rm -rf .venv .pytest_cache .ruff_cache *.egg-info
