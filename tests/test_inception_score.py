"""The Inception score against its closed forms, its invariances and a frozen number."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric

from pipeline.evaluation.inception_score import inception_score

GOLDEN_PATH = Path(__file__).parent / "golden" / "inception_score.json"


def formula_logits(num_images: int, num_classes: int) -> Tensor:
    """Logits that need no generator: the same on every machine and under every release."""
    rows, columns = torch.meshgrid(
        torch.arange(num_images, dtype=torch.float64), torch.arange(num_classes, dtype=torch.float64), indexing="ij"
    )
    return 3 * torch.sin(1.7 * rows + 0.3 * rows * columns + columns)


def pure_log_probabilities(num_images: int, num_classes: int) -> Tensor:
    labels = torch.arange(num_images) % num_classes
    return torch.log(torch.nn.functional.one_hot(labels, num_classes).double())


@pytest.mark.parametrize("num_splits", [1, 3, 10])
def test_uniform_probabilities_score_one(num_splits: int) -> None:
    score = inception_score(torch.zeros(64, 7), num_splits=num_splits, seed=0)
    assert score.mean == pytest.approx(1, abs=1e-12)
    assert score.std == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("num_classes", [2, 5, 50])
def test_k_pure_classes_score_k_in_one_split(num_classes: int) -> None:
    score = inception_score(pure_log_probabilities(4 * num_classes, num_classes), num_splits=1, seed=3)
    assert score.mean == pytest.approx(num_classes, abs=1e-10)


def test_k_pure_classes_score_k_in_splits_that_hold_all_of_them_alike() -> None:
    num_images, num_splits = 40, 10
    order = np.random.RandomState(5).permutation(num_images)
    labels = np.empty(num_images, np.int64)
    labels[order] = np.arange(num_images) % 4  # after the shuffle every split of four holds each class once
    log_p = torch.log(torch.nn.functional.one_hot(torch.from_numpy(labels), 4).double())
    score = inception_score(log_p, num_splits=num_splits, seed=5)
    assert score.mean == pytest.approx(4, abs=1e-12)
    assert score.std == pytest.approx(0, abs=1e-12)


def test_score_equals_the_textbook_formula_over_the_same_splits() -> None:
    logits = formula_logits(53, 6)
    p = torch.softmax(logits, dim=1).numpy()[np.random.RandomState(2).permutation(53)]
    parts = [p[i * 53 // 5 : (i + 1) * 53 // 5] for i in range(5)]
    assert sum(map(len, parts)) == 53  # the remainder is scored, not dropped
    expected = [math.exp((part * np.log(part / part.mean(0))).sum(1).mean()) for part in parts]
    score = inception_score(logits, num_splits=5, seed=2)
    assert score.mean == pytest.approx(np.mean(expected), abs=1e-12)
    assert score.std == pytest.approx(np.std(expected, ddof=0), abs=1e-12)


def test_logits_and_their_log_probabilities_score_the_same() -> None:
    logits = formula_logits(40, 5)
    of_logits = inception_score(logits + 17, num_splits=4, seed=1)
    of_log_probabilities = inception_score(torch.log_softmax(logits, dim=1), num_splits=4, seed=1)
    assert of_logits.mean == pytest.approx(of_log_probabilities.mean, abs=1e-12)
    assert of_logits.std == pytest.approx(of_log_probabilities.std, abs=1e-12)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_does_not_move_the_score(batch_size: int) -> None:
    logits = formula_logits(64, 9)
    in_batches = torch.cat([torch.log_softmax(part, dim=1) for part in logits.split(batch_size)])
    whole, batched = (inception_score(values, num_splits=10, seed=0) for values in (logits, in_batches))
    assert batched.mean == pytest.approx(whole.mean, abs=1e-12)
    assert batched.std == pytest.approx(whole.std, abs=1e-12)


def test_row_order_does_not_move_the_score_of_rows_with_ids() -> None:
    logits, ids = formula_logits(61, 9), torch.arange(61) * 3 + 2
    order = torch.from_numpy(np.random.default_rng(0).permutation(61))
    in_order = inception_score(logits, num_splits=10, seed=0)
    shuffled = inception_score(logits[order], num_splits=10, seed=0, sample_ids=ids[order].tolist())
    assert shuffled.mean == pytest.approx(in_order.mean, abs=1e-12)
    assert shuffled.std == pytest.approx(in_order.std, abs=1e-12)


def test_row_order_does_not_move_a_score_of_one_split() -> None:
    logits = formula_logits(61, 9)
    forward, backward = (inception_score(rows, num_splits=1, seed=0).mean for rows in (logits, logits.flip(0)))
    assert forward == pytest.approx(backward, abs=1e-12)


def test_classes_in_order_do_not_fall_into_splits_of_their_own() -> None:
    sorted_by_class = pure_log_probabilities(500, 5)[torch.arange(500) % 5 * 100 + torch.arange(500) // 5]
    assert inception_score(sorted_by_class, num_splits=5, seed=0).mean > 4.5


def test_score_is_the_frozen_number() -> None:
    golden = json.loads(GOLDEN_PATH.read_text())
    score = inception_score(formula_logits(golden["num_images"], 20), num_splits=golden["num_splits"], seed=2020)
    assert score.mean == pytest.approx(golden["mean"], abs=1e-12)
    assert score.std == pytest.approx(golden["std"], abs=1e-12)


def test_both_deviations_of_the_splits_are_told() -> None:
    score = inception_score(formula_logits(60, 6), num_splits=4, seed=0)
    assert score.sample_std == pytest.approx(score.std * math.sqrt(4 / 3), abs=1e-12)
    assert math.isnan(inception_score(formula_logits(60, 6), num_splits=1, seed=0).sample_std)


def draw_logits(num_images: int, seed: int) -> Tensor:
    return 2 * torch.randn(num_images, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_interval_covers_the_scores_of_other_pictures_as_often_as_it_says() -> None:
    """Of the same distribution: what another set of as many pictures scores on average lies in 95 % of intervals."""
    scores = [inception_score(draw_logits(100, seed), num_splits=2, seed=0) for seed in range(200)]
    expected = np.mean([score.mean for score in scores])
    covered = np.mean([score.interval[0] <= expected <= score.interval[1] for score in scores])
    assert 0.9 <= covered <= 0.99  # 0.95 with a standard error of 0.015


def test_the_interval_is_that_of_pictures_drawn_one_by_one() -> None:
    logits = draw_logits(40, seed=1)
    score, generator = inception_score(logits, num_splits=1, seed=0), np.random.default_rng(7)
    drawn = [logits[torch.from_numpy(generator.integers(40, size=40))] for _ in range(4000)]
    resampled = np.array([inception_score_of_one_split(rows) for rows in drawn])
    expected = np.quantile(resampled, (0.025, 0.975)) - resampled.mean() + score.mean
    assert score.interval == pytest.approx(expected, abs=0.15 * (expected[1] - expected[0]))


def inception_score_of_one_split(logits: Tensor) -> float:
    p = torch.softmax(logits, dim=1)
    return math.exp((p * (p / p.mean(dim=0)).log()).sum(dim=1).mean())


def test_the_interval_lies_around_the_score_though_repetitions_lower_that_of_a_resample() -> None:
    logits = 3 * draw_logits(12, seed=3)
    score = inception_score(logits, num_splits=1, seed=0)
    low, high = score.interval
    assert low < score.mean < high
    drawn = [logits[torch.from_numpy(np.random.default_rng(seed).integers(12, size=12))] for seed in range(2000)]
    resampled = np.array([inception_score_of_one_split(rows) for rows in drawn])
    assert score.mean - resampled.mean() > 0.1 * (high - low)  # which is what is made good
    assert high - score.mean == pytest.approx(np.quantile(resampled, 0.975) - resampled.mean(), rel=0.1)


def test_the_interval_ends_at_the_scores_that_there_can_be() -> None:
    low, high = inception_score(pure_log_probabilities(8, 8), num_splits=1, seed=0).interval
    assert high == 8 and 5 < low < 8


def test_the_interval_narrows_with_the_count_and_is_a_point_where_pictures_are_alike() -> None:
    few, many = (inception_score(draw_logits(count, seed=2), num_splits=1, seed=0).interval for count in (100, 1600))
    assert 3 < (few[1] - few[0]) / (many[1] - many[0]) < 5.5  # 4 for independent pictures
    alike = inception_score(torch.zeros(50, 4), num_splits=5, seed=0)
    assert alike.interval == pytest.approx((1, 1), abs=1e-12)


@pytest.mark.parametrize(("num_images", "num_splits"), [(40, 1), (53, 5), (1000, 10)])
def test_score_equals_torch_fidelitys(num_images: int, num_splits: int) -> None:
    logits = formula_logits(num_images, 12)
    theirs = isc_features_to_metric(logits, splits=num_splits, shuffle=True, rng_seed=7)
    ours = inception_score(logits, num_splits=num_splits, seed=7)
    assert ours.mean == pytest.approx(theirs["inception_score_mean"], abs=1e-6)
    assert ours.std == pytest.approx(theirs["inception_score_std"], abs=1e-6)


def test_fewer_pictures_than_splits_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"9 pictures cannot be cut into 10 splits.*evaluate_inception.num_splits"):
        inception_score(torch.zeros(9, 4), num_splits=10, seed=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_probabilities_that_are_not_a_number_are_refused(value: float) -> None:
    logits = torch.zeros(20, 4)
    logits[13, 2] = value
    with pytest.raises(ValueError, match="row 13"):
        inception_score(logits, num_splits=2, seed=0)


def test_a_row_without_any_probability_is_refused() -> None:
    logits = torch.zeros(20, 4)
    logits[7] = -torch.inf
    with pytest.raises(ValueError, match="row 7"):
        inception_score(logits, num_splits=2, seed=0)


@pytest.mark.parametrize("shape", [(20, 1), (20,), (20, 2, 2)])
def test_fewer_than_two_classes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="2 classes or more"):
        inception_score(torch.zeros(shape), num_splits=2, seed=0)


def test_repeated_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="3 distinct sample ids for 4 pictures"):
        inception_score(torch.zeros(4, 3), num_splits=1, seed=0, sample_ids=[1, 2, 2, 3])
