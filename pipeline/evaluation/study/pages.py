"""The study's HTML, out of the templates of this folder: what raters' pages and the admin's have in common.

Nothing here knows the key: what a page is made of is the study that raters may see.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.evaluation.study.design import Showing
from pipeline.evaluation.study.files import Study
from pipeline.evaluation.study.questions import QUESTIONS
from pipeline.evaluation.templates import page_template


class CandidateView(NamedTuple):
    """One candidate as the page shows it."""

    letter: str
    candidate_id: str
    picture_sources: list[str]


class BallotView(NamedTuple):
    """One ballot as the page shows it."""

    number: int  # from 1
    caption: str
    candidates: list[CandidateView]
    form: str  # what the form carries back


def ballot_view(study: Study, showing: Showing, number: int, form: str, source: Callable[[str], str]) -> BallotView:
    """Lay a showing out.

    Args:
        study: that it is of.
        showing: the prompt, and its candidates in their order.
        number: of the ballot, from 1.
        form: what it carries back.
        source: makes a picture's id into what <img src> holds.
    """
    prompt = study.prompts[showing.prompt_id]
    candidates = [
        CandidateView(chr(ord("A") + place), candidate, [source(picture) for picture in prompt.candidates[candidate]])
        for place, candidate in enumerate(showing.candidate_ids)
    ]
    return BallotView(number, prompt.caption, candidates, form)


def render(template: str, **values: Any) -> str:
    """Fill a template of this folder; every value is escaped."""
    return page_template(f"study/{template}").render(questions=QUESTIONS, **values)


def stylesheet() -> str:
    """Return the report's styles and the study's own."""
    folder = Path(__file__).parent
    return (folder.parent / "page.css").read_text(encoding="utf-8") + script("study.css")


def script(name: str) -> str:
    """Return a file of this folder that pages carry."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
