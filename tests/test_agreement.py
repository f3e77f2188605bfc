"""Agreement and tests against scipy, published worked examples and chance."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from pipeline.evaluation.study.agreement import (
    friedman,
    kendalls_w,
    krippendorff_alpha,
    mean_prompt_w,
    num_raters_needed,
    position_bias,
    rater_blocks,
    units_of,
)
from pipeline.evaluation.study.design import balanced_blocks
from pipeline.evaluation.study.mean_ranks import mean_rank_differences, mid_ranks
from tests.simulated_raters import PAPER, Population, draw_ranks, true_mean_ranks

NAN = np.nan

# Four coders, twelve units: Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), part C.
RELIABILITY = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
)


def test_krippendorffs_example_has_his_ordinal_alpha() -> None:
    assert krippendorff_alpha(RELIABILITY) == pytest.approx(0.815, abs=0.0005)


def test_alpha_is_one_for_agreement_and_about_zero_for_chance() -> None:
    assert krippendorff_alpha(np.array([[1, 2, 3], [1, 2, 3.0]])) == 1
    chance = np.random.default_rng(0).integers(1, 4, (10, 2000)).astype(float)
    assert krippendorff_alpha(chance) == pytest.approx(0, abs=0.01)
    assert krippendorff_alpha(np.array([[1, 2.0], [2, 1]])) < 0


def test_alpha_depends_on_the_order_of_values_alone_and_not_on_that_of_coders_or_units() -> None:
    alpha = krippendorff_alpha(RELIABILITY)
    assert krippendorff_alpha(np.exp(RELIABILITY)) == pytest.approx(alpha)
    assert krippendorff_alpha(RELIABILITY[::-1, ::-1]) == pytest.approx(alpha)


@pytest.mark.parametrize(("num_methods", "num_shown"), [(6, 3), (7, 2), (6, 6)])
def test_raters_of_one_mind_agree_in_blocks_of_methods_too(num_methods: int, num_shown: int) -> None:
    blocks = balanced_blocks(num_methods, num_shown, num_prompts=50, num_raters=10, seed=0)
    typed = np.full((10, 50, num_methods), NAN)
    for rater, of_rater in enumerate(blocks):
        for prompt, block in enumerate(of_rater):
            typed[rater, prompt, block] = block
    ranks = mid_ranks(typed)
    assert krippendorff_alpha(units_of(ranks)) == 1
    units = units_of(ranks)
    assert (~np.isnan(units)).sum() == 10 * 50 * num_shown and units.shape[0] == 10


def test_of_blocks_that_no_two_raters_saw_there_is_no_alpha() -> None:
    ranks = np.array([[[1, 2, NAN]], [[NAN, 1, 2]], [[NAN, NAN, NAN]]])
    assert krippendorff_alpha(units_of(ranks)) is None


def test_alpha_of_nothing_to_compare_is_none() -> None:
    for values in (np.full((3, 4), NAN), np.array([[1, NAN], [NAN, 2.0]]), np.ones((3, 4)), np.zeros((0, 0))):
        assert krippendorff_alpha(values) is None


@given(arrays(float, (6, 4), elements=st.integers(1, 4)))
def test_friedman_is_scipys(typed: np.ndarray) -> None:
    blocks = mid_ranks(typed)
    found = friedman(blocks, level=0.05)
    if found is None:
        assert (blocks == blocks[:, :1]).all()
        return
    expected = stats.friedmanchisquare(*blocks.T)
    assert found.statistic == pytest.approx(expected.statistic) and found.p_value == pytest.approx(expected.pvalue)
    concordance = kendalls_w(blocks)
    assert concordance is not None and concordance == pytest.approx(found.statistic / (6 * 3))


def test_nemenyi_has_demsars_critical_differences() -> None:
    """Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets (JMLR 2006), table 5 and section 3.2.2."""
    blocks = mid_ranks(np.random.default_rng(0).random((14, 4)))
    for level, value, difference in ((0.05, 2.569, 1.25), (0.10, 2.291, 1.12)):
        found = friedman(blocks, level=level)
        assert found is not None
        assert found.critical_difference == pytest.approx(difference, abs=0.006)
        assert found.critical_difference / math.sqrt(4 * 5 / (6 * 14)) == pytest.approx(value, abs=0.001)


def test_two_methods_as_far_apart_as_the_critical_difference_have_its_level() -> None:
    rng = np.random.default_rng(1)
    blocks = mid_ranks(rng.random((9, 3)) + np.array([0, 0.3, 0.5]))
    found = friedman(blocks, level=0.05)
    assert found is not None
    means = blocks.mean(0)
    for (a, b), p_value in found.pair_p_values.items():
        assert (p_value < 0.05) == (abs(means[a] - means[b]) > found.critical_difference)


def test_chance_is_called_a_difference_about_as_often_as_the_level_says() -> None:
    rng, found = np.random.default_rng(2), 0
    for _ in range(1000):
        test = friedman(mid_ranks(rng.random((20, 4))), level=0.05)
        assert test is not None
        found += test.p_value < 0.05
    assert 30 <= found <= 70


def test_tests_of_methods_count_raters_not_ballots() -> None:
    ranks = draw_ranks(PAPER, 10, 50, np.random.default_rng(3))
    blocks = rater_blocks(ranks)
    assert blocks.shape == (10, 3)
    np.testing.assert_array_equal(blocks, mid_ranks(ranks.mean(1)))
    ranks[4, :, 2] = NAN
    assert rater_blocks(ranks).shape == (9, 3), "who has not ranked a method is no block"


def test_kendalls_w_is_one_for_full_agreement_and_zero_for_none() -> None:
    assert kendalls_w(np.tile([1.0, 2, 3, 4], (5, 1))) == 1
    assert kendalls_w(np.tile([1.5, 1.5, 3], (5, 1))) == pytest.approx(1), "ties that all share are agreement"
    assert kendalls_w(np.array([[1, 2, 3], [3, 2, 1.0]])) == 0
    assert kendalls_w(np.full((3, 3), 2.0)) is None and kendalls_w(np.zeros((0, 3))) is None


def test_agreement_within_prompts_is_the_mean_of_theirs() -> None:
    agree, differ = [[1, 2, 3], [1, 2, 3]], [[1, 2, 3], [3, 2, 1]]
    ranks = np.stack([agree, differ], 1).astype(float)
    assert mean_prompt_w(ranks) == 0.5
    ranks[0, 1] = NAN
    assert mean_prompt_w(ranks) == 1, "one ranking alone agrees with nothing"


def positions_like(ranks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    keys = np.where(np.isnan(ranks), NAN, rng.random(ranks.shape))
    return mid_ranks(keys)


def test_a_place_that_is_favoured_is_found() -> None:
    rng = np.random.default_rng(4)
    ranks = draw_ranks(Population((0.0, 0.0, 0.0), 0, 0), 10, 50, rng)
    positions = positions_like(ranks, rng)
    favoured = mid_ranks(ranks + np.where(positions == 1, -1.5, 0.0))
    bias = position_bias(favoured, positions, num_permutations=500, rng=rng)
    assert bias is not None and bias.p_value < 0.01 and bias.mean_ranks[1] < 1.9


def test_places_by_chance_are_called_a_bias_about_as_often_as_the_level_says() -> None:
    rng, found = np.random.default_rng(5), 0
    for _ in range(300):
        ranks = draw_ranks(Population((1.0, 0.0, -1.0, 0.5), 0.3, 0.5, num_shown=3), 5, 10, rng)
        bias = position_bias(ranks, positions_like(ranks, rng), num_permutations=99, rng=rng)
        assert bias is not None and set(bias.mean_ranks) == {1, 2, 3}
        found += bias.p_value <= 0.05
    assert 5 <= found <= 28  # 15 expected


def test_a_position_bias_of_no_ballots_is_none() -> None:
    nothing = np.full((2, 3, 4), NAN)
    assert position_bias(nothing, nothing, num_permutations=9, rng=np.random.default_rng(0)) is None


def test_as_many_raters_as_are_asked_for_find_the_difference_as_often_as_was_asked() -> None:
    population = Population((0.6, 0.2, -0.2), 0.5, 0.4)
    truth = true_mean_ranks(population)
    difference = float(truth[1] - truth[0])
    pilot = draw_ranks(population, 60, 200, np.random.default_rng(6))[:, :50]
    needed = num_raters_needed(pilot, difference=difference, level=0.05, power=0.8)
    assert needed is not None and 5 < needed < 60
    rng, found = np.random.default_rng(7), 0
    for study in range(300):
        ranks = draw_ranks(population, needed, 50, rng)
        one = mean_rank_differences(ranks, level=0.95, num_resamples=300, rng=np.random.default_rng(study))[0, 1]
        found += one.high < 0
    assert 0.68 <= found / 300 <= 0.92


def test_more_raters_do_not_help_where_prompts_are_too_few() -> None:
    ranks = draw_ranks(Population((0.1, 0.0), 0.1, 2.0), 20, 5, np.random.default_rng(8))
    assert num_raters_needed(ranks, difference=0.02, level=0.05, power=0.8) is None
    with pytest.raises(ValueError, match="say nothing of either's spread"):
        num_raters_needed(ranks[:1], difference=0.1, level=0.05, power=0.8)
