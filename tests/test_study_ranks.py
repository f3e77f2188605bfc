"""Ballots as arrays, and whose of them count: checks, repeats and times."""

import numpy as np
import pytest

from pipeline.evaluation.study.answers import Ballot
from pipeline.evaluation.study.design import Check, CheckKind
from pipeline.evaluation.study.files import Key, Study
from pipeline.evaluation.study.ranks import Attention, attention_of, exclusions, passes, rank_arrays, reversed_share
from tests.study_data import ballots_of, write_inputs, write_study

RULES = {"max_failed_checks": 1, "max_reversed_share": 0.5, "min_median_sec": 5.0, "min_answered_share": 0.5}
BACKWARDS = ("real_test of another caption", "untrained", "stage1", "stackgan", "real_test")


@pytest.fixture(scope="module")
def study_and_key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Key]:
    folder = tmp_path_factory.mktemp("study")
    write_inputs(folder)
    return write_study(folder)


def test_ranks_are_among_the_methods_alone_and_checks_and_repeats_are_left_out(
    study_and_key: tuple[Study, Key],
) -> None:
    study, key = study_and_key
    arrays = rank_arrays(study, key, [*ballots_of(study, key, 0), *ballots_of(study, key, 3, BACKWARDS)])
    assert arrays.raters == (0, 3)
    for question in ("quality", "match"):
        ranks = arrays.ranks[question]
        assert ranks.shape == (2, 6, 2), "six captions are ranked, two methods"
        np.testing.assert_array_equal(ranks[0], [[2, 1]] * 6)  # stackgan before stage1, whatever the control is
        np.testing.assert_array_equal(ranks[1], [[1, 2]] * 6)


def test_positions_are_places_on_the_page_among_all_candidates(study_and_key: tuple[Study, Key]) -> None:
    study, key = study_and_key
    positions = rank_arrays(study, key, ballots_of(study, key, 1)).positions
    prompts = [prompt for prompt in study.prompts if prompt not in key.checks]
    repeats = {slot for rater, slot in key.first_slots if rater == 1}
    for slot, showing in enumerate(study.showings[1]):
        if showing.prompt_id in prompts and slot not in repeats:
            expected = {key.method_of[candidate]: place for place, candidate in enumerate(showing.candidate_ids, 1)}
            found = positions[0, prompts.index(showing.prompt_id)]
            assert found.tolist() == [expected["stage1"], expected["stackgan"]]


def test_ballots_that_were_not_given_are_not_a_number(study_and_key: tuple[Study, Key]) -> None:
    study, key = study_and_key
    ranks = rank_arrays(study, key, ballots_of(study, key, 0)[:3]).ranks["quality"]
    assert 0 < np.isnan(ranks).sum() < ranks.size


def test_who_looks_passes_and_who_answers_backwards_does_not(study_and_key: tuple[Study, Key]) -> None:
    study, key = study_and_key
    ballots = [*ballots_of(study, key, 0), *ballots_of(study, key, 1, BACKWARDS, seconds=2.0)]
    good, bad = attention_of(study, key, ballots)
    assert (good.num_checks, good.num_failed_checks, good.reversed_share) == (3, 0, 0)
    assert (bad.num_checks, bad.num_failed_checks, bad.reversed_share, bad.median_sec) == (3, 3, 0, 2.0)
    assert [(one.rater, one.rule, one.value) for one in exclusions([good, bad], **RULES)] == [
        (1, "max_failed_checks", 3),
        (1, "min_median_sec", 2.0),
    ]


def one_ballot(quality: dict[str, int], match: dict[str, int] | None = None) -> Ballot:
    return Ballot("s", 0, 0, 0, quality, match or quality, 9.0, "simulated")


@pytest.mark.parametrize(
    ("kind", "quality", "match", "expected"),
    [
        ("real", {"a": 1, "b": 2, "c": 3}, {"a": 3, "b": 2, "c": 1}, True),
        ("real", {"a": 1, "b": 1, "c": 3}, {"a": 1, "b": 2, "c": 3}, False),  # a tie is not before
        ("real", {"a": 2, "b": 1, "c": 3}, {"a": 1, "b": 2, "c": 3}, False),
        ("shuffled", {"a": 3, "b": 1, "c": 1}, {"a": 2, "b": 3, "c": 1}, True),
        ("shuffled", {"a": 1, "b": 2, "c": 3}, {"a": 2, "b": 2, "c": 1}, False),
        ("shuffled", {"a": 1, "b": 2, "c": 3}, {"a": 3, "b": 2, "c": 1}, False),
    ],
)
def test_a_check_asks_of_one_question_what_its_kind_is(
    kind: CheckKind, quality: dict[str, int], match: dict[str, int], expected: bool
) -> None:
    check = Check(kind, "a", "b" if kind == "shuffled" else None)
    assert passes(check, one_ballot(quality, match)) is expected


def test_the_share_of_reversed_pairs_counts_a_tie_as_half() -> None:
    first = one_ballot({"a": 1, "b": 2, "c": 3})
    assert reversed_share([(first, first)]) == 0
    assert reversed_share([(first, one_ballot({"a": 3, "b": 2, "c": 1}))]) == 1
    assert reversed_share([(first, one_ballot({"a": 1, "b": 1, "c": 1}))]) == 0.5
    assert reversed_share([(first, one_ballot({"a": 2, "b": 1, "c": 3}))]) == pytest.approx(1 / 3)
    tied = one_ballot({"a": 1, "b": 1, "c": 1})
    assert reversed_share([]) is None and reversed_share([(tied, tied)]) is None


def test_each_rule_excludes_beyond_its_limit_and_not_at_it() -> None:
    attention = Attention(
        rater=2, num_planned=10, num_given=5, num_checks=4, num_failed_checks=1, reversed_share=0.5, median_sec=5.0
    )
    assert exclusions([attention], **RULES) == []
    for change, rule in (
        ({"num_given": 4}, "min_answered_share"),
        ({"num_failed_checks": 2}, "max_failed_checks"),
        ({"reversed_share": 0.51}, "max_reversed_share"),
        ({"median_sec": 4.9}, "min_median_sec"),
    ):
        (found,) = exclusions([attention._replace(**change)], **RULES)
        assert (found.rater, found.rule) == (2, rule)
    assert exclusions([attention._replace(reversed_share=None)], **RULES) == []
