"""Plackett-Luce strengths: closed forms, published fits, and the truth of simulated studies."""

import numpy as np
import pytest
from scipy import optimize, special

from pipeline.evaluation.study.plackett_luce import Strengths, _Model, choices_of, plackett_luce
from tests.simulated_raters import Population, draw_ranks

NAN = np.nan
A, B, C, D = range(4)


def fit(rows: list[list[float]], num_pseudo: float = 0.0) -> Strengths:
    """Fit rankings, each of a rater of its own at one prompt."""
    found = plackett_luce(np.array(rows, float)[:, None], level=0.95, num_pseudo=num_pseudo)
    assert found is not None
    return found


# The worked example of Turner et al.'s vignette, section 2.3: A > B, C > A, A > D, B > A, B > C.
TOY = [[1, 2, NAN, NAN], [2, NAN, 1, NAN], [1, NAN, NAN, 2], [2, 1, NAN, NAN], [NAN, 1, 2, NAN]]


def test_the_published_example_has_its_published_strengths() -> None:
    without_d = [row[:3] for row in (TOY[0], TOY[1], TOY[3], TOY[4])]
    log_strengths = fit(without_d).log_strengths
    np.testing.assert_allclose(log_strengths - log_strengths[A], [0, 0.8392, 0.4196], atol=5e-5)


def test_the_published_example_with_pseudo_rankings_has_its_published_strengths() -> None:
    log_strengths = fit(TOY, num_pseudo=0.5).log_strengths
    np.testing.assert_allclose(log_strengths - log_strengths[A], [0, 0.5184185, 0.1354707, -1.1537565], atol=1e-6)


def test_two_methods_have_davidsons_closed_form() -> None:
    """Davidson (1970): the ratio of strengths is that of wins, and delta is ties / sqrt(wins * losses)."""
    wins, losses, ties = 19, 22, 16
    found = fit([[1, 2]] * wins + [[2, 1]] * losses + [[1.5, 1.5]] * ties)
    assert found.log_strengths[0] - found.log_strengths[1] == pytest.approx(np.log(wins / losses), abs=1e-6)
    assert found.tie_prevalence == pytest.approx([ties / np.sqrt(wins * losses)], abs=1e-6)
    assert found.shares.sum() == pytest.approx(1) and found.log_strengths.sum() == pytest.approx(0)


@pytest.mark.slow
def test_first_choices_of_full_rankings_happen_as_often_as_the_shares_say() -> None:
    """At the maximum, observed and expected choices agree for each method (the score equations), ties included."""
    ranks = draw_ranks(Population((0.8, 0.2, 0.0, -0.4), 0.3, 0.3, step=0.8), 20, 30, np.random.default_rng(1))
    choices = [choice for rater in ranks for ballot in rater for choice in choices_of(ballot)]
    model = _Model(choices, 4)
    start = np.zeros(model.num_parameters)
    best = optimize.minimize(model.loss, start, args=(np.ones(len(choices)), 0.0), jac=True, options={"gtol": 1e-8})
    np.testing.assert_allclose(model.scores(best.x).sum(0), 0, atol=1e-5)


def test_gradient_and_information_are_the_losss_derivatives() -> None:
    ranks = draw_ranks(
        Population((0.5, 0.0, -0.5, 0.1), 0.3, 0.3, step=0.8, num_shown=3), 4, 6, np.random.default_rng(2)
    )
    choices = [choice for rater in ranks for ballot in rater for choice in choices_of(ballot)]
    model, weights = _Model(choices, 4), np.random.default_rng(3).uniform(0.5, 2, len(choices))
    at = np.random.default_rng(4).normal(size=model.num_parameters)

    def gradient(parameters: np.ndarray) -> np.ndarray:
        return model.loss(parameters, weights, 0.5)[1]

    numeric = optimize.approx_fprime(at, lambda parameters: model.loss(parameters, weights, 0.5)[0], 1e-7)
    np.testing.assert_allclose(gradient(at), numeric, rtol=1e-4, atol=1e-4)
    columns = [(gradient(at + step) - gradient(at - step)) / 2e-5 for step in 1e-5 * np.eye(len(at))]
    np.testing.assert_allclose(model.information(at, weights, 0.5), np.stack(columns), rtol=1e-5, atol=1e-6)


def test_a_ranking_is_a_row_of_choices() -> None:
    assert list(choices_of(np.array([2.5, 1, NAN, 2.5, 4]))) == [
        ((1,), (0, 1, 3, 4)),
        ((0, 3), (0, 3, 4)),
    ]


def test_a_method_that_always_wins_has_a_finite_strength_and_no_interval() -> None:
    always = np.broadcast_to([1.0, 2.0, 3.0], (8, 5, 3)).copy()
    found = plackett_luce(always, level=0.95)
    assert found is not None and (np.diff(found.log_strengths) < -2).all()
    assert np.isnan([found.low, found.high]).all()
    for once in ([1, 3, 2], [2, 1, 3]):  # one pair is no longer separated, and the third method still is
        always[0, 0] = once
        found = plackett_luce(always, level=0.95)
        assert found is not None and np.isnan([found.low, found.high]).all()
        always[0, 0] = [1, 2, 3]
    always[0, 0], always[1, 1] = [1, 2.5, 2.5], [1.5, 1.5, 3]  # a tie is beside, and not behind
    found = plackett_luce(always, level=0.95)
    assert found is not None and (found.low < found.log_strengths).all() and (found.log_strengths < found.high).all()


def test_the_order_of_methods_raters_and_prompts_does_not_matter() -> None:
    ranks = draw_ranks(Population((0.9, 0.1, -0.6), 0.3, 0.5, step=0.7), 6, 12, np.random.default_rng(5))
    one, other = (plackett_luce(of, level=0.95) for of in (ranks, ranks[::-1, ::-1, ::-1]))
    assert one is not None and other is not None
    for name in ("log_strengths", "low", "high"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name)[::-1], atol=1e-5)


def test_a_method_that_was_never_ranked_has_no_strength_and_changes_no_others() -> None:
    ranks = draw_ranks(Population((0.9, 0.1, -0.6), 0.3, 0.5), 6, 12, np.random.default_rng(5))
    alone = plackett_luce(ranks, level=0.95)
    wider = plackett_luce(np.insert(ranks, 1, NAN, axis=-1), level=0.95)
    assert alone is not None and wider is not None
    assert np.isnan(wider.log_strengths[1]) and np.isnan(wider.shares[1])
    np.testing.assert_array_equal(np.delete(wider.log_strengths, 1), alone.log_strengths)
    np.testing.assert_array_equal(np.delete(wider.shares, 1), alone.shares)


def test_without_a_ballot_there_is_no_strength() -> None:
    assert plackett_luce(np.full((3, 4, 2), NAN), level=0.95) is None


@pytest.mark.slow
def test_intervals_hold_the_strengths_of_the_population_as_often_as_they_say() -> None:
    population = Population((1.2, 0.4, -0.6), 0.3, 0.5)
    large = plackett_luce(draw_ranks(population, 400, 400, np.random.default_rng(6)), level=0.95)
    assert large is not None
    rng, hits = np.random.default_rng(7), 0
    for _ in range(400):
        found = plackett_luce(draw_ranks(population, 10, 50, rng), level=0.95)
        assert found is not None
        hits += int(((found.low <= large.log_strengths) & (large.log_strengths <= found.high)).sum())
    print(f"\ncoverage of 95 % intervals: {hits / 1200:.3f}")
    assert 0.925 <= hits / 1200 <= 0.975


def test_rankings_drawn_from_the_model_give_its_strengths_back() -> None:
    """Gumbel noise on log strengths draws from Plackett-Luce without ties (Yellott, 1977)."""
    truth = np.array([0.9, 0.3, -0.2, -1.0])
    noisy = truth + np.random.default_rng(8).gumbel(size=(300, 40, 4))
    ranks = np.argsort(np.argsort(-noisy, -1), -1) + 1.0
    found = plackett_luce(ranks, level=0.95)
    assert found is not None
    np.testing.assert_allclose(found.log_strengths, truth, atol=0.03)
    np.testing.assert_allclose(found.shares, special.softmax(truth), atol=0.01)
