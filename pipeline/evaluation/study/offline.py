"""The study as one HTML file for use without a connection, and the ballot file that it saves."""

import base64
import io
from pathlib import Path

from PIL import Image

from pipeline.evaluation.study.answers import LONGEST_SEC, Ballot, Refused, checked_ranks, require_rater
from pipeline.evaluation.study.files import Study, require_own_code
from pipeline.evaluation.study.links import Links
from pipeline.evaluation.study.pages import ballot_view, render, script, stylesheet

FILE_CONTRACT = "ballot_file/v1"
MAX_REVISION = 10_000
JPEG_QUALITY = 92  # of every picture alike; lossless ones of a whole study would not fit a message


def offline_page(study: Study, rater: int, token: str) -> str:
    """Return a rater's whole study as one HTML file, which saves a ballot file.

    Args:
        study: that it is of.
        rater: whose ballots it holds.
        token: of the rater's link: the ballot file carries it, so that it can be trusted.

    Raises:
        ValueError: the study was prepared with other pages than these.
    """
    require_own_code(study)
    ballots = [
        ballot_view(study, showing, slot + 1, str(slot), lambda picture: _jpeg_uri(study.picture_path(picture)))
        for slot, showing in enumerate(study.showings[rater])
    ]
    return render(
        "offline.html.j2",
        ballots=ballots,
        study_id=study.study_id,
        token=token,
        rater=rater,
        styles=stylesheet(),
        scripts=script("ballot.js"),
    )


def _jpeg_uri(path: Path) -> str:
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def ballots_of_file(document: object, study: Study, links: Links) -> list[Ballot]:
    """Read a ballot file that an offline page saved.

    Raises:
        Refused: it is no ballot file, is of another study, its rater's link is not genuine, or an answer is not valid.
    """
    if not isinstance(document, dict) or document.get("contract") != FILE_CONTRACT:
        raise Refused(f"it is not of contract {FILE_CONTRACT}: import the file that the page saved")
    if document.get("study_id") != study.study_id:
        raise Refused(f"it is of study {str(document.get('study_id'))[:12]!r}; this one is {study.study_id[:12]!r}")
    rater = links.read_rater(str(document.get("token")))
    require_rater(study, rater)
    answers = document.get("ballots")
    if not isinstance(answers, list):
        raise Refused("it holds no list of ballots")
    return [_ballot(answer, study, rater) for answer in answers]


def _ballot(answer: object, study: Study, rater: int) -> Ballot:
    if not isinstance(answer, dict):
        raise Refused("a ballot is not an object")
    slot, seconds, revision = answer.get("slot"), answer.get("seconds"), answer.get("revision")
    if type(slot) is not int or not 0 <= slot < len(study.showings[rater]):
        raise Refused(f"slot {slot!r} is none of the rater's {len(study.showings[rater])}")
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds < float("inf"):
        raise Refused(f"ballot {slot + 1}: seconds is {seconds!r}; it must be a number from 0")
    if type(revision) is not int or not 0 <= revision <= MAX_REVISION:
        raise Refused(
            f"ballot {slot + 1}: revision is {revision!r}; it must be a whole number from 0 to {MAX_REVISION}"
        )
    showing = study.showings[rater][slot]
    ranks = {question: answer.get(question) for question in ("quality", "match")}
    for question, given in ranks.items():
        if not isinstance(given, dict):
            raise Refused(f"ballot {slot + 1} has no ranks of {question}")
    return Ballot(
        study_id=study.study_id,
        rater=rater,
        slot=slot,
        revision=revision,
        quality=checked_ranks(showing, ranks["quality"] or {}, f"ballot {slot + 1}, quality"),
        match=checked_ranks(showing, ranks["match"] or {}, f"ballot {slot + 1}, match"),
        seconds=float(min(seconds, LONGEST_SEC)),
        origin="offline",
    )
