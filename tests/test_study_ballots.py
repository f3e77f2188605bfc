"""The ballot box, on SQLite and on PostgreSQL: what was given is there, once, whatever comes twice or at once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.evaluation.study.answers import Ballot
from pipeline.evaluation.study.ballots import BallotBox, Conflict, Progress

STUDY = "a" * 64


def one(rater: int = 0, slot: int = 0, revision: int = 0, rank: int = 1, study_id: str = STUDY) -> Ballot:
    ranks = {"left": rank, "right": 2}
    return Ballot(study_id, rater, slot, revision, ranks, {"left": 2, "right": 2}, 12.5, "simulated")


@pytest.fixture
def box(database_url: str) -> Iterator[BallotBox]:
    box = BallotBox(database_url)
    yield box
    box.close()


def test_what_was_given_is_there_for_who_opens_it_again(database_url: str) -> None:
    ballots = [one(rater, slot) for rater in (0, 1) for slot in range(3)]
    first = BallotBox(database_url)
    for ballot in reversed(ballots):
        first.give(ballot)
    first.close()
    again = BallotBox(database_url)
    assert again.all(STUDY) == ballots
    again.close()


def test_the_same_ballot_twice_is_one(box: BallotBox) -> None:
    box.give(one())
    box.give(one()._replace(seconds=99.0))
    assert box.all(STUDY) == [one()]


def test_another_answer_under_the_same_name_is_refused_and_the_first_stays(box: BallotBox) -> None:
    box.give(one())
    with pytest.raises(Conflict, match="ballot 1 was already given, with another answer"):
        box.give(one(rank=2))
    assert box.all(STUDY) == [one()]


def test_a_ballot_that_is_taken_back_can_be_given_anew_and_its_old_form_cannot(box: BallotBox) -> None:
    box.give(one())
    box.withdraw(STUDY, 0, 0, 0)
    box.withdraw(STUDY, 0, 0, 0)
    assert box.all(STUDY) == [] and box.progress(STUDY, 0) == Progress((), {0: 1})
    with pytest.raises(Conflict, match="ballot 1 was taken back since this page was opened"):
        box.give(one())  # the old form, replayed
    assert box.all(STUDY) == []
    box.give(one(revision=1, rank=2))
    assert box.all(STUDY) == [one(revision=1, rank=2)]
    progress = box.progress(STUDY, 0)
    assert progress == Progress((0,), {0: 2})
    assert (progress.revision_of(0), progress.revision_of(1)) == (1, 0)


def test_a_ballot_that_was_given_anew_in_a_later_file_takes_the_place_of_the_first(box: BallotBox) -> None:
    box.bring_in([one(), one(slot=1)])
    later = [one(), one(slot=1, revision=1, rank=2), one(slot=2)]
    for _ in range(2):
        box.bring_in(later)
        assert box.all(STUDY) == later
    box.bring_in([one(slot=1), one(slot=1, revision=2), one(rater=1, revision=3)])  # two files of one rater at once
    assert box.all(STUDY) == [one(), one(slot=1, revision=2), one(slot=2), one(rater=1, revision=3)]


def test_of_files_that_disagree_with_what_is_kept_or_each_other_nothing_is_brought_in(box: BallotBox) -> None:
    box.give(one(slot=1, revision=1))
    for first in (one(slot=1, rank=2), one(slot=1, revision=1, rank=2)):
        with pytest.raises(Conflict, match="of rater 1's ballot 2, so nothing was brought in: take it back on the"):
            box.bring_in([one(), first])
    with pytest.raises(Conflict, match="of rater 2's ballot 1"):
        box.bring_in([one(), one(rater=1), one(rater=1, rank=2)])
    assert box.all(STUDY) == [one(slot=1, revision=1)]


def test_a_new_database_can_be_opened_by_many_at_once(database_url: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        boxes = list(pool.map(BallotBox, [database_url] * 8))
    for box in boxes:
        box.give(one())
        box.close()


def test_progress_goes_on_at_the_first_gap(box: BallotBox) -> None:
    assert box.progress(STUDY, 0).next_slot == 0
    for slot in (0, 1, 3):
        box.give(one(slot=slot))
    assert box.progress(STUDY, 0).next_slot == 2
    assert box.progress(STUDY, 1).next_slot == 0


def test_studies_do_not_see_each_others_ballots(box: BallotBox) -> None:
    box.give(one())
    box.give(one(study_id="b" * 64))
    assert [ballot.study_id for ballot in box.all(STUDY)] == [STUDY]
    assert box.progress("c" * 64, 0).given == ()


def test_many_at_once_lose_and_double_nothing(box: BallotBox) -> None:
    ballots = [one(rater, slot) for rater in range(20) for slot in range(5)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(box.give, [*ballots, *reversed(ballots)]))
    assert box.all(STUDY) == ballots


def test_of_two_answers_at_once_one_is_kept_and_the_other_told(box: BallotBox) -> None:
    def give(rank: int) -> str:
        try:
            box.give(one(rank=rank))
        except Conflict:
            return "refused"
        return "kept"

    with ThreadPoolExecutor(2) as pool:
        results = sorted(pool.map(give, (1, 2)))
    assert results == ["kept", "refused"] and len(box.all(STUDY)) == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:////nowhere/at/all.db", "cannot be opened: unable to open database file"),
        ("postgresql+psycopg://me:s3cret@localhost:1/db", r"postgresql\+psycopg://me:\*\*\*@localhost:1/db cannot be"),
        ("nonsense", "cannot be opened: Could not parse"),
        ("oracle+nothing://a/b", "cannot be opened"),
    ],
)
def test_a_database_that_cannot_be_had_is_named_without_its_password(url: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        BallotBox(url)
    assert "s3cret" not in str(error.value) and "STUDY_DATABASE_URL" in str(error.value)
