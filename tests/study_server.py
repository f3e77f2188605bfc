"""A study's site on a port of this machine, in a thread of the test, and a rater who uses it by HTTP."""

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import unescape

import requests
import uvicorn

from pipeline.evaluation.study.ballots import BallotBox
from pipeline.evaluation.study.files import Study
from pipeline.evaluation.study.links import Links
from pipeline.evaluation.study.web import create_app


@contextmanager
def served(study: Study, box: BallotBox, links: Links) -> Iterator[str]:
    """Serve a study on a free port, and yield its address."""
    app = create_app(study, box, links, ("127.0.0.1", "localhost"))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False, server_header=False))
    ready = threading.Event()
    start = server.startup

    async def startup(sockets=None) -> None:
        await start(sockets)
        ready.set()

    server.startup = startup
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert ready.wait(30)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


class Rater:
    """What a browser without scripts does."""

    def __init__(self, base_url: str, token: str):
        self.url = f"{base_url}/r/{token}"
        self.session = requests.Session()

    def get(self, path: str = "/ballot") -> requests.Response:
        return self.session.get(self.url + path)

    def post(self, path: str, fields: Mapping[str, object], **options) -> requests.Response:
        return self.session.post(self.url + path, data=fields, allow_redirects=False, **options)

    def open_ballot(self) -> dict[str, str]:
        """Return the fields of the ballot that is next, each radio button's name with an empty value."""
        page = self.get().text
        fields = dict.fromkeys(re.findall(r'type="radio" name="([^"]+)"', page), "")
        return fields | {"form": form_of(page)}

    def give(self, quality: Mapping[str, int], match: Mapping[str, int], form: str, **options) -> requests.Response:
        return self.post("/ballot", fields_of(quality, match, form), **options)


def form_of(page: str) -> str:
    (form,) = re.findall(r'name="form" value="([^"]+)"', page)
    return unescape(form)


def undo_of(page: str) -> str:
    (undo,) = re.findall(r'name="undo" value="([^"]+)"', page)
    return unescape(undo)


def fields_of(quality: Mapping[str, int], match: Mapping[str, int], form: str) -> dict[str, object]:
    return {
        "form": form,
        **{f"quality_{candidate}": rank for candidate, rank in quality.items()},
        **{f"match_{candidate}": rank for candidate, rank in match.items()},
    }
