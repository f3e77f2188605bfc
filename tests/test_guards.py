"""A training that has gone wrong is told from one that goes well, at the boundary between the two."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.gan.guards import (
    MIN_SAMPLE_DISTANCE,
    all_finite,
    collapse_warning,
    discriminator_warning,
    require_finite,
    sample_distance,
)


def flat_pictures(*captions: tuple[int, ...]) -> np.ndarray:
    """Return (num_captions, num_noises, 4, 5, 3): one picture a number, of that grey all over."""
    greys = np.array(captions, dtype=np.uint8)[:, :, None, None, None]
    return np.ascontiguousarray(np.broadcast_to(greys, (*greys.shape[:2], 4, 5, 3)))


def test_identical_samples_are_at_distance_zero_however_much_captions_differ() -> None:
    assert sample_distance(flat_pictures((0, 0, 0), (255, 255, 255))) == 0.0


def test_black_and_white_are_at_distance_one() -> None:
    assert sample_distance(flat_pictures((0, 255), (255, 0))) == 1.0


def test_the_distance_is_the_mean_over_pairs_and_captions() -> None:
    # Pairs of the first caption: 51, 102, 51 levels; of the second: 0, 255, 255.
    expected = ((51 + 102 + 51) / 3 + (0 + 255 + 255) / 3) / 2 / 255
    assert sample_distance(flat_pictures((0, 51, 102), (0, 0, 255))) == pytest.approx(expected, abs=1e-6)


def test_the_distance_of_two_pictures_is_a_root_mean_square() -> None:
    images = flat_pictures((100, 100))
    images[0, 1, :2, :, :] += 30  # half of the values
    assert sample_distance(images) == pytest.approx(math.sqrt(0.5) * 30 / 255, abs=1e-6)


def test_the_distance_does_not_depend_on_the_order_of_samples_and_captions() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8, 3), dtype=np.uint8)
    assert sample_distance(images[::-1, ::-1]) == pytest.approx(sample_distance(images), abs=1e-9)


def test_one_sample_a_caption_has_no_distance() -> None:
    with pytest.raises(AssertionError, match="nothing to differ from"):
        sample_distance(flat_pictures((0,), (1,)))


def test_only_samples_nearer_than_the_threshold_are_a_collapse() -> None:
    assert collapse_warning(MIN_SAMPLE_DISTANCE) is None
    warning = collapse_warning(math.nextafter(MIN_SAMPLE_DISTANCE, 0))
    assert warning is not None and "mode collapse" in warning and "kl_weight" in warning and "\n" not in warning


def test_two_grey_levels_are_a_collapse_and_three_are_none() -> None:
    assert collapse_warning(sample_distance(flat_pictures((100, 102)))) is not None
    assert collapse_warning(sample_distance(flat_pictures((100, 103)))) is None


@pytest.mark.parametrize(
    ("real", "wrong", "fake", "words"),
    [
        (0.5, 0.5, 0.5, "tells nothing apart"),
        (0.5, 0.491, 0.509, "tells nothing apart"),
        (0.0, 0.0, 0.0, "tells nothing apart"),
        (1.0, 1.0, 1.0, "tells nothing apart"),
        (0.5, 0.5, 0.48, None),  # it still knows the fakes
        (0.2, 0.2, 0.4, None),
        (0.2, 0.4, 0.2, None),
        (0.5, 0.52, 0.5, None),  # it still reads the text
        (0.995, 0.4, 0.005, "has won"),
        (0.995, 0.99, 0.005, "has won"),
        (0.985, 0.4, 0.005, None),
        (0.995, 0.4, 0.015, None),
        (0.7, 0.3, 0.3, None),
        (0.005, 0.4, 0.995, None),
    ],
)
def test_a_dead_discriminator_is_told_from_a_live_one(
    real: float, wrong: float, fake: float, words: str | None
) -> None:
    warning = discriminator_warning(
        {"real_probability": real, "wrong_probability": wrong, "fake_probability": fake, "d_loss": math.nan}
    )
    if words is None:
        assert warning is None
    else:
        assert warning is not None and words in warning and f"real {real:.3f}" in warning
        assert "; lower the learning rate" in warning and "\n" not in warning


ROW = {"step": 30, "epoch": 3, "d_loss": 0.5, "kl": 0.1}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["d_loss", "kl"])
def test_a_number_that_is_none_is_refused_by_its_name_and_epoch(key: str, value: float) -> None:
    with pytest.raises(FloatingPointError) as caught:
        require_finite({**ROW, key: value}, Path("storage/checkpoint_00000020"))
    message = str(caught.value)
    assert message.startswith(f"{key} is {value} in epoch 3; the last good checkpoint is storage/checkpoint_00000020.")
    assert "learning rate" in message and "float32" in message and "kl_weight" in message and "\n" not in message


def test_without_a_checkpoint_the_message_says_so() -> None:
    with pytest.raises(FloatingPointError, match=r"in epoch 3; there is no checkpoint yet\."):
        require_finite({**ROW, "kl": math.nan}, None)


def test_finite_numbers_pass_however_large() -> None:
    require_finite({**ROW, "d_loss": -1e300}, None)


@given(
    index=st.integers(0, 3),
    place=st.integers(0, 11),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_one_bad_value_in_any_tensor_is_found(index: int, place: int, value: float, dtype: torch.dtype) -> None:
    tensors = [torch.zeros(3, 4), torch.ones(12, dtype=torch.bfloat16), torch.ones(2, 6), torch.ones(12)]
    tensors[index] = tensors[index].to(dtype)
    assert all_finite(tensors)
    tensors[index].view(-1)[place] = value
    assert not all_finite(tensors)


def test_the_largest_finite_values_do_not_overflow() -> None:
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    assert all_finite([torch.full((1000,), torch.finfo(dtype).max, dtype=dtype) for dtype in dtypes])


def test_integers_scalars_and_nothing_at_all_are_finite() -> None:
    assert all_finite(iter([torch.tensor(2**62), torch.tensor([True]), torch.tensor(1.0), torch.ones(0)]))
    assert all_finite([torch.tensor(3)]) and all_finite([])


def test_parameters_are_looked_at_as_they_are() -> None:
    network = torch.nn.BatchNorm2d(4)
    assert all_finite(network.state_dict().values()) and all_finite(network.parameters())
    network.running_var[2] = math.inf
    assert not all_finite(network.state_dict().values())
