"""What each rater is shown, fixed before the first ballot: captions, who stands in them, orders and attention checks.

A prompt is a caption with candidates; a candidate is one method's pictures of it under a name that tells nothing. Where
there are many methods a ballot shows a block of them, blocks chosen so that all methods, and all pairs of them, are
shown about equally often (balanced incomplete blocks; Bailey, Design of Comparative Experiments, 2008, chapter 11).
Three kinds of check tell whether a rater looks: a real picture among generated ones, a real picture that belongs to
another caption, and a ballot asked for twice.
"""

import hashlib
import hmac
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

CheckKind = Literal["real", "shuffled"]
MAX_BLOCKS = 2000
METHOD_WEIGHT = 3  # of a method's count against a pair's; in trials of 4 to 13 methods it kept all within 4 %


class Prompt(NamedTuple):
    """A caption and what may be shown for it."""

    prompt_id: str
    caption: str
    candidates: dict[str, tuple[str, ...]]  # candidate_id -> ids of its pictures


class Showing(NamedTuple):
    """One ballot as a rater gets it."""

    prompt_id: str
    candidate_ids: tuple[str, ...]  # in the order of the page


class Check(NamedTuple):
    """What an attentive rater does at a prompt that is there to see whether they look."""

    kind: CheckKind
    better: str  # candidate_id; of kind real: before all others in quality
    worse: str | None  # of kind shuffled: `better` before this one in the match with the caption


class Repeat(NamedTuple):
    """A ballot that a rater is asked for a second time."""

    rater: int
    slot: int
    first_slot: int


class PlannedPrompt(NamedTuple):
    """A prompt with the names behind it."""

    prompt: Prompt
    method_of: dict[str, str]  # candidate_id -> method
    check: Check | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What every rater sees, slot by slot."""

    showings: tuple[tuple[Showing, ...], ...]  # of each rater
    repeats: tuple[Repeat, ...]


class Blinding:
    """Names that tell nothing to those who do not have its secret: the same for the same study."""

    def __init__(self, secret: bytes):
        """Derive names from `secret`, a hash of what the study is made of."""
        self._secret = secret

    def name(self, *parts: object) -> str:
        """Return 16 hex digits for what `parts` say."""
        return hmac.new(self._secret, repr(parts).encode(), hashlib.sha256).hexdigest()[:16]


def balanced_blocks(
    num_methods: int, block_size: int, *, num_prompts: int, num_raters: int, seed: int
) -> list[list[tuple[int, ...]]]:
    """Choose which methods each rater sees at each prompt.

    One after the other the block is taken, by chance among equals, whose pairs were shown least so far, and whose
    methods least at this prompt and to this rater. So all three stay about balanced; a further rater changes nothing
    for those before.

    Returns:
        num_raters lists of num_prompts blocks of `block_size` methods.

    Raises:
        ValueError: there are more than MAX_BLOCKS to choose from.
    """
    num_blocks = math.comb(num_methods, block_size)
    if num_blocks > MAX_BLOCKS:
        raise ValueError(
            f"{num_methods} methods make {num_blocks} blocks of {block_size}; at most {MAX_BLOCKS} are planned: "
            "leave methods out or show more of them a ballot"
        )
    blocks = list(itertools.combinations(range(num_methods), block_size))
    members = np.array([[method in block for method in range(num_methods)] for block in blocks], np.int64)
    pairs = members[:, :, None] * members[:, None, :] * (1 - np.eye(num_methods, dtype=np.int64))
    pair_counts = np.zeros((num_methods, num_methods), np.int64)
    prompt_counts = np.zeros((num_prompts, num_methods), np.int64)
    chosen: list[list[tuple[int, ...]]] = []
    for rater in range(num_raters):
        rng = np.random.default_rng([seed, 0, rater])
        rater_counts = np.zeros(num_methods, np.int64)
        of_rater: list[tuple[int, ...]] = []
        for prompt in range(num_prompts):
            cost = np.tensordot(pairs, pair_counts, 2)
            cost += members @ (METHOD_WEIGHT * (prompt_counts[prompt] + rater_counts))
            block = int(rng.choice(np.flatnonzero(cost == cost.min())))
            pair_counts += members[block][:, None] * members[block]
            prompt_counts[prompt] += members[block]
            rater_counts += members[block]
            of_rater.append(blocks[block])
        chosen.append(of_rater)
    return chosen


def plan_showings(
    prompts: Sequence[PlannedPrompt],
    *,
    methods: Sequence[str],
    controls: Sequence[str],
    methods_per_ballot: int,
    num_raters: int,
    num_repeats: int,
    seed: int,
) -> Plan:
    """Plan every rater's ballots.

    Args:
        prompts: ranked ones and checks. A check is shown whole; of the others each rater sees a block of methods and
            all controls.
        methods: that are compared.
        controls: shown in every ballot.
        methods_per_ballot: k of them; 0 for all.
        num_raters: R.
        num_repeats: ballots that each rater is asked for twice, the second time in the second half.
        seed: of orders and blocks.
    """
    size = methods_per_ballot or len(methods)
    ranked = [one for one in prompts if one.check is None]
    checks = [one for one in prompts if one.check is not None]
    blocks = balanced_blocks(len(methods), size, num_prompts=len(ranked), num_raters=num_raters, seed=seed)
    showings: list[tuple[Showing, ...]] = []
    repeats: list[Repeat] = []
    for rater, of_rater in enumerate(blocks):
        rng = np.random.default_rng([seed, 1, rater])
        planned = [
            *(
                _showing(one, {*controls, *(methods[index] for index in block)}, rng)
                for one, block in zip(ranked, of_rater, strict=True)
            ),
            *(_showing(one, set(one.method_of.values()), rng) for one in checks),
        ]
        order = rng.permutation(len(planned)).tolist()
        is_ranked = [index < len(ranked) for index in order]
        with_repeats, found = _with_repeats([planned[index] for index in order], is_ranked, num_repeats, rng)
        showings.append(tuple(with_repeats))
        repeats += [Repeat(rater, slot, first) for slot, first in found]
    return Plan(showings=tuple(showings), repeats=tuple(repeats))


def _showing(planned: PlannedPrompt, shown: set[str], rng: np.random.Generator) -> Showing:
    ids = [candidate for candidate, method in planned.method_of.items() if planned.check is not None or method in shown]
    return Showing(planned.prompt.prompt_id, tuple(ids[index] for index in rng.permutation(len(ids)).tolist()))


def _with_repeats(
    showings: list[Showing], is_ranked: Sequence[bool], num_repeats: int, rng: np.random.Generator
) -> tuple[list[Showing], list[tuple[int, int]]]:
    """Ask for ballots of the first half once more in the second, in another order; also return (slot, first slot)."""
    half = (len(showings) + 1) // 2
    able = [slot for slot in range(half) if is_ranked[slot]]
    firsts = rng.permutation(able).tolist()[:num_repeats]
    earliest = min(half + 2, len(showings))  # never soon after the first
    places = sorted(rng.integers(earliest, len(showings) + 1, len(firsts)).tolist())
    longer = list(showings)
    found: list[tuple[int, int]] = []
    for already, (first, place) in enumerate(zip(firsts, places, strict=True)):
        again = showings[first]
        order = rng.permutation(len(again.candidate_ids)).tolist()
        ids = tuple(again.candidate_ids[index] for index in order)
        longer.insert(place + already, Showing(again.prompt_id, ids))
        found.append((place + already, first))
    return longer, found
