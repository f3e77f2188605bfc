"""Systems by their configuration: which choice of conf/gan a training was, and how to queue some of them with DVC."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

CONF_DIR = Path("conf")
_DVC = (sys.executable, "-m", "dvc")
# Keys of section gan that conf/size and conf/dataset set: another value is a system of another size, not another one.
SIZE_KEYS = ("generator_dim", "discriminator_dim", "z_dim", "condition_dim", "num_residual_blocks", "captions_averaged")


def known_systems(first: Sequence[str] = ()) -> dict[str, dict[str, str]]:
    """Return what each choice of conf/gan sets, as MLflow keeps it: gan.<key> -> value, less SIZE_KEYS.

    Args:
        first: choices that stand in front, before the alphabet's order: of two that set the same, the first is meant.

    Raises:
        ValueError: there is no conf/gan here.
    """
    choices = sorted(path.stem for path in (CONF_DIR / "gan").glob("*.yaml"))
    if not choices:
        raise ValueError(f"{CONF_DIR / 'gan'} is missing: run from the repository's root")
    ordered = [choice for choice in first if choice in choices]
    return {choice: _settings_of(choice) for choice in (*ordered, *(c for c in choices if c not in ordered))}


def _settings_of(choice: str) -> dict[str, str]:
    gan = composed([f"gan={choice}"])["gan"]
    return {f"gan.{key}": str(value) for key, value in gan.items() if key not in SIZE_KEYS}


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """Return what `dvc exp run -S ...` would write into params.yaml.

    Raises:
        ValueError: an override names no group, choice or key.
    """
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


def system_of(settings: Mapping[str, str], known: Mapping[str, Mapping[str, str]]) -> str | None:
    """Return the first choice whose settings a training had, None where it had none's."""
    return next((choice for choice, keys in known.items() if keys.items() <= settings.items()), None)


def queue(choices: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Queue one DVC experiment for each choice.

    Args:
        choices: of conf/gan.
        overrides: group=choice or section.key=value, for each of them.

    Returns:
        The experiments' names.

    Raises:
        ValueError: a choice or an override is none, the raw data is known to neither git nor DVC, or DVC refuses.
    """
    known = {path.stem for path in (CONF_DIR / "gan").glob("*.yaml")}
    if unknown := [choice for choice in choices if choice not in known]:
        raise ValueError(f"conf/gan has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    if any(override.partition("=")[0].lstrip("+~") == "gan" for override in overrides):
        raise ValueError("-S gan=... is what `stackgan tables run` sets itself: name systems as its arguments")
    for choice in choices:
        composed([f"gan={choice}", *overrides])
    _require_raw_data(str(composed(overrides)["dataset"]["name"]))
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    for choice in choices:
        settings = [argument for override in (f"gan={choice}", *overrides) for argument in ("-S", override)]
        _dvc("exp", "run", "--queue", "--name", f"{choice}-{stamp}", *settings)
    return [f"{choice}-{stamp}" for choice in choices]


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
    status = subprocess.run([*_DVC, "queue", "status"], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in status.splitlines()]
    succeeded = {row[1] for row in rows if len(row) > 2 and row[-1] == "Success"}
    if failed := [name for name in names if name not in succeeded]:
        raise ValueError(f"did not succeed: {', '.join(failed)}; `dvc queue logs {failed[0]}` says why")


def _require_raw_data(dataset: str) -> None:
    """Refuse raw data that a queued experiment's copy of the repository would lack."""
    raw_path = f"data/raw/{dataset}"
    nodes = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"].values()
    if any(raw_path in node.get("outs", []) for node in nodes) or Path(f"{raw_path}.dvc").is_file():
        return
    raise ValueError(
        f"{raw_path} is known to neither git nor DVC, and a queued experiment runs in a copy that holds only what they "
        f"know: `dvc add {raw_path}` first"
    )


def _dvc(*arguments: str) -> None:
    """Run DVC; what it says goes to our stderr, for our stdout is the tables'."""
    done = subprocess.run([*_DVC, *arguments], stdout=sys.stderr, check=False)
    if done.returncode:
        raise ValueError(f"`dvc {' '.join(arguments)}` ended with status {done.returncode}; it said why above")
