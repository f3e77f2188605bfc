# Every target sets up what it needs; a fresh machine needs Python 3.11 or newer, git and a C compiler.
PYTHON ?= python3
BIN := .venv/bin
.PHONY: setup demo test check ui clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch .venv/installed

demo: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro
	@echo
	@echo "Pictures:  samples/grid_stackgan.png (and samples/grid_stage1.png)"
	@echo "Scores:    reports/evaluate_inception.json"
	@echo "All in one page:  reports/index.html"
	@echo "MLflow UI: make ui, then http://127.0.0.1:5000"

test: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

ui: setup
	MLFLOW_TRACKING_URI="$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/runs/mlflow.db}" \
	  $(BIN)/mlflow ui --host 127.0.0.1 --port $${PORT:-5000} \
	  --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/runs/mlflow.db}"

clean:
	rm -rf .venv .pytest_cache .ruff_cache *.egg-info
