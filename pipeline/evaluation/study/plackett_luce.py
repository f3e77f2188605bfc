"""Plackett-Luce strengths of methods out of rankings with ties, of all methods or of some.

A ranking is a row of choices: the best of what is shown, then the best of what is left. A choice may be a tie. The
probability of choosing the set S among those left is proportional to delta_|S| times the geometric mean of its
strengths, over all sets as large as any tie that occurred (Davidson-Luce: Turner, van Etten, Firth and Kosmidis,
Modelling rankings in R, Computational Statistics 2020). Half a win and half a loss of each method against a method of
strength 1 that is not there keep strengths finite where one method always wins (theirs, npseudo = 0.5).
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats
from scipy.sparse import csgraph

from pipeline.evaluation.study.mean_ranks import Array, two_way_variance

NUM_PSEUDO = 0.5

Choice = tuple[tuple[int, ...], tuple[int, ...]]  # what was chosen, and what it was chosen from


class Strengths(NamedTuple):
    """A fit."""

    log_strengths: Array  # (M,), in sum 0; higher is better; NaN for a method that was never ranked
    low: Array  # (M,) ends of the intervals of the log strengths
    high: Array
    tie_prevalence: Array  # delta_2, delta_3, ... as far as ties occurred

    @property
    def shares(self) -> Array:
        """Return the probability that each method is put first, alone, if all are shown: (M,), in sum 1."""
        is_known = ~np.isnan(self.log_strengths)
        shares = np.full(self.log_strengths.shape, np.nan)
        shares[is_known] = special.softmax(self.log_strengths[is_known])
        return shares


def plackett_luce(ranks: Array, *, level: float, num_pseudo: float = NUM_PSEUDO) -> Strengths | None:
    """Fit strengths to rankings.

    Args:
        ranks: (R, P, M) mid-ranks, NaN where a method was not shown.
        level: of the intervals, which are clustered by rater and by prompt as those of mean ranks are. Their ends are
            NaN where those are, and where some methods are never put behind or beside any of the others: then no
            ballot says how far apart they are (Ford, Solution of a ranking problem from binary comparisons, 1957).
        num_pseudo: wins and losses of each method against one that is not there.

    Returns:
        None where no ballot says anything.
    """
    is_ranked = np.asarray((~np.isnan(ranks)).any((0, 1)))
    if is_ranked.any() and not is_ranked.all():
        found = plackett_luce(ranks[..., is_ranked], level=level, num_pseudo=num_pseudo)
        return found and Strengths(
            log_strengths=_spread(found.log_strengths, is_ranked),
            low=_spread(found.low, is_ranked),
            high=_spread(found.high, is_ranked),
            tie_prevalence=found.tie_prevalence,
        )
    num_methods = ranks.shape[-1]
    ballots = {
        (rater, prompt): list(choices_of(ranks[rater, prompt]))
        for rater, prompt in np.argwhere((~np.isnan(ranks)).sum(-1) > 1).tolist()
    }
    counts = Counter(choice for choices in ballots.values() for choice in choices)
    if not counts:
        return None
    model = _Model(list(counts), num_methods)
    weights = np.array(list(counts.values()), float)
    fit = optimize.minimize(
        model.loss, np.zeros(model.num_parameters), args=(weights, num_pseudo), jac=True, method="BFGS",
        options={"gtol": 1e-8},
    )  # fmt: skip
    parameters: Array = fit.x
    centre = np.eye(num_methods) - 1 / num_methods
    log_strengths = centre @ parameters[:num_methods]
    # The sandwich: what each ballot pulls at the estimate, gathered by rater and by prompt.
    influence = np.linalg.pinv(model.information(parameters, weights, num_pseudo))[:num_methods]
    scores = model.scores(parameters)
    place_of = {choice: place for place, choice in enumerate(counts)}
    cells = np.zeros((*ranks.shape[:2], num_methods))
    for (rater, prompt), choices in ballots.items():
        score = scores[[place_of[choice] for choice in choices]].sum(0)
        cells[rater, prompt] = centre @ influence @ score
    is_given = (~np.isnan(ranks)).sum(-1) > 1
    cells[is_given] -= cells[is_given].mean(0)
    variance = two_way_variance(cells, is_given)
    widths = stats.t.ppf((1 + level) / 2, variance.degrees) * np.sqrt(variance.total)
    widths[~variance.is_known | _is_separated(counts, num_methods)] = np.nan
    return Strengths(log_strengths, log_strengths - widths, log_strengths + widths, np.exp(parameters[num_methods:]))


def _is_separated(choices: Iterable[Choice], num_methods: int) -> bool:
    """Return whether methods fall into sets of which one is always put before the other."""
    is_not_behind = np.zeros((num_methods, num_methods), bool)
    for chosen, left in choices:
        is_not_behind[np.ix_(chosen, left)] = True
    num_sets, _ = csgraph.connected_components(is_not_behind, connection="strong")
    return num_sets > 1


def _spread(values: Array, places: npt.NDArray[np.bool_]) -> Array:
    """Put values at the places that are true, NaN at the others."""
    spread = np.full(places.shape, np.nan)
    spread[places] = values
    return spread


def choices_of(ranks: Array) -> Iterator[Choice]:
    """Yield the choices that a ranking of (M,) mid-ranks is made of; the last method is left, not chosen."""
    left = tuple(int(place) for place in np.flatnonzero(~np.isnan(ranks)))
    while len(left) > 1:
        best = min(ranks[place] for place in left)
        chosen = tuple(place for place in left if ranks[place] == best)
        yield chosen, left
        left = tuple(place for place in left if place not in chosen)


class _Model:
    """The log likelihood of distinct choices, in (M log strengths, log delta_2, log delta_3, ...)."""

    def __init__(self, choices: list[Choice], num_methods: int):
        orders = sorted({len(chosen) for chosen, _ in choices if len(chosen) > 1})
        self._num_methods = num_methods
        self.num_parameters = num_methods + len(orders)
        column_of = {order: num_methods + index for index, order in enumerate(orders)}

        def features(chosen: tuple[int, ...]) -> Array:
            row = np.zeros(self.num_parameters)
            row[list(chosen)] = 1 / len(chosen)
            if len(chosen) > 1:
                row[column_of[len(chosen)]] = 1
            return row

        self._chosen = np.stack([features(chosen) for chosen, _ in choices])
        sets = {
            left: np.stack([
                features(chosen) for size in (1, *orders) if size <= len(left)
                for chosen in itertools.combinations(left, size)
            ])
            for _, left in choices
        }  # fmt: skip
        self._sets = [sets[left] for _, left in choices]

    def scores(self, parameters: Array) -> Array:
        """Return the gradient of each choice's log probability: (choices, parameters)."""
        expected = [special.softmax(features @ parameters) @ features for features in self._sets]
        return self._chosen - np.stack(expected)

    def loss(self, parameters: Array, weights: Array, num_pseudo: float) -> tuple[float, Array]:
        """Return the negative log likelihood and its gradient."""
        totals = np.array([special.logsumexp(features @ parameters) for features in self._sets])
        loss = -float(weights @ (self._chosen @ parameters - totals))
        gradient = -(weights @ self.scores(parameters))
        theta = parameters[: self._num_methods]
        loss += num_pseudo * float((2 * np.logaddexp(0, theta) - theta).sum())
        gradient[: self._num_methods] += num_pseudo * (2 * special.expit(theta) - 1)
        return loss, gradient

    def information(self, parameters: Array, weights: Array, num_pseudo: float) -> npt.NDArray[np.float64]:
        """Return the second derivatives of `loss`."""
        total = np.zeros((self.num_parameters, self.num_parameters))
        for weight, features in zip(weights, self._sets, strict=True):
            shares = special.softmax(features @ parameters)
            mean = shares @ features
            total += weight * ((features.T * shares) @ features - np.outer(mean, mean))
        theta = parameters[: self._num_methods]
        places = np.arange(self._num_methods)
        total[places, places] += 2 * num_pseudo * special.expit(theta) * special.expit(-theta)
        return total
