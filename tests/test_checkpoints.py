"""Checkpoints are whole or not used: torn, altered and unfinished ones are skipped aloud for the one before."""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.gan.checkpoints import (
    NUM_KEPT,
    Checkpoint,
    checkpoint_dirs,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)


def checkpoint_of(step: int) -> Checkpoint:
    tensors = {"G.weight": torch.full((4, 3), float(step)), "adam_G.0.step": torch.tensor(float(step))}
    return Checkpoint(step=step, tensors=tensors, history=[{"step": step, "d_loss": 0.1 * step}])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with whole checkpoints of the steps 10 and 20."""
    for step in (10, 20):
        save_checkpoint(tmp_path, checkpoint_of(step), {"note": "test"})
    return tmp_path


def latest_step(folder: Path) -> int | None:
    checkpoint = latest_checkpoint(folder)
    return checkpoint.step if checkpoint else None


def test_a_checkpoint_comes_back_as_it_was(folder: Path) -> None:
    loaded = latest_checkpoint(folder)
    assert loaded is not None
    saved = checkpoint_of(20)
    assert loaded.step == 20 and loaded.history == saved.history
    assert loaded.tensors.keys() == saved.tensors.keys()
    assert all(torch.equal(loaded.tensors[name], saved.tensors[name]) for name in saved.tensors)


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None


def test_only_the_newest_are_kept(folder: Path) -> None:
    save_checkpoint(folder, checkpoint_of(30), {})
    assert [path.name for path in checkpoint_dirs(folder)] == ["checkpoint_00000030", "checkpoint_00000020"]
    assert NUM_KEPT == 2


@pytest.mark.parametrize("name", ["state.safetensors", "history.json", "manifest.json"])
def test_a_missing_file_sends_to_the_checkpoint_before(
    folder: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    (checkpoint_dirs(folder)[0] / name).unlink()
    with caplog.at_level(logging.WARNING):
        assert latest_step(folder) == 10
    assert "checkpoint_00000020" in caplog.text and name in caplog.text


@pytest.mark.parametrize("name", ["state.safetensors", "history.json"])
def test_a_flipped_bit_sends_to_the_checkpoint_before(folder: Path, name: str) -> None:
    path = checkpoint_dirs(folder)[0] / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert latest_step(folder) == 10


@pytest.mark.parametrize("name", ["state.safetensors", "history.json", "manifest.json"])
def test_a_truncated_file_sends_to_the_checkpoint_before(folder: Path, name: str) -> None:
    path = checkpoint_dirs(folder)[0] / name
    path.write_bytes(path.read_bytes()[:-3])
    assert latest_step(folder) == 10


def test_a_manifest_of_another_contract_is_refused(folder: Path) -> None:
    path = checkpoint_dirs(folder)[0] / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "contract": "checkpoint/v9"}))
    with pytest.raises(ValueError, match="not of checkpoint/v1"):
        load_checkpoint(path.parent)


def test_a_process_killed_while_writing_leaves_the_checkpoint_before(folder: Path) -> None:
    script = (
        "import os, signal, sys, torch\n"
        "from pathlib import Path\n"
        "import pipeline.data.files as files\n"
        "from pipeline.gan.checkpoints import Checkpoint, save_checkpoint\n"
        "files.sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "save_checkpoint(Path(sys.argv[1]), Checkpoint(step=30, tensors={'a': torch.ones(9)}, history=[]), {})\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert latest_step(folder) == 20
    save_checkpoint(folder, checkpoint_of(30), {})  # what the killed process left is no obstacle
    assert latest_step(folder) == 30


def test_a_full_disk_leaves_the_checkpoint_before(folder: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        big = Checkpoint(step=30, tensors={"a": torch.ones(10_000)}, history=[])
        with pytest.raises(Exception, match=r"(?i)file too large|os error 27"):
            save_checkpoint(folder, big, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert latest_step(folder) == 20
    assert sorted(os.listdir(folder)) == ["checkpoint_00000010", "checkpoint_00000020"]
