"""The groups of conf/gan as Hydra composes them, at their own widths or narrow ones, for the tests of pipeline.gan."""

from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf

from pipeline.params import GanParams

PRESETS = ("paper", "published_tf", "published_pytorch")
CONF_DIR = Path(__file__).parents[1] / "conf"


@cache
def preset(name: str) -> GanParams:
    """Return section `gan` of a preset, at its own widths."""
    with hydra.initialize_config_dir(str(CONF_DIR), version_base=None):
        composed = OmegaConf.to_container(hydra.compose("config", [f"gan={name}", "size=paper"]).gan)
    assert isinstance(composed, dict) and composed.keys() == {field.name for field in fields(GanParams)}
    values: dict[str, Any] = {str(key): value for key, value in composed.items()}
    return GanParams(**values)


def narrow(name: str, **changes: Any) -> GanParams:
    """Return a preset whose networks are small enough to be trained in a test."""
    return replace(
        preset(name),
        **{"generator_dim": 8, "discriminator_dim": 4, "z_dim": 5, "condition_dim": 6, "num_residual_blocks": 1}
        | changes,
    )
