"""Do raters agree, do methods differ, does the place on the page matter, and how many raters would be enough.

Ranks are (R, P, M) mid-ranks as in mean_ranks.py. Tests of the methods take raters as their blocks: each rater's mean
ranks are ranked anew, for raters are the units that were drawn, while ballots of one rater are not independent.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from pipeline.evaluation.study.mean_ranks import Array, mid_ranks, variance_parts

MOST_RATERS = 10_000


class Friedman(NamedTuple):
    """Friedman's test that all methods are equal (1937), with Nemenyi's pairs behind it (1963)."""

    statistic: float  # chi-square with M - 1 degrees of freedom, corrected for ties
    p_value: float
    critical_difference: float  # of two methods' mean ranks, at the level asked for
    pair_p_values: dict[tuple[int, int], float]  # Nemenyi's, of a and b, a before b
    num_blocks: int


def rater_blocks(ranks: Array) -> Array:
    """Return each rater's ranking of the methods by their mean ranks: (B, M), of the raters who ranked all of them."""
    counts = (~np.isnan(ranks)).sum(1)
    sums = np.nansum(ranks, 1)
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return mid_ranks(means[~np.isnan(means).any(1)])


def friedman(blocks: Array, *, level: float) -> Friedman | None:
    """Test whether methods differ.

    Args:
        blocks: (B, M) rankings, 1 is best.
        level: of the critical difference, such as 0.05.

    Returns:
        None where there are fewer than two blocks or two methods, or every block ties all of them.
    """
    num_blocks, num_methods = blocks.shape
    concordance = kendalls_w(blocks)
    if num_blocks < 2 or num_methods < 2 or concordance is None:
        return None
    statistic = num_blocks * (num_methods - 1) * concordance
    step = math.sqrt(num_methods * (num_methods + 1) / (6 * num_blocks))
    means = blocks.mean(0)
    pairs = [(a, b) for a in range(num_methods) for b in range(a + 1, num_methods)]
    # Nemenyi's statistic is a studentised range over the square root of 2 (Demsar, JMLR 2006).
    p_values = {
        (a, b): float(stats.studentized_range.sf(abs(means[a] - means[b]) / step * math.sqrt(2), num_methods, np.inf))
        for a, b in pairs
    }
    critical = float(stats.studentized_range.ppf(1 - level, num_methods, np.inf)) / math.sqrt(2) * step
    return Friedman(statistic, float(stats.chi2.sf(statistic, num_methods - 1)), critical, p_values, num_blocks)


def kendalls_w(blocks: Array) -> float | None:
    """Return Kendall's concordance of (B, M) rankings, corrected for ties: 0 for no agreement, 1 for full.

    None where it is not defined: every block ties all methods, or there is nothing to rank.
    """
    num_blocks, num_methods = blocks.shape
    if num_blocks == 0 or num_methods < 2:
        return None
    ties = sum(float((counts**3 - counts).sum()) for counts in map(_multiplicities, blocks))
    most = num_blocks**2 * num_methods * (num_methods**2 - 1) - num_blocks * ties
    if most <= 0:
        return None
    sums = blocks.sum(0)
    return 12 * float(((sums - sums.mean()) ** 2).sum()) / most


def mean_prompt_w(ranks: Array) -> float | None:
    """Average Kendall's W over prompts that two raters ranked in full: how far raters agree on one prompt."""
    found: list[float] = []
    for prompt in np.moveaxis(ranks, 1, 0):
        complete = prompt[~np.isnan(prompt).any(1)]
        value = kendalls_w(complete) if len(complete) > 1 else None
        if value is not None:
            found.append(value)
    return float(np.mean(found)) if found else None


def krippendorff_alpha(values: Array) -> float | None:
    """Return Krippendorff's alpha with the ordinal difference (Computing Krippendorff's Alpha-Reliability, 2011).

    Args:
        values: (coders, units), NaN where a coder did not code a unit.

    Returns:
        1 for full agreement, 0 for that of chance; None where no unit was coded twice or all values are alike.
    """
    categories = np.unique(values[~np.isnan(values)])
    counts = (
        np.stack([(values == category).sum(0) for category in categories], 1) if len(categories) else np.zeros((0, 0))
    )
    counts = counts[counts.sum(1) > 1].astype(float)  # (units, categories): a value alone agrees with nothing
    if not len(counts):
        return None
    per_unit = counts.sum(1, keepdims=True)
    coincidences = (counts / (per_unit - 1)).T @ counts - np.diag((counts / (per_unit - 1)).sum(0))
    totals = coincidences.sum(0)
    cumulative = np.cumsum(totals) - totals / 2  # the middle of each category's place among all values
    distances = (cumulative[:, None] - cumulative) ** 2
    expected = float((np.outer(totals, totals) * distances).sum()) / (totals.sum() - 1)
    if expected == 0:
        return None
    return 1 - float((coincidences * distances).sum()) / expected


def units_of(ranks: Array) -> Array:
    """Lay (R, P, M) mid-ranks out for Krippendorff's alpha: (R, units).

    A mid-rank says where a method stands among those it was shown with. So a unit is a method at a prompt within one
    block of methods, coded by the raters who were shown that block there.
    """
    units = [np.full((len(ranks), 0), np.nan)]
    for of_prompt in np.moveaxis(ranks, 1, 0):
        is_shown = ~np.isnan(of_prompt)
        for block in np.unique(is_shown, axis=0):
            saw_it = (is_shown == block).all(1)
            units.append(np.where(saw_it[:, None], of_prompt, np.nan)[:, block])
    return np.concatenate(units, 1)


class PositionBias(NamedTuple):
    """Whether the place on the page moved ranks."""

    mean_ranks: dict[int, float]  # position -> mean rank of what stood there
    p_value: float  # of a permutation test: positions exchanged within each ballot


def position_bias(
    ranks: Array, positions: Array, *, num_permutations: int, rng: np.random.Generator
) -> PositionBias | None:
    """Test whether what stands at one place is ranked better than at another.

    Args:
        ranks: (R, P, M).
        positions: (R, P, M) places on the page, from 1; NaN where ranks are.
        num_permutations: of the test.
        rng: draws them.

    Returns:
        None where no ballot was given.
    """
    num_methods = ranks.shape[-1]
    flat_ranks, flat_positions = ranks.reshape(-1, num_methods), positions.reshape(-1, num_methods)
    given = ~np.isnan(flat_ranks).all(1)
    flat_ranks, flat_positions = flat_ranks[given], flat_positions[given]
    if not len(flat_ranks):
        return None
    is_shown = ~np.isnan(flat_ranks)
    centred = np.nan_to_num(flat_ranks - np.nanmean(flat_ranks, 1, keepdims=True))
    places = np.where(is_shown, flat_positions, 0).astype(int)
    sizes = np.bincount(places.ravel())

    def spread(of: Array) -> float:
        sums = np.bincount(places.ravel(), weights=of.ravel(), minlength=len(sizes))
        return float((sums[1:] ** 2 / np.maximum(sizes[1:], 1)).sum())

    observed = spread(centred)
    as_large = 0
    for _ in range(num_permutations):
        # What was shown comes first in a random order, and is put back where something was shown.
        order = np.argsort(np.where(is_shown, rng.random(centred.shape), 2.0), 1)
        back = np.argsort(np.argsort(~is_shown, 1, kind="stable"), 1)
        shuffled = np.take_along_axis(np.take_along_axis(centred, order, 1), back, 1)
        as_large += spread(shuffled) >= observed * (1 - 1e-12)
    means = {
        int(place): float(flat_ranks[is_shown & (places == place)].mean()) for place in np.unique(places[is_shown])
    }
    return PositionBias(means, (1 + as_large) / (1 + num_permutations))


def num_raters_needed(ranks: Array, *, difference: float, level: float, power: float) -> int | None:
    """Return how many raters would tell any two methods apart whose mean ranks differ by so much.

    From the ballots at hand it takes how far raters, prompts and chance move a difference of two methods; prompts stay
    as many as they are.

    Args:
        ranks: (R, P, M) of a first study, with two raters and two prompts or more.
        difference: of mean ranks, above 0.
        level: of the two-sided test, such as 0.05.
        power: share of studies that are to find it, such as 0.8.

    Returns:
        None where even MOST_RATERS would not do: more prompts are needed.
    """
    num_methods = ranks.shape[-1]
    is_given = ~np.isnan(ranks)
    num_raters, num_prompts = int(is_given.any((1, 2)).sum()), int(is_given.any((0, 2)).sum())
    if num_raters < 2 or num_prompts < 2:
        raise ValueError(f"ranks of {num_raters} raters and {num_prompts} prompts say nothing of either's spread")
    contrasts = np.array(
        [np.eye(num_methods)[a] - np.eye(num_methods)[b] for a in range(num_methods) for b in range(a)]
    )
    parts = variance_parts(ranks, contrasts)
    of_raters = np.maximum(parts.of_raters - parts.rest, 0) + parts.rest  # falls as raters are added
    of_prompts = np.maximum(parts.of_prompts - parts.rest, 0)  # stays
    wanted = (difference / (stats.norm.ppf(1 - level / 2) + stats.norm.ppf(power))) ** 2
    if (of_prompts >= wanted).any():
        return None
    needed = max(2, math.ceil(float((of_raters * num_raters / (wanted - of_prompts)).max())))
    return needed if needed <= MOST_RATERS else None


def _multiplicities(block: Array) -> Array:
    return np.unique(block, return_counts=True)[1].astype(float)
