"""Ballots as arrays, and whose of them count.

Checks and repeated ballots say whether a rater looks; they are not among the ranks. Controls are left out of a ballot
and the others ranked anew, so that the mean rank of a method is among those that are compared.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.study.answers import Ballot, Ranks
from pipeline.evaluation.study.design import Check
from pipeline.evaluation.study.files import Key, Study
from pipeline.evaluation.study.mean_ranks import mid_ranks

Array = npt.NDArray[np.float64]
QUESTION_NAMES = ("quality", "match")


class RankArrays(NamedTuple):
    """R raters, P prompts that are ranked (checks are not), M methods; NaN where a method was not ranked."""

    raters: tuple[int, ...]
    ranks: Mapping[str, Array]  # question -> (R, P, M) mid-ranks among the methods
    positions: Array  # (R, P, M), 1 for the first on the page among all candidates


class Attention(NamedTuple):
    """What a rater's ballots say of how they were given."""

    rater: int
    num_planned: int
    num_given: int
    num_checks: int  # real and shuffled ones that were answered
    num_failed_checks: int
    reversed_share: float | None  # of the pairs of repeated ballots; None where none was repeated
    median_sec: float


class Excluded(NamedTuple):
    """A rater whose ballots do not count, and why."""

    rater: int
    rule: str  # key of params.yaml
    value: float


def rank_arrays(study: Study, key: Key, ballots: Sequence[Ballot]) -> RankArrays:
    """Turn ballots into arrays."""
    raters = tuple(sorted({ballot.rater for ballot in ballots}))
    prompts = [prompt for prompt in study.prompts if prompt not in key.checks]
    row_of = {rater: row for row, rater in enumerate(raters)}
    column_of = {prompt: column for column, prompt in enumerate(prompts)}
    place_of = {method: place for place, method in enumerate(key.methods)}
    shape = (len(raters), len(prompts), len(key.methods))
    typed = {question: np.full(shape, np.nan) for question in QUESTION_NAMES}
    positions = np.full(shape, np.nan)
    for ballot in ballots:
        showing = study.showings[ballot.rater][ballot.slot]
        if showing.prompt_id in key.checks or (ballot.rater, ballot.slot) in key.first_slots:
            continue
        cell = row_of[ballot.rater], column_of[showing.prompt_id]
        for position, candidate in enumerate(showing.candidate_ids, 1):
            place = place_of.get(key.method_of[candidate])
            if place is not None:
                positions[*cell, place] = position
                typed["quality"][*cell, place] = ballot.quality[candidate]
                typed["match"][*cell, place] = ballot.match[candidate]
    return RankArrays(raters, {question: mid_ranks(ranks) for question, ranks in typed.items()}, positions)


def attention_of(study: Study, key: Key, ballots: Sequence[Ballot]) -> list[Attention]:
    """Judge every rater by checks, repeats and times."""
    by_rater: dict[int, dict[int, Ballot]] = {}
    for ballot in ballots:
        by_rater.setdefault(ballot.rater, {})[ballot.slot] = ballot
    found: list[Attention] = []
    for rater, of_rater in sorted(by_rater.items()):
        showings = study.showings[rater]
        checks = [
            (key.checks[showings[slot].prompt_id], ballot)
            for slot, ballot in of_rater.items()
            if showings[slot].prompt_id in key.checks
        ]
        pairs = [
            (of_rater[first], ballot)
            for slot, ballot in of_rater.items()
            if (first := key.first_slots.get((rater, slot))) is not None and first in of_rater
        ]
        found.append(
            Attention(
                rater=rater,
                num_planned=len(showings),
                num_given=len(of_rater),
                num_checks=len(checks),
                num_failed_checks=sum(not passes(check, ballot) for check, ballot in checks),
                reversed_share=reversed_share(pairs),
                median_sec=float(np.median([ballot.seconds for ballot in of_rater.values()])),
            )
        )
    return found


def passes(check: Check, ballot: Ballot) -> bool:
    """Say whether a ballot does what an attentive rater does."""
    if check.kind == "real":
        return all(
            ballot.quality[check.better] < rank
            for candidate, rank in ballot.quality.items()
            if candidate != check.better
        )
    assert check.worse is not None
    return ballot.match[check.better] < ballot.match[check.worse]


def reversed_share(pairs: Sequence[tuple[Ballot, Ballot]]) -> float | None:
    """Return the share of pairs of candidates that two ballots of one showing put the other way round; a tie is half.

    Both questions count. A pair that is tied in both ballots is not counted.
    """
    scores: list[float] = []
    for first, second in pairs:
        for one, other in ((first.quality, second.quality), (first.match, second.match)):
            scores += _reversals(one, other)
    return float(np.mean(scores)) if scores else None


def _reversals(one: Ranks, other: Ranks) -> list[float]:
    candidates = sorted(one)
    found: list[float] = []
    for index, a in enumerate(candidates):
        for b in candidates[index + 1 :]:
            signs = int(np.sign(one[a] - one[b])), int(np.sign(other[a] - other[b]))
            if signs != (0, 0):
                found.append((1 - signs[0] * signs[1]) / 2)
    return found


def exclusions(
    attention: Sequence[Attention],
    *,
    max_failed_checks: int,
    max_reversed_share: float,
    min_median_sec: float,
    min_answered_share: float,
) -> list[Excluded]:
    """Apply the rules, which were fixed before there was a ballot; a rater is named with every rule that is broken."""
    found: list[Excluded] = []
    for rater in attention:
        answered = rater.num_given / rater.num_planned
        broken: list[tuple[bool, str, Any]] = [
            (rater.num_failed_checks > max_failed_checks, "max_failed_checks", rater.num_failed_checks),
            ((rater.reversed_share or 0) > max_reversed_share, "max_reversed_share", rater.reversed_share),
            (rater.median_sec < min_median_sec, "min_median_sec", rater.median_sec),
            (answered < min_answered_share, "min_answered_share", answered),
        ]
        found += [Excluded(rater.rater, rule, float(value)) for is_broken, rule, value in broken if is_broken]
    return found
