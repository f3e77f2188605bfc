"""Mean ranks: closed forms, and intervals that hold the truth as often as they say, in simulated studies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import rankdata

from pipeline.evaluation.study.mean_ranks import (
    Interval,
    mean_rank_differences,
    mean_rank_intervals,
    mean_ranks,
    mid_ranks,
    variance_parts,
)
from tests.simulated_raters import PAPER, Population, draw_ranks, true_mean_ranks

NAN = np.nan
NUM_STUDIES = 1000


def intervals(ranks: np.ndarray, seed: int = 0, level: float = 0.95, num_resamples: int = 1000) -> list[Interval]:
    return mean_rank_intervals(ranks, level=level, num_resamples=num_resamples, rng=np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([1, 1, 3], [1.5, 1.5, 3]),
        ([1, 1, 2], [1.5, 1.5, 3]),
        ([2, 5, 5], [1, 2.5, 2.5]),
        ([3, 3, 3], [2, 2, 2]),
        ([NAN, 4, 2], [NAN, 2, 1]),
        ([NAN, NAN, NAN], [NAN, NAN, NAN]),
    ],
)
def test_typed_ranks_become_mid_ranks(typed: list[float], expected: list[float]) -> None:
    np.testing.assert_array_equal(mid_ranks(np.array(typed)), expected)


@given(arrays(float, (4, 3, 5), elements=st.integers(1, 5)))
def test_mid_ranks_are_scipys(typed: np.ndarray) -> None:
    np.testing.assert_array_equal(mid_ranks(typed), rankdata(typed, axis=-1))
    np.testing.assert_array_equal(mid_ranks(typed), mid_ranks(typed**3 + 7), "only their order counts")


def test_methods_are_averaged_over_the_ballots_that_showed_them() -> None:
    ranks = np.array([[[1, 2, NAN], [2, 1, NAN]], [[NAN, 1, 2], [NAN, NAN, NAN]]])
    np.testing.assert_allclose(mean_ranks(ranks), [1.5, 4 / 3, 2])
    assert np.isnan(mean_ranks(np.full((2, 2, 1), NAN))).all()


def test_the_variance_of_the_mean_is_that_of_a_two_way_random_effects_model() -> None:
    """Against mean squares of a balanced two-way table (Searle, Casella and McCulloch, Variance Components, 1992)."""
    ranks = np.random.default_rng(1).normal(size=(7, 11, 1)) + np.arange(7)[:, None, None] * 0.3
    table = ranks[..., 0]
    rows, columns = table.mean(1), table.mean(0)
    residual = table - rows[:, None] - columns + table.mean()
    ms_rows, ms_columns = 11 * rows.var(ddof=1), 7 * columns.var(ddof=1)
    ms_rest = (residual**2).sum() / (6 * 10)
    expected = (ms_rows + ms_columns - ms_rest) / 77
    assert variance_parts(ranks, np.eye(1)).total[0] == pytest.approx(expected, rel=1e-9)


def test_intervals_do_not_depend_on_the_order_of_methods_and_hardly_on_that_of_raters_and_prompts() -> None:
    ranks = draw_ranks(PAPER, 10, 50, np.random.default_rng(2))
    found = np.array(intervals(ranks, num_resamples=20_000))
    np.testing.assert_array_equal(np.array(intervals(ranks[..., ::-1], num_resamples=20_000))[::-1], found)
    shuffled = ranks[::-1][:, np.random.default_rng(3).permutation(50)]
    np.testing.assert_allclose(np.array(intervals(shuffled, num_resamples=20_000)), found, atol=0.01)


def test_a_method_that_was_never_ranked_has_no_mean_and_the_others_have() -> None:
    ranks = draw_ranks(PAPER, 4, 9, np.random.default_rng(2))
    with_one_more = np.concatenate([ranks, np.full((4, 9, 1), NAN)], -1)
    *others, never = intervals(with_one_more)
    assert others == intervals(ranks) and np.isnan(never.mean)
    differences = mean_rank_differences(with_one_more, level=0.95, num_resamples=100, rng=np.random.default_rng(0))
    assert np.isnan(differences[0, 3].mean) and not np.isnan(differences[0, 1].mean)


def test_a_seed_repeats_the_intervals() -> None:
    ranks = draw_ranks(PAPER, 4, 9, np.random.default_rng(2))
    assert intervals(ranks, seed=5) == intervals(ranks, seed=5) != intervals(ranks, seed=6)


def test_ballots_that_all_say_the_same_do_not_say_how_sure_that_is() -> None:
    """With few of them a method that is seldom put behind is never; an interval without width would miss the truth."""
    ranks = np.broadcast_to([1.0, 2.0, 3.0], (10, 50, 3)).copy()
    for rank, one in enumerate(intervals(ranks), 1):
        assert one.mean == rank and np.isnan((one.low, one.high)).all()
    ranks[0, 0] = [1, 3, 2]
    first, *others = intervals(ranks)
    assert np.isnan((first.low, first.high)).all()
    assert all(one.low < one.mean < one.high for one in others)


def test_one_rater_or_one_prompt_leaves_the_others_spread_unknown() -> None:
    ranks = draw_ranks(PAPER, 12, 12, np.random.default_rng(4))
    for part in (ranks[:1], ranks[:, :1], ranks[:1, :1]):
        assert all(np.isnan((one.low, one.high)).all() and 1 <= one.mean <= 3 for one in intervals(part))


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 6), st.floats(0, 2), st.sampled_from([0.0, 1.5]))
def test_intervals_hold_the_estimate_and_stay_among_the_ranks(
    seed: int, num_raters: int, num_prompts: int, spread: float, step: float
) -> None:
    population = Population((0.9, 0.2, 0.0, -0.5), spread, spread, step=step, num_shown=3)
    ranks = draw_ranks(population, num_raters, num_prompts, np.random.default_rng(seed))
    for one in intervals(ranks, num_resamples=200):
        if not np.isnan([one.mean, one.low]).any():
            assert 1 <= one.low <= one.high <= 3


THREE, SIX = (1.2, 0.4, -0.6), (1.0, 0.6, 0.2, -0.2, -0.6, -1.0)
STUDIES = [
    pytest.param(10, 50, PAPER, id="the-papers"),
    pytest.param(10, 50, Population(THREE, 0.3, 0.5), id="default"),
    pytest.param(10, 50, Population(THREE, 0.3, 0.5, step=1.0), id="many-ties"),
    pytest.param(10, 50, Population(THREE, 0.3, 1.2), id="strong-prompts"),
    pytest.param(10, 50, Population(THREE, 0.0, 0.5), id="no-taste"),
    pytest.param(10, 50, Population(THREE, 0.8, 0.5), id="strong-taste"),
    pytest.param(10, 50, Population(SIX, 0.3, 0.5, num_shown=4), id="four-of-six"),
    pytest.param(20, 50, Population(THREE, 0.3, 0.5), id="twenty-raters"),
    pytest.param(5, 20, Population(THREE, 0.3, 0.5), id="five-raters"),
    # With no effect of raters and prompts they are wider than need be: none is taken to be surer than its residuals.
    pytest.param(10, 50, Population(THREE, 0.0, 0.0), id="no-effects"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("num_raters", "num_prompts", "population"), STUDIES)
def test_intervals_hold_the_truth_as_often_as_they_say(
    num_raters: int, num_prompts: int, population: Population
) -> None:
    share = coverage(num_raters, num_prompts, population)
    print(f"\ncoverage of 95 % intervals: {share:.3f}")
    assert 0.93 <= share <= 0.97


def coverage(num_raters: int, num_prompts: int, population: Population, both_ways: bool = True) -> float:
    """Return how often the intervals of all methods held the truth."""
    truth, rng = true_mean_ranks(population), np.random.default_rng(11)
    hits = 0
    for study in range(NUM_STUDIES):
        ranks = draw_ranks(population, num_raters, num_prompts, rng)
        if not both_ways:  # as if every ballot were a rater's only one
            ranks = ranks.reshape(-1, 1, ranks.shape[-1])
        found = intervals(ranks, seed=study, num_resamples=500)
        hits += sum(one.low <= mean <= one.high for one, mean in zip(found, truth, strict=True))
    return hits / NUM_STUDIES / len(truth)


@pytest.mark.slow
def test_ballots_taken_as_independent_would_hold_it_too_rarely() -> None:
    assert coverage(10, 50, Population(THREE, 0.3, 0.5), both_ways=False) < 0.75


@pytest.mark.slow
def test_the_papers_protocol_separates_the_papers_mean_ranks() -> None:
    """Ten raters, fifty captions, three methods: StackGAN's 1.37 against GAWWN's 1.99."""
    np.testing.assert_allclose(true_mean_ranks(PAPER)[:2], [1.37, 1.99], atol=0.01)
    rng, apart, told = np.random.default_rng(12), 0, 0
    for study in range(NUM_STUDIES):
        ranks = draw_ranks(PAPER, 10, 50, rng)
        first, second, _ = intervals(ranks, seed=study, num_resamples=500)
        apart += first.high < second.low
        difference = mean_rank_differences(ranks, level=0.95, num_resamples=500, rng=np.random.default_rng(study))
        told += difference[0, 1].high < 0
    print(f"\nintervals apart: {apart / NUM_STUDIES:.3f}; interval of the difference below 0: {told / NUM_STUDIES:.3f}")
    assert apart >= 0.99 * NUM_STUDIES and told >= 0.99 * NUM_STUDIES


def test_differences_are_of_the_means_and_hold_the_truth_as_often_as_they_say() -> None:
    population = Population(THREE, 0.3, 0.5)
    truth, rng, hits = true_mean_ranks(population), np.random.default_rng(13), 0
    for study in range(NUM_STUDIES):
        ranks = draw_ranks(population, 10, 50, rng)
        means = mean_ranks(ranks)
        found = mean_rank_differences(ranks, level=0.95, num_resamples=500, rng=np.random.default_rng(study))
        for (a, b), one in found.items():
            assert one.mean == pytest.approx(means[a] - means[b])
            hits += one.low <= truth[a] - truth[b] <= one.high
    assert 0.93 <= hits / NUM_STUDIES / 3 <= 0.97
