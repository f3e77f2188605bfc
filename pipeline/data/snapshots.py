"""Snapshots for inference: a network's weights as safetensors beside the JSON that rebuilds it. No pickle is read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from pipeline.data.files import file_sha256, replaced_file

CONTRACT = "snapshot/v1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A loaded snapshot: `config` holds the numbers to rebuild the network with, `state` its weights on the CPU."""

    config: dict[str, Any]
    state: dict[str, Tensor]
    sha256: str


def save_snapshot(folder: Path, name: str, module: nn.Module, config: Mapping[str, object]) -> None:
    """Write <folder>/<name>.safetensors and, last, <folder>/<name>.json.

    Args:
        folder: made if it is missing.
        name: file name without ending.
        module: weights and buffers are written contiguous, on the CPU.
        config: JSON numbers, strings and lists that rebuild `module`.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    weights_path = folder / f"{name}.safetensors"
    with replaced_file(weights_path) as partial_path:
        partial_path.write_bytes(save(state))
    manifest = {"contract": CONTRACT, "sha256": file_sha256(weights_path), "config": dict(config)}
    with replaced_file(folder / f"{name}.json") as partial_path:
        partial_path.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def load_snapshot(folder: Path, name: str) -> Snapshot:
    """Read a snapshot and check its hash.

    Raises:
        ValueError: a file is missing, of another contract, or altered.
    """
    config_path, weights_path = folder / f"{name}.json", folder / f"{name}.safetensors"
    for path in (config_path, weights_path):
        if not path.is_file():
            raise ValueError(f"{path} is missing: run `dvc repro` (or `dvc pull`) to make the models first")
    try:
        manifest = json.loads(config_path.read_text())
        contract, expected, config = manifest["contract"], manifest["sha256"], dict(manifest["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{config_path} is torn ({error!r}); rerun `dvc repro`") from None
    if contract != CONTRACT:
        raise ValueError(f"{config_path}: contract {contract!r} is not {CONTRACT!r}; rerun `dvc repro`")
    sha256 = file_sha256(weights_path)
    if sha256 != expected:
        raise ValueError(f"{weights_path} is not what {config_path.name} describes (sha256); rerun `dvc repro`")
    try:
        state = load(weights_path.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{weights_path} is not a safetensors file: {error}") from error
    return Snapshot(config=config, state=state, sha256=sha256)
