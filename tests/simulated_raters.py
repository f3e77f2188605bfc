"""Simulated raters, for tests and benchmarks of the statistics alone; no ballot of theirs is ever reported as people's.

A rater ranks by utility: what the method is worth, the rater's taste for it, how the prompt suits it, and chance.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Population(NamedTuple):
    """Whom, and for what, raters and prompts are drawn from."""

    worths: tuple[float, ...]  # of each method
    rater_sd: float  # of a rater's taste for a method
    prompt_sd: float  # of how a prompt suits a method
    chance_sd: float = 1.0
    step: float = 0.0  # utilities nearer than about this share a rank; 0: no ties
    num_shown: int | None = None  # of the methods, a ballot; None for all


def draw_ranks(population: Population, num_raters: int, num_prompts: int, rng: np.random.Generator) -> Array:
    """Draw a study: (R, P, M) mid-ranks, NaN where a method was not shown."""
    shape = num_raters, num_prompts, len(population.worths)
    taste = population.rater_sd * rng.standard_normal((num_raters, 1, shape[2]))
    suits = population.prompt_sd * rng.standard_normal((1, num_prompts, shape[2]))
    chance = population.chance_sd * rng.standard_normal(shape)
    return ranked(np.array(population.worths) + taste + suits + chance, population, rng)


def ranked(utilities: Array, population: Population, rng: np.random.Generator) -> Array:
    """Rank (..., M) utilities, the highest first."""
    if population.step:
        utilities = np.round(utilities / population.step)
    if population.num_shown is not None:
        order = np.argsort(rng.random(utilities.shape), -1)
        utilities = np.where(order < population.num_shown, utilities, np.nan)
    above = (utilities[..., None, :] > utilities[..., None]).sum(-1)
    equal = (utilities[..., None, :] == utilities[..., None]).sum(-1)
    return np.where(np.isnan(utilities), np.nan, above + (equal + 1) / 2)


def true_mean_ranks(population: Population, num_draws: int = 400_000) -> Array:
    """Return the population's mean ranks, by so many ballots of as many raters and prompts."""
    rng = np.random.default_rng(20_170_000)
    spread = np.sqrt(population.rater_sd**2 + population.prompt_sd**2 + population.chance_sd**2)
    utilities = np.array(population.worths) + spread * rng.standard_normal((num_draws, len(population.worths)))
    return np.nanmean(ranked(utilities, population, rng), 0)


# Mean ranks 1.37 and 1.99 of the paper's Table 1; the third is what is left of 1 + 2 + 3.
PAPER = Population(worths=(2.169, 1.113, 0.0), rater_sd=0.3, prompt_sd=0.6)
