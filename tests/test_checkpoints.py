"""Checkpoints are whole or not used: torn, altered and unfinished ones are skipped aloud for the one before."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pipeline.data.files
from pipeline.gan.checkpoints import Checkpoint, CheckpointWriter, checkpoint_dirs, latest_checkpoint, newest_whole

PARAMS = {"train": {"learning_rate": 2e-4, "transform": {}}, "gan": {"sizes": (64, 256)}}


def checkpoint_of(step: int) -> Checkpoint:
    tensors = {
        "G.weight": torch.arange(48.0).reshape(2, 2, 3, 4).to(memory_format=torch.channels_last) + step,
        "G.half": torch.full((4, 3), float(step), dtype=torch.bfloat16),
        "adam_G.0.step": torch.tensor(float(step)),
        "G.num_batches_tracked": torch.tensor(step),
    }
    return Checkpoint(step=step, tensors=tensors, history=[{"step": step, "d_loss": 0.1 * step}])


def save_all(folder: Path, *steps: int, num_kept: int = 2) -> None:
    with CheckpointWriter(folder, params=PARAMS, num_kept=num_kept) as writer:
        for step in steps:
            writer.save(checkpoint_of(step), {"note": "test"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with whole checkpoints of the steps 10 and 20."""
    save_all(tmp_path, 10, 20)
    return tmp_path


def latest_step(folder: Path) -> int | None:
    checkpoint = latest_checkpoint(folder)
    return checkpoint.step if checkpoint else None


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def in_a_process(script: str, folder: Path) -> subprocess.Popen[str]:
    """Start a script that finds the folder in sys.argv[1]; it talks to a pipe."""
    start = "import os, resource, sys, torch\nfrom pathlib import Path\nfrom pipeline.gan.checkpoints import *\n"
    return subprocess.Popen([sys.executable, "-c", start + script, str(folder)], stderr=subprocess.PIPE, text=True)


def test_a_checkpoint_comes_back_as_it_was(folder: Path) -> None:
    loaded = latest_checkpoint(folder)
    assert loaded is not None
    saved = checkpoint_of(20)
    assert loaded.step == 20 and loaded.history == saved.history
    assert loaded.tensors.keys() == saved.tensors.keys()
    for name, tensor in saved.tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype and torch.equal(loaded.tensors[name], tensor), name


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None and newest_whole(tmp_path) is None


@pytest.mark.parametrize("num_kept", [1, 2, 3])
def test_only_the_newest_are_kept(tmp_path: Path, num_kept: int) -> None:
    save_all(tmp_path, 10, 20, 30, 40, num_kept=num_kept)
    assert names(tmp_path) == [f"checkpoint_000000{step}" for step in (10, 20, 30, 40)][-num_kept:]


def test_a_torn_checkpoint_of_a_later_step_does_not_push_out_a_new_one(folder: Path) -> None:
    (folder / "checkpoint_00000020" / "manifest.json").unlink()
    save_all(folder, 15, num_kept=1)  # resumed from step 10, with another interval
    assert latest_step(folder) == 15


def test_what_a_killed_process_left_is_removed_with_the_next_checkpoint(folder: Path) -> None:
    for name in (".checkpoint_00000025.partial", ".checkpoint_00000020.old"):
        (folder / name).mkdir()
        (folder / name / "state.safetensors").touch()
    save_all(folder, 30)
    assert names(folder) == ["checkpoint_00000020", "checkpoint_00000030"]


def test_the_files_of_a_checkpoint_may_be_read_by_the_same_people(folder: Path) -> None:
    assert len({path.stat().st_mode for path in (folder / "checkpoint_00000020").iterdir()}) == 1


# Damage.


def change_bytes(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(checkpoint_dir: Path) -> None:
        path = checkpoint_dir / name
        path.write_bytes(change(path.read_bytes()))

    return damage


def change_manifest(**values: object) -> Callable[[Path], None]:
    return change_bytes("manifest.json", lambda text: json.dumps({**json.loads(text), **values}).encode())


def change_hash(text: bytes) -> bytes:
    manifest: dict[str, Any] = json.loads(text)
    manifest["sha256"]["state.safetensors"] = "0" * 64
    return json.dumps(manifest).encode()


FILES = ("state.safetensors", "history.json", "manifest.json")
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    **{f"truncated {name}": (change_bytes(name, lambda content: content[:-3]), name) for name in FILES},
    **{f"no {name}": (lambda checkpoint_dir, name=name: (checkpoint_dir / name).unlink(), name) for name in FILES},
    **{
        f"flipped bit {place} of {name}": (change_bytes(name, lambda text, place=place: flip_bit(text, place)), name)
        for name in FILES[:2]
        for place in (0.0, 0.5, 1.0)
    },
    "empty manifest": (change_bytes("manifest.json", lambda text: b""), "torn"),
    "manifest that is no mapping": (change_bytes("manifest.json", lambda text: b"[]"), "torn"),
    "wrong hash": (change_bytes("manifest.json", change_hash), "state.safetensors is missing or altered"),
    "no hashes": (change_manifest(sha256={}), "not of checkpoint/v2"),
    "older contract": (
        change_manifest(contract="checkpoint/v1"),
        "of checkpoint/v1, and this code reads checkpoint/v2",
    ),
    "other step": (change_manifest(step=30), "of step 30"),
}


def flip_bit(content: bytes, place: float) -> bytes:
    changed = bytearray(content)
    changed[int(place * (len(content) - 1))] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_skipped_aloud_for_the_one_before(
    folder: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    change, reason = DAMAGE[damage]
    change(folder / "checkpoint_00000020")
    with caplog.at_level(logging.WARNING):
        assert latest_step(folder) == 10
    (record,) = caplog.records
    message = record.getMessage()
    assert "checkpoint_00000020" in message and reason in message and "\n" not in message
    assert newest_whole(folder) == folder / "checkpoint_00000010"


def test_a_folder_of_damaged_checkpoints_has_none(folder: Path) -> None:
    for checkpoint_dir in checkpoint_dirs(folder):
        (checkpoint_dir / "history.json").unlink()
    assert latest_checkpoint(folder) is None


# Params.


def test_the_same_params_are_no_obstacle(folder: Path) -> None:
    loaded = latest_checkpoint(folder, PARAMS)
    assert loaded is not None and loaded.step == 20


@pytest.mark.parametrize(
    ("params", "change"),
    [
        ({**PARAMS, "gan": {"sizes": (64, 128)}}, "gan.sizes [64, 256] -> [64, 128]"),
        ({**PARAMS, "train": {"learning_rate": 1e-4}}, "train.learning_rate 0.0002 -> 0.0001"),
        (
            {**PARAMS, "train": {"learning_rate": 2e-4, "transform": {"flip": {"p": 1}}}},
            "train.transform.flip.p absent -> 1",
        ),
        ({"gan": PARAMS["gan"]}, "train.learning_rate 0.0002 -> absent"),
    ],
)
def test_other_params_are_refused_by_their_keys(folder: Path, params: dict[str, object], change: str) -> None:
    with pytest.raises(ValueError) as caught:
        latest_checkpoint(folder, params)
    message = str(caught.value)
    assert str(folder) in message and f" params: {change}; set them back" in message
    assert "storage folder" in message and "\n" not in message


def test_a_damaged_checkpoint_of_other_params_is_skipped_not_refused(folder: Path) -> None:
    with CheckpointWriter(folder, params={"train": {}}) as writer:
        writer.save(checkpoint_of(30), {})
    (folder / "checkpoint_00000030" / "history.json").unlink()
    loaded = latest_checkpoint(folder, PARAMS)
    assert loaded is not None and loaded.step == 20


# Writing beside the training.


class Gate:
    """Stands for a slow disk: syncing waits until the gate is opened, or for `patience` seconds."""

    def __init__(self, patience: float):
        self.opened = threading.Event()
        self.entered = threading.Event()
        self._patience = patience

    def sync(self, path: Path) -> None:
        self.entered.set()
        self.opened.wait(self._patience)


def test_saving_returns_before_the_disk_is_done_and_keeps_what_was_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(patience=60)
    monkeypatch.setattr(pipeline.data.files, "sync", gate.sync)
    checkpoint = checkpoint_of(10)
    with CheckpointWriter(tmp_path, params=PARAMS) as writer:
        writer.save(checkpoint, {})
        assert checkpoint_dirs(tmp_path) == []  # the disk is not done, and this thread goes on
        for tensor in checkpoint.tensors.values():
            tensor.zero_()
        checkpoint.history.append({"step": 11})
        gate.opened.set()
    loaded = latest_checkpoint(tmp_path)
    assert loaded is not None and loaded.history == checkpoint_of(10).history
    for name, tensor in checkpoint_of(10).tensors.items():
        assert torch.equal(loaded.tensors[name], tensor), name


def test_a_second_save_copies_nothing_before_the_first_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watched(dict[str, Tensor]):
        def items(self) -> Any:
            gate.opened.set()  # were the second state copied now, the first would be found unwritten
            seen.append(names(tmp_path))
            return super().items()

    seen: list[list[str]] = []
    gate = Gate(patience=0.2)
    monkeypatch.setattr(pipeline.data.files, "sync", gate.sync)
    with CheckpointWriter(tmp_path, params={}) as writer:
        writer.save(checkpoint_of(10), {})
        assert gate.entered.wait(60)
        writer.save(Checkpoint(step=20, tensors=Watched(checkpoint_of(20).tensors), history=[]), {})
    assert seen == [["checkpoint_00000010"]]


def test_an_exception_under_way_is_not_hidden_and_what_was_handed_over_is_written(tmp_path: Path) -> None:
    unwritable = tmp_path / "file"
    unwritable.touch()
    for folder, step in ((tmp_path / "good", 10), (unwritable, None)):
        with pytest.raises(FloatingPointError), CheckpointWriter(folder, params={}) as writer:
            writer.save(checkpoint_of(10), {})
            raise FloatingPointError
        assert latest_step(folder) == step


def test_whatever_goes_wrong_in_the_thread_is_raised_at_the_end(tmp_path: Path) -> None:
    not_writable = {"a": torch.ones(2, dtype=torch.complex128)}
    writer = CheckpointWriter(tmp_path, params={})
    writer.save(Checkpoint(step=10, tensors=not_writable, history=[]), {})
    with pytest.raises(Exception, match="complex128"):
        writer.wait()


# Full disks and killed processes.

FULL_DISK = """
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
with CheckpointWriter(Path(sys.argv[1]), params={}) as writer:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    writer.save(Checkpoint(step=30, tensors={'a': torch.ones(10_000)}, history=[]), {})
"""
ROOM_AGAIN = """
    writer.save(Checkpoint(step=40, tensors={'a': torch.ones(10_000)}, history=[]), {})
    try:
        writer.wait()
    except OSError:
        pass
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    writer.save(Checkpoint(step=50, tensors={'a': torch.ones(10_000)}, history=[]), {})
"""


def test_a_full_disk_at_the_end_is_an_error_and_leaves_the_checkpoint_before(folder: Path) -> None:
    process = in_a_process(FULL_DISK, folder)
    _, log = process.communicate()
    assert process.returncode == 1 and "\nOSError: " in log and "File too large" in log.splitlines()[-1]
    assert names(folder) == ["checkpoint_00000010", "checkpoint_00000020"]
    assert latest_step(folder) == 20


def test_a_full_disk_on_the_way_is_a_warning_and_the_next_checkpoint_is_tried(folder: Path) -> None:
    process = in_a_process(FULL_DISK + ROOM_AGAIN, folder)
    _, log = process.communicate()
    assert process.returncode == 0
    whole = folder / "checkpoint_00000020"
    for line, step in zip(log.splitlines(), (30, 40), strict=True):
        assert line.startswith(f"could not write the checkpoint of step {step}: ") and "File too large" in line
        assert line.endswith(f"; the newest whole one is {whole}; training goes on")
    assert names(folder) == ["checkpoint_00000020", "checkpoint_00000050"]
    assert latest_step(folder) == 50


def test_a_process_killed_while_writing_leaves_the_checkpoint_before(folder: Path) -> None:
    process = in_a_process(
        "writer = CheckpointWriter(Path(sys.argv[1]), params={}, num_kept=1000)\n"
        "state = {str(number): torch.ones(1_000_000) for number in range(8)}\n"
        "for step in range(21, 1000):\n"
        "    writer.save(Checkpoint(step=step, tensors=state, history=[]), {})\n",
        folder,
    )
    kill_while_writing(process, folder)
    (partial_dir,) = folder.glob(".checkpoint_*")
    step = int(partial_dir.name.removeprefix(".checkpoint_").removesuffix(".partial"))
    assert latest_step(folder) == step - 1 >= 20
    save_all(folder, step, num_kept=1)  # what the killed process left is no obstacle
    assert latest_step(folder) == step
    assert names(folder) == [f"checkpoint_{step:08d}"]


def kill_while_writing(process: subprocess.Popen[str], folder: Path) -> None:
    """Stop the process, look whether it is amid a write, and kill it there; else let it go on and look again."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if not list(folder.glob(".checkpoint_*.partial/*")):
            continue
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        if list(folder.glob(".checkpoint_*.partial/*")):
            process.kill()
            process.communicate()
            assert process.returncode == -signal.SIGKILL
            return
        process.send_signal(signal.SIGCONT)
    process.kill()
    raise AssertionError(f"the process was never seen writing: {process.communicate()[1]}")


def test_one_copy_of_the_state_is_in_memory_while_it_is_written_and_none_after(tmp_path: Path) -> None:
    process = in_a_process(
        "def memory(key):\n"
        "    (line,) = [line for line in open('/proc/self/status') if line.startswith(key)]\n"
        "    return int(line.split()[1]) * 1024\n"
        "state = {name: torch.ones(10_000_000) for name in 'ab'}  # malloc gives such large blocks back at once\n"
        "size, before, after = 80_000_000, memory('VmRSS'), []\n"
        "hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "writer = CheckpointWriter(Path(sys.argv[1]), params={})\n"
        "for step, limit in enumerate((hard, 4096, hard, 4096)):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))\n"
        "    writer.save(Checkpoint(step=step, tensors=state, history=[]), {})\n"
        "    try:\n"
        "        writer.wait()\n"
        "    except OSError:\n"
        "        pass\n"
        "    after.append(memory('VmRSS') - before)\n"
        "print((memory('VmHWM') - before) / size, max(after) / size, file=sys.stderr)\n",
        tmp_path,
    )
    _, log = process.communicate()
    assert process.returncode == 0, log
    copies_while, copies_after = map(float, log.splitlines()[-1].split())
    assert 0.9 < copies_while < 1.3 and copies_after < 0.3
