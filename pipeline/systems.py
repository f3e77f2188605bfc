"""Systems by their configuration: what each choice of conf/gan sets, and how to queue some of them with DVC."""

import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

CONF_DIR = Path("conf")
# Sections of params.yaml that make a system's pictures and scores what they are, besides the data and the judges.
SECTIONS = ("gan", "train_stage1", "train_stage2", "generate_samples", "evaluate_inception")
_DVC = (sys.executable, "-m", "dvc")


def choices() -> list[str]:
    """List the choices of conf/gan.

    Raises:
        ValueError: there are none here.
    """
    found = sorted(path.stem for path in (CONF_DIR / "gan").glob("*.yaml"))
    if not found:
        raise ValueError(f"{CONF_DIR / 'gan'} is missing: run from the repository's root")
    return found


def settings_of(choice: str, overrides: Sequence[str]) -> dict[str, str]:
    """Return what a choice of conf/gan sets, as MLflow keeps it: section.key -> value, for SECTIONS.

    A GAN of one stage trains nothing in train_stage2, so that section is left out of its settings.
    """
    document = composed([f"gan={choice}", *overrides])
    one_stage = document["gan"]["stage2_size"] == "none"
    return {
        f"{section}.{key}": str(value)
        for section in SECTIONS
        if not (one_stage and section == "train_stage2")
        for key, value in document[section].items()
    }


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """Return what `dvc exp run -S ...` would write into params.yaml.

    Raises:
        ValueError: there is no conf/ here, or an override names no group, choice or key.
    """
    if not CONF_DIR.is_dir():
        raise ValueError(f"{CONF_DIR} is missing: run from the repository's root")
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with hydra.initialize_config_dir(str(CONF_DIR.absolute()), version_base=None):
            document = OmegaConf.to_container(hydra.compose("config", list(overrides)), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(f"{' '.join(overrides)}: {' '.join(str(error).split())}") from None
    assert isinstance(document, dict)
    return {str(section): values for section, values in document.items()}


def queue(systems: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Queue one DVC experiment for each system.

    Args:
        systems: choices of conf/gan.
        overrides: group=choice or section.key=value, for each of them.

    Returns:
        The experiments' names.

    Raises:
        ValueError: a system or an override is none, git does not know of the raw data, or DVC refuses.
    """
    known = choices()
    if unknown := [name for name in systems if name not in known]:
        raise ValueError(f"conf/gan has no {', '.join(unknown)}; it has {', '.join(known)}")
    if any(override.partition("=")[0].lstrip("+~") == "gan" for override in overrides):
        raise ValueError("-S gan=... is what `stackgan tables run` sets itself: name systems as its arguments")
    for system in systems:
        composed([f"gan={system}", *overrides])
    _require_raw_data(str(composed(overrides)["dataset"]["name"]))
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    for system in systems:
        settings = [argument for override in (f"gan={system}", *overrides) for argument in ("-S", override)]
        _dvc("exp", "run", "--queue", "--name", f"{system}-{stamp}", *settings)
    return [f"{system}-{stamp}" for system in systems]


def run_queued(names: Sequence[str]) -> None:
    """Run what is queued, one after the other, and wait for it.

    Args:
        names: of the experiments that matter to the caller.

    Raises:
        ValueError: one of these did not succeed, or the waiting was interrupted.
    """
    try:
        _dvc("exp", "run", "--run-all")
    except KeyboardInterrupt:
        raise ValueError(
            "interrupted; the experiments go on: `dvc queue status` shows them, `dvc queue stop --kill` ends them"
        ) from None
    status = subprocess.run([*_DVC, "queue", "status"], stdout=subprocess.PIPE, text=True, check=False).stdout
    rows = [line.split() for line in status.splitlines()]
    succeeded = {row[1] for row in rows if len(row) > 2 and row[-1] == "Success"}
    if failed := [name for name in names if name not in succeeded]:
        raise ValueError(f"did not succeed: {', '.join(failed)}; `dvc queue logs {failed[0]}` says why")


def _require_raw_data(dataset: str) -> None:
    """Refuse raw data that a queued experiment's copy of the repository would lack."""
    raw_path = f"data/raw/{dataset}"
    nodes = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"].values()
    if any(raw_path in node.get("outs", []) for node in nodes):
        return
    places = [raw_path, *(f"{parent}.dvc" for parent in (Path(raw_path), *Path(raw_path).parents[:2]))]
    listed = subprocess.run(["git", "ls-files", "--", *places], capture_output=True, text=True, check=False)
    if not listed.stdout.strip():
        raise ValueError(
            f"git does not know {raw_path}, and a queued experiment runs in a copy that holds only what git knows of: "
            f"`dvc add {raw_path} && git add {raw_path}.dvc` first"
        )


def _dvc(*arguments: str) -> None:
    """Run DVC; what it says goes to our stderr, for our stdout is the tables'."""
    done = subprocess.run([*_DVC, *arguments], stdout=sys.stderr, check=False)
    if done.returncode:
        raise ValueError(f"`dvc {' '.join(arguments)}` ended with status {done.returncode}; it said why above")
