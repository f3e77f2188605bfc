"""The study's web site: raters' pages, their pictures, and the admin's view, on FastAPI.

A request is checked before anything is read or kept: its link's signature, where it came from, its size, its form's
signature, and its ranks against what was shown. What is refused is logged without the link. Pictures are found by
their id among the study's, so no request makes a path.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any
from urllib.parse import parse_qsl

from anyio import to_thread
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.evaluation.study.answers import (
    LONGEST_SEC,
    Ballot,
    Refused,
    checked_ranks,
    ranks_of_form,
    require_rater,
)
from pipeline.evaluation.study.ballot_tables import csv_bytes, parquet_bytes
from pipeline.evaluation.study.ballots import BallotBox, Conflict, DatabaseError, Progress
from pipeline.evaluation.study.files import Study, read_key, require_own_code
from pipeline.evaluation.study.links import Form, Links
from pipeline.evaluation.study.mean_ranks import mean_ranks
from pipeline.evaluation.study.pages import ballot_view, render, script, stylesheet
from pipeline.evaluation.study.questions import QUESTIONS
from pipeline.evaluation.study.ranks import rank_arrays

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 1024
MAX_FIELDS = 1000
NUM_THREADS = 2
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",  # other sites never learn a link; forms still say where they come from
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def create_app(study: Study, box: BallotBox, links: Links, allowed_hosts: Sequence[str]) -> FastAPI:
    """Return the site of a study.

    Args:
        study: what raters are shown.
        box: where ballots go.
        links: signs and reads personal links.
        allowed_hosts: names that the site answers to; others are refused (DNS rebinding).

    Raises:
        ValueError: the study has no key of its own, or was prepared with other pages than these.
    """
    require_own_code(study)
    site = _Site(study, box, links)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=_few_threads)
    routes: list[tuple[str, str, Callable[..., Any]]] = [
        ("GET", "/", site.front),
        ("GET", "/favicon.ico", site.no_icon),
        ("GET", "/assets/study.css", site.styles),
        ("GET", "/assets/ballot.js", site.scripts),
        ("GET", "/r/{token}/", site.welcome),
        ("GET", "/r/{token}/ballot", site.ballot),
        ("POST", "/r/{token}/ballot", site.give),
        ("POST", "/r/{token}/undo", site.undo),
        ("GET", "/r/{token}/pictures/{picture_id}.png", site.picture),
        ("GET", "/admin/{token}/", site.admin),
        ("GET", "/admin/{token}/ballots.csv", site.ballots_csv),
        ("GET", "/admin/{token}/ballots.parquet", site.ballots_parquet),
    ]
    for method, path, page in routes:
        app.add_api_route(path, page, methods=[method], response_model=None)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(Conflict, _refused)
    app.add_exception_handler(StarletteHTTPException, _refused)
    app.add_exception_handler(DatabaseError, _without_database)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False)
    app.add_middleware(_Headers)
    return app


@asynccontextmanager
async def _few_threads(_: FastAPI) -> AsyncGenerator[None]:
    """Answer NUM_THREADS requests at a time: with anyio's forty, threads wait for Python's lock more than they work."""
    to_thread.current_default_thread_limiter().total_tokens = NUM_THREADS
    yield


async def _form_fields(request: Request) -> dict[str, str]:
    """Read a form of at most MAX_BODY_BYTES that this site's own page sent.

    Raises:
        HTTPException: 403 of another site's page, 413 too large, 422 not a form.
    """
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    is_foreign = origin is not None and origin.partition("://")[2] != request.headers.get("host")
    if is_foreign or site not in (None, "same-origin", "none"):
        raise HTTPException(403, "this was sent by another site's page")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, "this is larger than any ballot")
    try:
        fields = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise HTTPException(422, "this is not a form") from None
    if len(dict(fields)) != len(fields):
        raise HTTPException(422, "a field is given twice")
    return dict(fields)


Fields = Annotated[dict[str, str], Depends(_form_fields)]


class _Site:
    """The pages. Each is a plain function that waits for the database in a thread of its own."""

    def __init__(self, study: Study, box: BallotBox, links: Links):
        self._study, self._key, self._box, self._links = study, read_key(study), box, links
        self._styles, self._scripts = stylesheet(), script("ballot.js")

    def front(self) -> Response:
        return _message(200, "A study of pictures", "Please open the personal link that you were sent.")

    def no_icon(self) -> Response:
        return Response(status_code=204)

    def styles(self) -> Response:
        return Response(self._styles, media_type="text/css")

    def scripts(self) -> Response:
        return Response(self._scripts, media_type="text/javascript")

    def welcome(self, token: str) -> Response:
        rater = self._rater(token)
        first = self._study.showings[rater][0]
        candidates = self._study.prompts[first.prompt_id].candidates
        return HTMLResponse(
            render(
                "welcome.html.j2",
                rater=rater,
                num_ballots=len(self._study.showings[rater]),
                num_given=len(self._progress(rater).given),
                num_candidates=len(first.candidate_ids),
                num_pictures=len(candidates[first.candidate_ids[0]]),
                ballot_url=f"/r/{token}/ballot",
            )
        )

    def ballot(self, token: str) -> Response:
        rater = self._rater(token)
        progress, showings = self._progress(rater), self._study.showings[rater]
        slot = progress.next_slot
        undo: dict[str, Any] = {}
        if progress.given:
            last = max(progress.given)
            undo = {
                "undo_url": f"/r/{token}/undo",
                "undo_form": self._links.form(rater, last, progress.revision_of(last)),
                "undo_number": last + 1,
            }
        if slot >= len(showings):
            text = "All your ballots are given. You can close this page."
            return _message(200, "That was all: thank you", text, **undo)
        form = self._links.form(rater, slot, progress.revision_of(slot))
        view = ballot_view(
            self._study, showings[slot], slot + 1, form, lambda picture: f"/r/{token}/pictures/{picture}.png"
        )
        return HTMLResponse(
            render("ballot.html.j2", ballot=view, num_ballots=len(showings), num_given=len(progress.given), **undo)
        )

    def give(self, token: str, fields: Fields) -> Response:
        rater = self._rater(token)
        form = self._own_form(rater, fields.get("form", ""))
        showing = self._study.showings[rater][form.slot]
        quality, match = (
            checked_ranks(showing, ranks_of_form(fields, question.name), question.name) for question in QUESTIONS
        )
        self._box.give(
            Ballot(
                study_id=self._study.study_id,
                rater=rater,
                slot=form.slot,
                revision=form.revision,
                quality=quality,
                match=match,
                seconds=min(form.sec_since_shown, LONGEST_SEC),
                origin="web",
            )
        )
        return RedirectResponse(f"/r/{token}/ballot", 303)

    def undo(self, token: str, fields: Fields) -> Response:
        rater = self._rater(token)
        form = self._own_form(rater, fields.get("undo", ""))
        progress = self._progress(rater)
        # The form names the ballot, so that a double click takes back one.
        if progress.given and (form.slot, form.revision) == (max(progress.given), progress.revision_of(form.slot)):
            self._box.withdraw(self._study.study_id, rater, form.slot, form.revision)
        return RedirectResponse(f"/r/{token}/ballot", 303)

    def picture(self, token: str, picture_id: str) -> Response:
        self._rater(token)
        try:
            path = self._study.picture_path(picture_id)
        except KeyError:
            raise HTTPException(404, "there is no such picture in this study") from None
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != self._study.picture_sha256[picture_id]:
            raise HTTPException(503, "the study was prepared anew: whoever serves it has to start the server again")
        # No file name, date or hash of the file goes along: they could tell when, and so by what, it was made.
        headers = {"Cache-Control": "private, max-age=86400, immutable"}
        return Response(content, media_type="image/png", headers=headers)

    def admin(self, token: str) -> Response:
        self._links.require_admin(token)
        ballots = self._box.all(self._study.study_id)
        given = Counter(ballot.rater for ballot in ballots)
        raters = [
            {
                "number": rater + 1,
                "num_given": given[rater],
                "num_planned": len(showings),
                "url": f"/r/{self._links.rater(rater)}/",
            }
            for rater, showings in enumerate(self._study.showings)
        ]
        return HTMLResponse(
            render(
                "admin.html.j2",
                study_id=self._study.study_id,
                raters=raters,
                num_done=sum(rater["num_given"] == rater["num_planned"] for rater in raters),
                num_ballots=len(ballots),
                num_planned=sum(map(len, self._study.showings)),
                num_simulated=sum(ballot.origin == "simulated" for ballot in ballots),
                mean_ranks=self._mean_ranks(ballots),
            )
        )

    def ballots_csv(self, token: str) -> Response:
        return self._table(token, csv_bytes, "text/csv")

    def ballots_parquet(self, token: str) -> Response:
        return self._table(token, parquet_bytes, "application/vnd.apache.parquet")

    def _table(self, token: str, write: Callable[..., bytes], media_type: str) -> Response:
        self._links.require_admin(token)
        ballots = self._box.all(self._study.study_id)
        return Response(write(self._study, self._key, ballots), media_type=media_type)

    def _mean_ranks(self, ballots: Sequence[Ballot]) -> Mapping[str, list[str]]:
        if not ballots:
            return {}
        by_question = [mean_ranks(ranks) for ranks in rank_arrays(self._study, self._key, ballots).ranks.values()]
        return {
            method: [f"{means[place]:.2f}" for means in by_question] for place, method in enumerate(self._key.methods)
        }

    def _rater(self, token: str) -> int:
        rater = self._links.read_rater(token)
        require_rater(self._study, rater)
        return rater

    def _own_form(self, rater: int, token: str) -> Form:
        form = self._links.read_form(token)
        if form.rater != rater:
            raise Refused("this form is another rater's")
        return form

    def _progress(self, rater: int) -> Progress:
        return self._box.progress(self._study.study_id, rater)


def _message(status: int, title: str, text: str, **more: Any) -> Response:
    return HTMLResponse(render("message.html.j2", title=title, text=text, **more), status)


async def _refused(request: Request, error: Exception) -> Response:
    """Answer a refused request with a page, and log why; the link, which is a key, is not logged."""
    status = 403 if isinstance(error, Refused) else 409 if isinstance(error, Conflict) else _status_of(error)
    reason = str(getattr(error, "detail", None) or error)
    role, _, rest = request.url.path.lstrip("/").partition("/")
    link, _, page = rest.partition("/")
    logger.warning("refused (%d): %s /%.10s/…/%.40s: %s", status, request.method, role, page, reason)
    # Who came with a link of this study, and another tab, say, finds the way back.
    onward = {"action_url": f"/r/{link}/ballot", "action": "Go on"} if isinstance(error, Conflict) else {}
    return _message(status, "This was not accepted", reason[:1].upper() + reason[1:] + ".", **onward)


async def _without_database(request: Request, error: Exception) -> Response:
    """Say that nothing was kept, and how to go on."""
    logger.error("the database does not answer: %s: %s", request.method, str(error).splitlines()[0])
    text = (
        "The database of this study does not answer. If you sent a ballot, it was not kept: go back, and send it again."
    )
    return _message(503, "Please try again", text)


def _status_of(error: Exception) -> int:
    assert isinstance(error, StarletteHTTPException), error
    return error.status_code


class _Headers:
    """Adds HEADERS to every reply that does not set them itself."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name.lower() for name, _ in message["headers"]}
                added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(pair for pair in added if pair[0] not in own)]
            await send(message)

        await self._app(scope, receive, send_with_headers)
