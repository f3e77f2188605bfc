"""Checkpoints to resume from: safetensors and a JSON manifest with the sha256 of each file, written last.

A checkpoint is a folder `checkpoint_<step>`. It is written under another name, synced, and renamed, so a process killed
at any moment leaves the one before it whole. One that is torn or altered is skipped, said aloud, and never loaded.
"""

import json
import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from pipeline.data.files import file_sha256, replaced_folder
from pipeline.storage import patiently

CONTRACT = "checkpoint/v2"
HISTORY, STATE = FILES = ("history.json", "state.safetensors")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A whole checkpoint: after `step` steps, every tensor by its name, and the rows of the training's history."""

    step: int
    tensors: dict[str, Tensor]
    history: list[dict[str, float]]


class CheckpointWriter:
    """Writes the checkpoints of a training while it goes on: a step waits for a copy of the state, no longer.

    As a context manager it waits at the end; an exception under way goes on as it is.
    """

    def __init__(
        self,
        folder: Path,
        *,
        params: Mapping[str, object],
        num_kept: int = 2,
        publish: Callable[[Path], None] | None = None,
    ):
        """Write to `folder`.

        Args:
            folder: of one training (one stage and fingerprint); nobody else writes to it.
            params: JSON values that a checkpoint may only be resumed with (see `latest_checkpoint`).
            num_kept: how many of the newest checkpoints stay.
            publish: called with the folder of each whole checkpoint, to copy it elsewhere (see pipeline.gan.mirror);
                an OSError of it is said in a warning, and for the last checkpoint it is tried again for a while.
        """
        assert num_kept >= 1
        self._folder = folder
        self._params = params
        self._num_kept = num_kept
        self._publish = publish
        self._unpublished: Path | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, checkpoint: Checkpoint, notes: Mapping[str, object]) -> None:
        """Copy a checkpoint and return while it is written to <folder>/checkpoint_<step>/.

        One that is still being written is waited for first, so there is one copy at a time. A disk that is full or not
        writable is no reason to stop: it is said in a warning, the checkpoints before stay, and the next one is tried.

        Args:
            checkpoint: its tensors may change as soon as this returns.
            notes: JSON values that a person may want to know (code version, fingerprint).
        """
        self._join()
        self._error = None
        about = {"contract": CONTRACT, "step": checkpoint.step, "params": dict(self._params), "notes": dict(notes)}
        texts = json.dumps(about), json.dumps(checkpoint.history)  # now: the history grows while the thread writes
        state = {name: _copy(tensor) for name, tensor in checkpoint.tensors.items()}
        self._thread = threading.Thread(target=self._write, args=(state, *texts), name=f"checkpoint {checkpoint.step}")
        self._thread.start()

    def wait(self) -> None:
        """Return when what was handed over is on the disk, and published.

        Raises:
            OSError: the last checkpoint could not be written, or not be published (see `patiently`).
        """
        self._join()
        if self._error is not None:
            raise self._error
        if (target := self._unpublished) is not None:
            patiently(partial(self._publish_now, target), f"copy {target.name} to the storage")

    def _publish_now(self, target: Path) -> None:
        if self._publish is not None:
            self._unpublished = target
            self._publish(target)
            self._unpublished = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.wait()
        else:
            self._join()  # what the thread could not write has been said; `error` matters more

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, state: dict[str, Tensor], about_text: str, history_text: str) -> None:
        """Run in the thread: write one checkpoint, then remove what is no longer needed."""
        about = json.loads(about_text)
        try:
            target = _write_files(self._folder, state, about, history_text)
            _prune(target, self._num_kept)
            try:
                self._publish_now(target)
            except OSError as error:
                logger.warning("could not copy %s to the storage: %s; training goes on", target.name, error)
        except Exception as error:  # whatever it is: raised in the thread, nobody would hear of it
            self._error = error
            newest = newest_whole(self._folder)
            logger.warning(
                "could not write the checkpoint of step %d: %s; %s; training goes on",
                about["step"], error, f"the newest whole one is {newest}" if newest else "there is no whole one yet",
            )  # fmt: skip
        finally:
            state.clear()  # the error that is kept would keep it


def _copy(tensor: Tensor) -> Tensor:
    """Copy to contiguous memory of the CPU, at once: .cpu().contiguous() copies a channels_last tensor twice."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor.detach())


def _write_files(folder: Path, state: dict[str, Tensor], about: Mapping[str, Any], history_text: str) -> Path:
    target = _checkpoint_path(folder, about["step"])
    with replaced_folder(target) as partial_dir:
        history_path, state_path = partial_dir / HISTORY, partial_dir / STATE
        history_path.write_text(history_text)
        try:
            save_file(state, state_path)  # straight from the tensors to the disk, without a copy in memory
        except SafetensorError as error:
            raise OSError(str(error.with_traceback(None))) from None  # the traceback would keep the state in memory
        shutil.copymode(history_path, state_path)  # safetensors lets nobody else read it
        sha256 = {path.name: file_sha256(path) for path in (history_path, state_path)}
        manifest = json.dumps({**about, "sha256": sha256}, indent=2, sort_keys=True)
        (partial_dir / "manifest.json").write_text(manifest)
    return target


def _prune(newest: Path, num_kept: int) -> None:
    """Remove all but the newest checkpoints, and what killed processes left half-written.

    Those of later steps than `newest` were skipped when the training was resumed, so they do not count.
    """
    past = [path for path in checkpoint_dirs(newest.parent) if path.name <= newest.name]
    for path in (*past[num_kept:], *newest.parent.glob(".checkpoint_*")):
        try:
            shutil.rmtree(path)
        except OSError as error:
            logger.warning("could not remove the old checkpoint %s: %s", path, error)


def _checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"checkpoint_{step:08d}"


def checkpoint_dirs(folder: Path) -> list[Path]:
    """List the checkpoints of a training, newest first, whole or not."""
    return sorted(folder.glob("checkpoint_*"), reverse=True)


def newest_whole(folder: Path) -> Path | None:
    """Return the newest checkpoint whose files are what its manifest says, or None; those skipped are said aloud."""
    return next(filter(is_whole, checkpoint_dirs(folder)), None)


def is_whole(checkpoint_dir: Path) -> bool:
    """Return whether a checkpoint's files are what its manifest says; what is wrong with them is said aloud."""
    try:
        for name, sha256 in _read_manifest(checkpoint_dir)["sha256"].items():
            path = checkpoint_dir / name
            if not path.is_file() or file_sha256(path) != sha256:
                raise ValueError(f"{name} is missing or altered")
    except (ValueError, OSError) as error:
        logger.warning("skipping the checkpoint %s: %s; using the one before it", checkpoint_dir, error)
        return False
    return True


def latest_checkpoint(folder: Path, params: Mapping[str, object] | None = None) -> Checkpoint | None:
    """Load the newest whole checkpoint, or None where there is none.

    Args:
        folder: of one training.
        params: what the training goes on with, to be those that the checkpoint was trained with; None: not compared.

    Raises:
        ValueError: the checkpoint was trained with other params.
    """
    checkpoint_dir = newest_whole(folder)
    if checkpoint_dir is None:
        return None
    manifest = _read_manifest(checkpoint_dir)
    if params is not None:
        _require_same(folder, manifest["params"], json.loads(json.dumps(dict(params))))
    return Checkpoint(
        step=manifest["step"],
        tensors=load((checkpoint_dir / STATE).read_bytes()),
        history=json.loads((checkpoint_dir / HISTORY).read_text()),
    )


def _read_manifest(checkpoint_dir: Path) -> dict[str, Any]:
    """Read a manifest; ValueError if it is missing, torn, of another contract or of another step."""
    path = checkpoint_dir / "manifest.json"
    if not path.is_file():
        raise ValueError("it has no manifest.json")
    try:
        manifest = json.loads(path.read_text())
        contract, step = manifest["contract"], int(manifest["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"its manifest.json is torn ({error!r})") from None
    if contract != CONTRACT:
        raise ValueError(f"its manifest.json is of {contract}, and this code reads {CONTRACT}")
    if set(manifest.get("sha256", ())) != set(FILES) or "params" not in manifest:
        raise ValueError(f"its manifest.json is not of {CONTRACT}")
    if checkpoint_dir != _checkpoint_path(checkpoint_dir.parent, step):
        raise ValueError(f"its manifest.json is of step {step}")
    return manifest


def _require_same(folder: Path, before: Mapping[str, object], now: Mapping[str, object]) -> None:
    old, new = _by_dotted_key(before), _by_dotted_key(now)
    changes = [
        f"{key} {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in sorted(old.keys() | new.keys())
        if key not in old or key not in new or old[key] != new[key]
    ]
    if changes:
        raise ValueError(
            f"{folder}: its checkpoints were trained with other params: {', '.join(changes)}; set them back, or train "
            "in another storage folder (RUN_STORAGE)"
        )


def _by_dotted_key(params: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    values: dict[str, object] = {}
    for key, value in params.items():
        values |= _by_dotted_key(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return values
