"""A rater's answer to one showing, and whether what came in, from a page's form or a file, is one."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.evaluation.study.design import Showing
from pipeline.evaluation.study.files import Study

LONGEST_SEC = 7 * 24 * 3600.0  # a page left open; more is no measurement

Ranks = Mapping[str, int]  # candidate_id -> rank, 1 is best


class Ballot(NamedTuple):
    """One rater's answer to one showing."""

    study_id: str
    rater: int
    slot: int
    revision: int  # 0, and one more each time it was taken back and given again
    quality: Ranks
    match: Ranks
    seconds: float  # from the page's being shown to its being sent
    origin: str  # web, offline, or simulated: the last in tests alone


class Refused(ValueError):
    """A link, form, file or answer that is not accepted."""


def checked_ranks(showing: Showing, ranks: Mapping[str, Any], question: str) -> Ranks:
    """Return the ranks of exactly the candidates shown, each 1 to how many they are; ties may be.

    Raises:
        Refused: a candidate is missing or was not shown, or a rank is out of range.
    """
    shown = set(showing.candidate_ids)
    if set(ranks) - shown:
        raise Refused(f"{question}: a rank is of pictures that were not shown")
    if shown - set(ranks):
        raise Refused(f"{question}: rank every set of pictures")
    for rank in ranks.values():
        if type(rank) is not int or not 1 <= rank <= len(shown):
            raise Refused(f"{question}: a rank is a whole number from 1 to {len(shown)}")
    return {candidate: int(ranks[candidate]) for candidate in showing.candidate_ids}


def ranks_of_form(fields: Mapping[str, str], question: str) -> dict[str, Any]:
    """Pick a question's ranks out of a form's fields; what is not a number stays as it is, to be refused."""
    prefix = f"{question}_"
    return {
        name.removeprefix(prefix): int(value) if value.isascii() and value.isdigit() and len(value) < 4 else value
        for name, value in fields.items()
        if name.startswith(prefix)
    }


def require_rater(study: Study, rater: int) -> None:
    """Check that a study has this rater.

    Raises:
        Refused: it was planned for fewer.
    """
    if not 0 <= rater < study.num_raters:
        raise Refused(f"the study is planned for {study.num_raters} raters; this is number {rater + 1}")
