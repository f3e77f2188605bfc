"""Files and folders that are whole or not there, also after an error, a full disk or a killed process."""

import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.data.files import file_sha256, replaced_file, replaced_folder, write_json

ROOT = Path(__file__).parents[1]


@contextmanager
def files_at_most(num_bytes: int) -> Iterator[None]:
    """Let the operating system refuse every write beyond `num_bytes` of a file, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run_and_die(body: str, path: Path) -> None:
    """Run `body` in another process, which kills itself in the middle of the block."""
    imports = "import os, signal, sys\nfrom pathlib import Path\nfrom pipeline.data.files import *"
    code = f"{imports}\npath = Path(sys.argv[1])\n{body}"
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False)
    assert done.returncode == -9


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with replaced_file(path) as partial_path:
        partial_path.write_text("half")
        assert not path.exists() and partial_path.parent == path.parent
        partial_path.write_text("whole")
    assert path.read_text() == "whole"
    assert names(path.parent) == ["file.txt"]


def test_an_error_leaves_the_file_before_it_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("before")
    with pytest.raises(RuntimeError, match="in the middle"), replaced_file(path) as partial_path:
        partial_path.write_text("half")
        raise RuntimeError("in the middle")
    assert path.read_text() == "before"
    assert names(tmp_path) == ["file.txt"]


def test_an_error_leaves_no_file_where_there_was_none(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), replaced_file(tmp_path / "file.txt") as partial_path:
        partial_path.write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_a_full_disk_leaves_the_file_before_it(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("before")
    with pytest.raises(OSError), files_at_most(1000), replaced_file(path) as partial_path:
        partial_path.write_bytes(bytes(100_000))
    assert path.read_text() == "before"
    assert names(tmp_path) == ["file.txt"]


def test_a_killed_process_leaves_the_file_before_it_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("before")
    run_and_die("with replaced_file(path) as p:\n p.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)", path)
    assert path.read_text() == "before"
    with replaced_file(path) as partial_path:
        partial_path.write_text("after")
    assert path.read_text() == "after"
    assert names(tmp_path) == ["file.txt"]


def test_a_folder_is_replaced_whole_with_nothing_of_the_one_before(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "folder"
    (folder / "old").mkdir(parents=True)
    with replaced_folder(folder) as partial_dir:
        assert names(partial_dir) == [] and (folder / "old").is_dir()
        (partial_dir / "sub").mkdir()
        (partial_dir / "sub" / "new.txt").write_text("new")
    assert names(folder) == ["sub"] and (folder / "sub" / "new.txt").read_text() == "new"
    assert names(folder.parent) == ["folder"]


@pytest.mark.parametrize("existed", [True, False])
def test_an_error_leaves_the_folder_as_it_was(existed: bool, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    if existed:
        folder.mkdir()
        (folder / "old.txt").write_text("old")
    with pytest.raises(ValueError, match="bad picture"), replaced_folder(folder) as partial_dir:
        (partial_dir / "new.txt").write_text("half")
        raise ValueError("bad picture")
    assert names(tmp_path) == (["folder"] if existed else [])
    assert not existed or names(folder) == ["old.txt"]


def test_a_killed_process_leaves_the_folder_before_it_and_the_next_one_starts_empty(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old.txt").write_text("old")
    run_and_die(
        "with replaced_folder(path) as p:\n (p / 'half.txt').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)",
        folder,
    )
    assert names(folder) == ["old.txt"]
    with replaced_folder(folder) as partial_dir:
        (partial_dir / "new.txt").write_text("new")
    assert names(folder) == ["new.txt"]
    assert names(tmp_path) == ["folder"]


def test_json_keeps_its_order_and_its_bytes(tmp_path: Path) -> None:
    document = {"b": 1, "a": [0.1, "ä"], "c": {"z": None, "y": True}}
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    for path in paths:
        write_json(path, document)
    assert json.loads(paths[0].read_text()) == document
    assert list(json.loads(paths[0].read_text())) == ["b", "a", "c"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes().endswith(b"}\n")


def test_what_json_cannot_hold_leaves_the_report_before_it(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"loss": 1.0})
    with pytest.raises(TypeError):
        write_json(path, {"loss": 1.0, "path": tmp_path})
    assert json.loads(path.read_text()) == {"loss": 1.0}
    assert names(tmp_path) == ["report.json"]


@pytest.mark.parametrize("num_bytes", [0, 1, 300_001])
def test_the_sha256_is_that_of_the_bytes(num_bytes: int, tmp_path: Path) -> None:
    content = bytes(index % 251 for index in range(num_bytes))
    path = tmp_path / "file.bin"
    path.write_bytes(content)
    assert file_sha256(path) == hashlib.sha256(content).hexdigest()


def test_files_are_readable_as_the_users_mask_has_it(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        write_json(tmp_path / "report.json", {})
    finally:
        os.umask(mask)
    assert (tmp_path / "report.json").stat().st_mode & 0o777 == 0o644
