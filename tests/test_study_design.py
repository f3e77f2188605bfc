"""The plan of a study: blocks are balanced, orders are by chance and fixed, checks and repeats are in their places."""

from collections import Counter
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.study.design import (
    Blinding,
    Check,
    Plan,
    PlannedPrompt,
    Prompt,
    balanced_blocks,
    plan_showings,
)

METHODS = [f"method_{index}" for index in range(6)]


def planned(number: int, methods: list[str], check: Check | None = None) -> PlannedPrompt:
    candidates = {f"candidate_{number}_{method}": (f"picture_{number}_{method}",) for method in methods}
    method_of = dict(zip(candidates, methods, strict=True))
    return PlannedPrompt(Prompt(f"prompt_{number}", f"caption {number}", candidates), method_of, check)


def plan(
    num_prompts: int = 50,
    methods: list[str] = METHODS,
    controls: tuple[str, ...] = (),
    methods_per_ballot: int = 0,
    num_checks: int = 0,
    num_repeats: int = 0,
    num_raters: int = 10,
    seed: int = 0,
) -> Plan:
    prompts = [planned(number, [*methods, *controls]) for number in range(num_prompts)]
    checks = [planned(num_prompts + n, ["real", "other"], Check("real", "real", None)) for n in range(num_checks)]
    return plan_showings(
        [*prompts, *checks],
        methods=methods,
        controls=controls,
        methods_per_ballot=methods_per_ballot,
        num_raters=num_raters,
        num_repeats=num_repeats,
        seed=seed,
    )


def method_of(candidate: str) -> str:
    return candidate.split("_", 2)[2]


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 8), st.data())
def test_blocks_are_balanced_over_all_within_raters_and_within_prompts(num_methods: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(2, num_methods - 1))
    seed = data.draw(st.integers(0, 100))
    chosen = balanced_blocks(num_methods, size, num_prompts=30, num_raters=8, seed=seed)
    shown = np.array([[[method in block for method in range(num_methods)] for block in row] for row in chosen])
    assert (shown.sum(2) == size).all()
    for axis, spread in ((0, 4), (1, 4)):
        counts = shown.sum(axis)
        assert np.ptp(counts, axis=1).max() <= spread
    pairs = [int((shown[..., a] & shown[..., b]).sum()) for a, b in combinations(range(num_methods), 2)]
    assert np.ptp(pairs) <= 6


def test_too_many_blocks_are_refused_with_a_remedy() -> None:
    with pytest.raises(
        ValueError, match="20 methods make 184756 blocks of 10; at most 2000 are planned: leave methods"
    ):
        balanced_blocks(20, 10, num_prompts=1, num_raters=1, seed=0)


def test_incomplete_ballots_show_all_methods_and_pairs_about_equally_often() -> None:
    showings = plan(methods_per_ballot=3, controls=("control",)).showings
    for of_rater in showings:
        counts = Counter(method_of(candidate) for showing in of_rater for candidate in showing.candidate_ids)
        assert counts.pop("control") == 50
        assert set(counts) == set(METHODS) and max(counts.values()) - min(counts.values()) <= 2
    pairs = Counter(
        tuple(sorted(pair))
        for of_rater in showings
        for showing in of_rater
        for pair in combinations([method_of(c) for c in showing.candidate_ids if "control" not in c], 2)
    )
    assert len(pairs) == comb(6, 2) and sum(pairs.values()) == 500 * 3
    assert max(pairs.values()) <= 1.06 * min(pairs.values())
    by_prompt = Counter(
        (showing.prompt_id, method_of(candidate))
        for of_rater in showings
        for showing in of_rater
        for candidate in showing.candidate_ids
    )
    assert {by_prompt[f"prompt_{p}", method] for p in range(50) for method in METHODS} <= {3, 4, 5, 6, 7}


def test_every_rater_sees_every_prompt_once_in_an_order_of_their_own() -> None:
    showings = plan(num_checks=3).showings
    orders = [tuple(showing.prompt_id for showing in of_rater) for of_rater in showings]
    assert all(sorted(order) == sorted(f"prompt_{n}" for n in range(53)) for order in orders)
    assert len(set(orders)) == len(orders)


def test_every_method_stands_at_every_position_about_equally_often() -> None:
    counts = Counter(
        (method_of(candidate), position)
        for of_rater in plan().showings
        for showing in of_rater
        for position, candidate in enumerate(showing.candidate_ids)
    )
    assert len(counts) == 36 and max(abs(count - 500 / 6) for count in counts.values()) < 4 * np.sqrt(500 / 6)


def test_repeats_are_of_ranked_ballots_of_the_first_half_and_come_in_the_second() -> None:
    found = plan(num_prompts=20, num_checks=4, num_repeats=3)
    checks = {f"prompt_{number}" for number in range(20, 24)}
    assert Counter(repeat.rater for repeat in found.repeats) == dict.fromkeys(range(10), 3)
    for repeat in found.repeats:
        first, again = (found.showings[repeat.rater][slot] for slot in (repeat.first_slot, repeat.slot))
        assert first.prompt_id == again.prompt_id not in checks
        assert sorted(first.candidate_ids) == sorted(again.candidate_ids)
        assert repeat.first_slot < 12 <= repeat.slot
    assert all(len(of_rater) == 20 + 4 + 3 for of_rater in found.showings)


def test_a_seed_is_a_plan() -> None:
    assert plan(num_repeats=2) == plan(num_repeats=2) != plan(num_repeats=2, seed=1)


def test_a_further_rater_changes_nothing_for_the_others() -> None:
    assert plan(num_raters=11, num_repeats=2).showings[:10] == plan(num_raters=10, num_repeats=2).showings


def test_blinded_names_are_stable_and_tell_nothing_without_the_secret() -> None:
    blinding = Blinding(b"secret")
    names = {blinding.name("candidate", number, method) for number in range(100) for method in METHODS}
    assert len(names) == 600 and all(len(name) == 16 and int(name, 16) >= 0 for name in names)
    assert blinding.name("candidate", 1, "a") == Blinding(b"secret").name("candidate", 1, "a")
    assert blinding.name("candidate", 1, "a") != Blinding(b"other").name("candidate", 1, "a")
