"""`make setup`: locks that hold what pyproject.toml asks for, and mistakes reported in one line."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.repository import ROOT

LOCKS = {"requirements.txt": ("cluster", "pretrained"), "requirements-dev.txt": ("dev",)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE))


def asked_for(extras: tuple[str, ...]) -> Iterator[Requirement]:
    """List what pyproject.toml asks for, the extras that an extra names included."""
    requirements = [Requirement(line) for line in PROJECT["dependencies"]]
    waiting = list(extras)
    while waiting:
        for line in PROJECT["optional-dependencies"][waiting.pop()]:
            requirement = Requirement(line)
            if requirement.name == PROJECT["name"]:
                waiting += requirement.extras
            else:
                requirements.append(requirement)
    yield from requirements


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_a_version_of_everything_that_is_asked_for(name: str) -> None:
    pinned = pins(name)
    for requirement in asked_for(LOCKS[name]):
        locked = pinned[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(locked, prereleases=True), f"{requirement} and {locked}: make lock"


def test_the_image_has_the_versions_of_development() -> None:
    assert pins("requirements.txt").items() <= pins("requirements-dev.txt").items()


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_hashes_and_names_no_index(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text and "--index-url" not in text
    for block in re.split(r"^(?=[a-z0-9-]+==)", text, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in block, block[:80]


def test_what_is_installed_here_is_what_is_locked() -> None:
    pinned = pins("requirements-dev.txt")
    for requirement in asked_for(LOCKS["requirements-dev.txt"]):
        name = requirement.name.lower().replace("_", "-")
        assert version(name).partition("+")[0] == pinned[name], "make setup"


def make_setup(folder: Path, *arguments: str, **env: str) -> str:
    """Return the last line that `make setup` ends with in a folder with this Makefile; it fails."""
    folder.mkdir(exist_ok=True)
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("pyproject.toml", "requirements-dev.txt"):
        (folder / name).touch()
    done = subprocess.run(
        ["make", "setup", *arguments], cwd=folder, env=os.environ | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert not list(folder.glob(".venv/installed*"))
    return lines[-1]


@pytest.mark.parametrize(("major", "minor"), [(3, 10), (3, 15), (2, 7)])
def test_a_python_that_is_too_old_or_too_new_is_reported(major: int, minor: int, tmp_path: Path) -> None:
    other = tmp_path / "python"
    code = f"import sys; sys.version_info = ({major}, {minor}, 1); exec(sys.argv[1])"
    other.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{code}' \"$2\"\n")
    other.chmod(0o755)
    message = make_setup(tmp_path / "clone", f"PYTHON={other}")
    assert (
        message
        == f"error: this is Python {major}.{minor} and StackGAN needs 3.11 to 3.14: run make setup PYTHON=python3.12"
    )


def test_no_uv_and_no_index_is_reported(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("make", "sh", "touch"):
        (programs / name).symlink_to(str(shutil.which(name)))
    env = {"PATH": str(programs), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    message = make_setup(tmp_path / "clone", f"PYTHON={sys.executable}", **env)
    assert message.startswith(
        "error: uv could not be installed (.venv/uv.log): connect to a package index, or install uv"
    )


def test_a_lock_that_lacks_a_package_is_reported(tmp_path: Path) -> None:
    folder = tmp_path / "clone"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "some"\nversion = "1"\ndependencies = ["lacking>=2"]\noptional-dependencies.dev = []\n'
    )
    with_uv = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    message = make_setup(folder, PATH=with_uv, UV_NO_CONFIG="1")
    fault = "this package does not fit what requirements-dev.txt installed (uv says why above)"
    assert message == f"error: {fault}: run make lock"


def test_windows_users_are_sent_to_wsl() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import os; os.name = 'nt'; import pipeline"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: StackGAN runs on Linux and macOS; on Windows run it in WSL (README.md, Supported systems)"
    ]
