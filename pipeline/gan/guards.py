"""What tells that a training has gone wrong: numbers that are none, a dead discriminator, pictures all alike."""

import math
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.nn.utils import get_total_norm

from pipeline.data.shards import Images

# An 8-bit grey level is 0.004, and nobody sees a difference of two of them. Pictures of a generator that uses its noise
# are 0.1 and more apart.
MIN_SAMPLE_DISTANCE = 0.01
# A discriminator that gives two kinds of pairs the same probability up to this much does not tell them apart; one that
# is this near to 0 and 1 leaves hardly a gradient to the generator.
PROBABILITY_MARGIN = 0.01
STEPS_WITHOUT_WARNINGS = 200  # at first D tells nothing apart, and pictures are grey whatever the noise


def sample_distance(images: Images) -> float:
    """Return how far apart samples of the same caption are: 0 where the noise changes nothing.

    The root mean square difference of two pictures over their values in [0, 1], averaged over the pairs of samples of
    each caption, then over the captions.

    Args:
        images: (num_captions, num_noises, H, W, 3) uint8, of at least two noises.
    """
    num_noises = images.shape[1]
    assert num_noises >= 2, "one sample a caption has nothing to differ from"
    samples = images.astype(np.float32) / 255
    distances = [
        np.sqrt(np.square(samples[:, one] - samples[:, other]).mean(axis=(1, 2, 3), dtype=np.float64))
        for one, other in combinations(range(num_noises), 2)
    ]
    return float(np.mean(distances))


def collapse_warning(distance: float) -> str | None:
    """Return what to say of a `sample_distance` that is too small, or None."""
    if distance >= MIN_SAMPLE_DISTANCE:
        return None
    return (
        f"mode collapse: samples of one caption are {distance:.4f} apart (below {MIN_SAMPLE_DISTANCE}), so the noise "
        "changes nothing; set gan.conditioning_augmentation, raise gan.kl_weight, or go on from an earlier checkpoint"
    )


def discriminator_warning(means: Mapping[str, float]) -> str | None:
    """Return what to say of a discriminator that learns, or teaches, nothing any more, or None.

    Args:
        means: of an epoch: real_probability, wrong_probability and fake_probability, each in [0, 1].
    """
    real, wrong, fake = (means[f"{kind}_probability"] for kind in ("real", "wrong", "fake"))
    found = f"real {real:.3f}, wrong {wrong:.3f}, fake {fake:.3f}"
    if abs(real - fake) < PROBABILITY_MARGIN and abs(real - wrong) < PROBABILITY_MARGIN:
        return (
            f"the discriminator tells nothing apart ({found}); lower the learning rate, raise gan.discriminator_dim, "
            "or check that the captions belong to the pictures"
        )
    if real > 1 - PROBABILITY_MARGIN and fake < PROBABILITY_MARGIN:
        return (
            f"the discriminator has won ({found}), so the generator learns nothing; lower the learning rate, lower "
            "gan.discriminator_dim, or set differentiable_augmentation"
        )
    return None


def warnings_of(row: Mapping[str, float]) -> dict[str, str]:
    """Return what to say of an epoch's row of the history, by what it is about; nothing in the first steps."""
    if row["step"] <= STEPS_WITHOUT_WARNINGS:
        return {}
    found = {
        "discriminator": discriminator_warning(row),
        "mode_collapse": collapse_warning(row["sample_distance"]) if "sample_distance" in row else None,
    }
    return {kind: warning for kind, warning in found.items() if warning}


def require_finite(row: Mapping[str, float], last_good: Path | None) -> None:
    """Refuse to go on with a number that is none.

    Args:
        row: of the history, with its `epoch`.
        last_good: the newest whole checkpoint, from before this row; None where there is none yet.

    Raises:
        FloatingPointError: a value is infinite or not a number.
    """
    before = f"the last good checkpoint is {last_good}" if last_good else "there is no checkpoint yet"
    for key, value in row.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{key} is {value} in epoch {row['epoch']:.0f}; {before}. Lower the learning rate or gan.kl_weight, or "
                "set hardware.precision to float32"
            )


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether every value is finite: one number a tensor on its device, and one wait for all of them.

    The largest magnitude is infinite or not a number if any value is, cannot overflow, and needs no second tensor.
    """
    floats = [tensor.detach() for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    return math.isfinite(get_total_norm(floats, norm_type=math.inf).item())
