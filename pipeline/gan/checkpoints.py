"""Checkpoints to resume from: safetensors and a JSON manifest with the sha256 of each file, written last.

A checkpoint is a folder `checkpoint_<step>`. It is written under another name, synced, and renamed, so a process killed
at any moment leaves the one before it whole. One that is torn or altered is skipped, said aloud, and never loaded.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from pipeline.data.files import file_sha256, replaced_folder

CONTRACT = "checkpoint/v1"
NUM_KEPT = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A whole checkpoint: after `step` steps, every tensor by its name, and the rows of the training's history."""

    step: int
    tensors: dict[str, Tensor]
    history: list[dict[str, float]]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, notes: Mapping[str, object]) -> Path:
    """Write <folder>/checkpoint_<step>/ and remove all but the newest NUM_KEPT.

    Args:
        folder: of one training (one stage and fingerprint).
        checkpoint: tensors are copied to the CPU.
        notes: JSON values that a person may want to know (code version, params, fingerprint).

    Raises:
        OSError: the disk is full or not writable; the checkpoints before this one stay.
    """
    target = folder / f"checkpoint_{checkpoint.step:08d}"
    with replaced_folder(target) as partial_dir:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
        (partial_dir / "state.safetensors").write_bytes(save(state))
        (partial_dir / "history.json").write_text(json.dumps(checkpoint.history))
        sha256 = {path.name: file_sha256(path) for path in sorted(partial_dir.iterdir())}
        manifest = {"contract": CONTRACT, "step": checkpoint.step, "sha256": sha256, "notes": dict(notes)}
        (partial_dir / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True))
    for old in checkpoint_dirs(folder)[NUM_KEPT:]:
        shutil.rmtree(old)
    return target


def checkpoint_dirs(folder: Path) -> list[Path]:
    """List the checkpoints of a training, newest first, whole or not."""
    return sorted(folder.glob("checkpoint_*"), reverse=True)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Load the newest whole checkpoint, or None where there is none."""
    for checkpoint_dir in checkpoint_dirs(folder):
        try:
            return load_checkpoint(checkpoint_dir)
        except (ValueError, OSError) as error:
            logger.warning("skipping the checkpoint %s: %s; using the one before it", checkpoint_dir, error)
    return None


def load_checkpoint(checkpoint_dir: Path) -> Checkpoint:
    """Load one checkpoint after checking every file against the manifest.

    Raises:
        ValueError: a file is missing or altered, or the manifest is torn or of another contract.
    """
    manifest_path = checkpoint_dir / "manifest.json"
    if not manifest_path.is_file():
        raise ValueError("it has no manifest.json")
    try:
        manifest = json.loads(manifest_path.read_text())
        contract, step, sha256 = manifest["contract"], int(manifest["step"]), dict(manifest["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"its manifest is torn ({error!r})") from None
    if contract != CONTRACT or set(sha256) != {"state.safetensors", "history.json"}:
        raise ValueError(f"its manifest is not of {CONTRACT}")
    for name, expected in sha256.items():
        path = checkpoint_dir / name
        if not path.is_file() or file_sha256(path) != expected:
            raise ValueError(f"{name} is missing or altered")
    return Checkpoint(
        step=step,
        tensors=load((checkpoint_dir / "state.safetensors").read_bytes()),
        history=json.loads((checkpoint_dir / "history.json").read_text()),
    )
