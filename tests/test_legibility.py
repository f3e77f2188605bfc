"""A test that fails says so shortly, and one that hangs ends by its name, also where CI is set."""

import os
import subprocess
import sys

import pytest

from tests.repository import ROOT

FAILING = """
import threading
import pytest

LARGE = {"bytes": bytes(2_000_000), "text": "word\\n" * 400_000, "list": [0] * 300_000}

@pytest.mark.parametrize("kind", LARGE)
def test_large(kind):
    assert LARGE[kind] == type(LARGE[kind])()

@pytest.mark.timeout(1)
def test_that_hangs():
    threading.Event().wait()

def test_after_it():
    pass
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return what pytest says of tests that fail, with this suite's conftest.py and settings, where CI is set."""
    folder = tmp_path_factory.mktemp("failing")
    (folder / "test_some.py").write_text(FAILING)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", str(ROOT / "pyproject.toml"), str(folder)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "CI": "true", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def test_a_difference_of_megabytes_is_reported_in_a_few_lines(output: str) -> None:
    assert output.count("FAILED") == 4 and len(output) < 15_000


def test_a_hanging_test_is_ended_by_its_name_and_the_others_run(output: str) -> None:
    assert "4 failed, 1 passed" in output and "test_some.py::test_that_hangs - Failed: Timeout" in output
