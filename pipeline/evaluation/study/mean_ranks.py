"""Mean ranks and how sure they are: bootstrap intervals clustered by rater and by prompt.

Ranks are (R, P, M): raters, prompts, methods; 1 is best, ties share the mean of their ranks, NaN where a method was not
shown or not ranked. Raters and prompts are both samples of many more, and both move a mean: a rater by taste, a prompt
by what it asks for. Resampling the two at once counts what is left of the variance three times (McCullagh, Resampling
and exchangeable arrays, Bernoulli 2000; Owen, The pigeonhole bootstrap, 2007), and resampling one alone forgets the
other. So raters and prompts are resampled apart, their deviations added, and the sum brought to the variance that
two-way clustering estimates without counting anything twice (Cameron, Gelbach and Miller, 2011), with Student's t in
the normal's place for as few clusters as there are (Satterthwaite, 1946).
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[np.float64]
NO_VARIANCE = 1e-18  # what rounding leaves of it where all ballots say the same


class Interval(NamedTuple):
    """An estimate with its interval."""

    mean: float
    low: float
    high: float


def mid_ranks(typed: Array) -> Array:
    """Turn what raters typed, such as 1 1 3 or 2 2 5, into ranks 1 to k among those shown; ties share their mean.

    Args:
        typed: (..., M), NaN where a method was not shown.

    Raises:
        ValueError: there is no method.
    """
    if typed.ndim == 0 or typed.shape[-1] == 0:
        raise ValueError(f"typed ranks are of shape {typed.shape}; they must be (..., M) with M methods")
    below = (typed[..., None] > typed[..., None, :]).sum(-1)
    equal = (typed[..., None] == typed[..., None, :]).sum(-1)
    return np.where(np.isnan(typed), np.nan, below + (equal + 1) / 2)


def mean_ranks(ranks: Array) -> Array:
    """Average (R, P, M) ranks over the ballots in which each method was ranked: (M,), NaN for one that never was."""
    counts = (~np.isnan(ranks)).sum((0, 1))
    sums = np.nansum(ranks, (0, 1))
    return np.divide(sums, counts, out=np.full(ranks.shape[-1], np.nan), where=counts > 0)


def mean_rank_intervals(ranks: Array, *, level: float, num_resamples: int, rng: np.random.Generator) -> list[Interval]:
    """Return each method's mean rank with its interval.

    Args:
        ranks: (R, P, M) mid-ranks.
        level: such as 0.95.
        num_resamples: of the bootstrap.
        rng: draws them.

    Returns:
        M intervals within 1 and the number of methods that a ballot shows; NaN ends where ballots do not say how sure a
        mean is: there is one rater or one prompt, or all ballots say the same.
    """
    num_methods = ranks.shape[-1]
    most = float(np.nanmax((~np.isnan(ranks)).sum(-1), initial=1))
    found = _intervals(ranks, np.eye(num_methods), level, num_resamples, rng)
    return [Interval(one.mean, max(one.low, 1.0), min(one.high, most)) for one in found]


def mean_rank_differences(
    ranks: Array, *, level: float, num_resamples: int, rng: np.random.Generator
) -> dict[tuple[int, int], Interval]:
    """Return, for each pair (a, b) of methods, a before b, mean rank of a less that of b with its interval.

    Ranks of one ballot depend on each other, so two methods can differ clearly though their own intervals overlap.
    """
    num_methods = ranks.shape[-1]
    pairs = [(a, b) for a in range(num_methods) for b in range(a + 1, num_methods)]
    contrasts = np.zeros((len(pairs), num_methods))
    for row, (a, b) in enumerate(pairs):
        contrasts[row, a], contrasts[row, b] = 1, -1
    return dict(zip(pairs, _intervals(ranks, contrasts, level, num_resamples, rng), strict=True))


def _intervals(
    ranks: Array, contrasts: Array, level: float, num_resamples: int, rng: np.random.Generator
) -> list[Interval]:
    """Return intervals of (K, M) contrasts of the mean ranks."""
    variance = variance_parts(ranks, contrasts)
    # Not a product: a method that was never ranked has no mean, and the others do.
    estimates = np.where(contrasts != 0, contrasts * mean_ranks(ranks), 0).sum(1)
    draws = np.zeros((num_resamples, len(contrasts)))
    for deviations in (variance.rater_deviations, variance.prompt_deviations):
        count = len(deviations)
        if count > 1:
            times_drawn = rng.multinomial(count, np.full(count, 1 / count), num_resamples)
            draws += np.sqrt(count / (count - 1)) * (times_drawn @ deviations)
    drawn = variance.of_raters + variance.of_prompts  # the variance that the draws have
    tail = (1 - level) / 2
    widening = stats.t.ppf(1 - tail, variance.degrees) / stats.norm.ppf(1 - tail)
    scale = np.divide(variance.total, drawn, out=np.zeros_like(drawn), where=drawn > 0) ** 0.5
    # 1 - tail first: the interval is of the truth around the estimate, not of draws around the truth.
    ends = estimates - np.quantile(draws, (1 - tail, tail), axis=0) * scale * widening
    ends[:, ~variance.is_known] = np.nan
    return [Interval(*map(float, row)) for row in zip(estimates, *ends, strict=True)]


class VarianceParts(NamedTuple):
    """Of K contrasts of mean ranks: where their variance comes from. R and P are those who gave, or got, a ballot."""

    rater_deviations: Array  # (R, K) what each rater adds to the estimate, in sum 0
    prompt_deviations: Array  # (P, K)
    of_raters: Array  # (K,) between raters, and what is left
    of_prompts: Array  # (K,) between prompts, and what is left
    rest: Array  # (K,) what is left
    total: Array  # (K,) of the estimate
    degrees: Array  # (K,) of freedom of `total`
    is_known: npt.NDArray[np.bool_]  # (K,): there are two raters and two prompts, and ballots that differ


def variance_parts(ranks: Array, contrasts: Array) -> VarianceParts:
    """Split the variance of contrasts of mean ranks by where it comes from.

    Args:
        ranks: (R, P, M) mid-ranks.
        contrasts: (K, M), such as one-hot rows for the methods themselves.
    """
    counts = np.maximum((~np.isnan(ranks)).sum((0, 1)), 1)
    cells = np.nan_to_num(ranks - mean_ranks(ranks)) / counts @ contrasts.T
    return two_way_variance(cells, (~np.isnan(ranks)).any(-1))


def two_way_variance(cells: Array, is_given: Any) -> VarianceParts:
    """Split the variance of estimates by where it comes from.

    Args:
        cells: (R, P, K) what each ballot adds to K estimates; in sum 0 for each.
        is_given: (R, P) bool, which ballots there are.
    """
    raters, prompts = is_given.any(1), is_given.any(0)
    cells, is_given = cells[raters][:, prompts], is_given[raters][:, prompts]
    num_raters, num_prompts = is_given.shape
    by_rater, by_prompt = cells.sum(1), cells.sum(0)
    smooth = by_rater[:, None] / num_prompts + by_prompt / num_raters
    residuals = np.where(is_given[..., None], cells - smooth, 0)
    of_raters = _corrected(num_raters) * (by_rater**2).sum(0)
    of_prompts = _corrected(num_prompts) * (by_prompt**2).sum(0)
    rest = _corrected(num_raters) * _corrected(num_prompts) * (residuals**2).sum((0, 1))
    # What is left is in both; no estimate is surer than its residuals are.
    total = np.maximum(of_raters + of_prompts - rest, rest)
    errors = _share(of_raters, num_raters - 1) + _share(of_prompts, num_prompts - 1)
    errors += _share(rest, (num_raters - 1) * (num_prompts - 1))
    degrees = np.divide(total**2, errors, out=np.ones_like(total), where=errors > 0)
    is_known = (total > NO_VARIANCE) & (min(num_raters, num_prompts) > 1)
    return VarianceParts(by_rater, by_prompt, of_raters, of_prompts, rest, total, np.maximum(degrees, 1), is_known)


def _corrected(count: int) -> float:
    """Return the factor from the spread of `count` estimates to their variance; 0 where one says nothing."""
    return count / (count - 1) if count > 1 else 0.0


def _share(variance: Array, degrees: int) -> Array:
    return variance**2 / degrees if degrees > 0 else np.zeros_like(variance)
