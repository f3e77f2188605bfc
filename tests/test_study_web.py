"""The study's site over HTTP: what a rater gets, and everything that is refused. Browsers: test_study_browser.py."""

import io
import re
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from html import unescape
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest
import requests
from PIL import Image

from pipeline.data.tables import read_images
from pipeline.evaluation.study.ballots import BallotBox
from pipeline.evaluation.study.files import Key, Study, read_key, read_study
from pipeline.evaluation.study.links import Links
from pipeline.evaluation.study.offline import offline_page
from pipeline.evaluation.study.web import MAX_BODY_BYTES, create_app
from tests.evaluation_data import write_crops, write_samples
from tests.study_data import METHODS, SECRET, VARIATIONS, ranks_by, write_inputs, write_study
from tests.study_server import Rater, fields_of, form_of, served, undo_of

BEST_FIRST = ("real_test", "stackgan", "stage1", "untrained")


@dataclass
class Site:
    """A served study."""

    url: str
    study: Study
    key: Key
    box: BallotBox
    links: Links

    def rater(self, number: int = 0) -> Rater:
        return Rater(self.url, self.links.rater(number))

    def ranks(self, rater: int, slot: int) -> dict[str, int]:
        return dict(ranks_by(BEST_FIRST, self.study.showings[rater][slot], self.key))

    def give(self, rater: int, slot: int) -> requests.Response:
        """Give a ballot in the order of the site."""
        fields = self.rater(rater).open_ballot()
        ranks = self.ranks(rater, slot)
        return self.rater(rater).give(ranks, ranks, fields["form"])

    @property
    def ballots(self) -> list[tuple[int, int]]:
        return [(ballot.rater, ballot.slot) for ballot in self.box.all(self.study.study_id)]


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_inputs(folder)
    write_study(folder)
    return folder / "study"


@pytest.fixture
def site(study_dir: Path, database_url: str) -> Iterator[Site]:
    study = read_study(study_dir)
    links = Links(SECRET, study.study_id, lifetime_days=1)
    box = BallotBox(database_url)
    with served(study, box, links) as url:
        yield Site(url, study, read_key(study), box, links)
    box.close()


def test_a_rater_answers_all_ballots_one_after_the_other_and_is_thanked(site: Site) -> None:
    rater, showings = site.rater(2), site.study.showings[2]
    assert "Start" in rater.get("/").text
    for slot, showing in enumerate(showings):
        page = rater.get().text
        assert f"Ballot {slot + 1} <small>of {len(showings)}</small>" in page
        assert site.study.prompts[showing.prompt_id].caption in page
        ranks = site.ranks(2, slot)
        reply = rater.give(ranks, ranks, form_of(page))
        assert reply.status_code == 303 and reply.headers["location"].endswith("/ballot")
    assert "thank you" in rater.get().text
    ballots = site.box.all(site.study.study_id)
    assert [(ballot.rater, ballot.slot) for ballot in ballots] == [(2, slot) for slot in range(len(showings))]
    for ballot in ballots:
        assert ballot.quality == ballot.match == site.ranks(2, ballot.slot)
        assert ballot.origin == "web" and 0 <= ballot.seconds < 60


def test_candidates_and_pictures_stand_in_the_raters_own_order(site: Site) -> None:
    for number in range(2):
        showing = site.study.showings[number][0]
        page = site.rater(number).get().text
        shown = list(dict.fromkeys(re.findall(r"quality_([0-9a-f]{16})", page)))
        assert tuple(shown) == showing.candidate_ids
        pictures = re.findall(r"pictures/([0-9a-f]{16})\.png", page)
        candidates = site.study.prompts[showing.prompt_id].candidates
        assert pictures == [picture for candidate in showing.candidate_ids for picture in candidates[candidate]]


def test_a_rater_can_leave_and_come_back_and_take_the_last_ballot_back(site: Site) -> None:
    site.give(0, 0)
    site.give(0, 1)
    assert "You have given 2 of" in site.rater().get("/").text and "Ballot 3 " in site.rater().get().text
    stale = site.rater().open_ballot()["form"]
    undo = {"undo": undo_of(site.rater().get().text)}
    for _ in range(3):  # a double click is one
        assert site.rater().post("/undo", undo).status_code == 303
    assert site.ballots == [(0, 0)]
    ranks = {candidate: 1 for candidate in site.study.showings[0][1].candidate_ids}
    assert site.rater().give(ranks, ranks, site.rater().open_ballot()["form"]).status_code == 303
    kept = site.box.all(site.study.study_id)[-1]
    assert (kept.slot, kept.revision, kept.quality) == (1, 1, ranks), "ties may be"
    assert "Take back ballot 2<" in site.rater().get().text
    third = site.ranks(0, 2)
    assert site.rater().give(third, third, stale).status_code == 303, "the page of before still holds"


def test_only_the_last_ballot_can_be_taken_back_and_only_by_its_rater(site: Site) -> None:
    assert "Take back" not in site.rater().get().text
    site.give(0, 0)
    first = undo_of(site.rater().get().text)
    site.give(0, 1)
    for undo, status in ((first, 303), (site.rater().open_ballot()["form"], 303), ("", 403), ("forged", 403)):
        assert site.rater().post("/undo", {"undo": undo}).status_code == status
        assert site.ballots == [(0, 0), (0, 1)]
    site.give(1, 0)
    assert site.rater(1).post("/undo", {"undo": first}).status_code == 403
    assert site.ballots == [(0, 0), (0, 1), (1, 0)]


def test_a_ballot_sent_twice_is_one_and_another_answer_to_it_is_refused(site: Site) -> None:
    rater, form, ranks = site.rater(), site.rater().open_ballot()["form"], site.ranks(0, 0)
    assert [rater.give(ranks, ranks, form).status_code for _ in range(3)] == [303, 303, 303]
    reversed_ranks = {candidate: 4 - rank for candidate, rank in ranks.items()}
    reply = rater.give(reversed_ranks, ranks, form)
    assert reply.status_code == 409 and "already given" in reply.text
    assert site.ballots == [(0, 0)] and site.box.all(site.study.study_id)[0].quality == ranks


def test_a_form_that_was_taken_back_meanwhile_is_refused_with_the_way_on(site: Site) -> None:
    form, ranks = site.rater().open_ballot()["form"], site.ranks(0, 0)
    site.rater().give(ranks, ranks, form)
    site.rater().post("/undo", {"undo": undo_of(site.rater().get().text)})
    reply = site.rater().give(ranks, ranks, form)
    assert reply.status_code == 409 and "was taken back since this page was opened" in reply.text
    assert f'href="/r/{site.links.rater(0)}/ballot"' in reply.text and site.ballots == []


def test_a_ballot_that_the_database_refuses_is_said_to_be_lost(tmp_path: Path, study_dir: Path) -> None:
    study = read_study(study_dir)
    links, box = Links(SECRET, study.study_id, 1), BallotBox(f"sqlite:///{tmp_path / 'ballots.db'}")
    with served(study, box, links) as url:
        rater = Rater(url, links.rater(0))
        form = rater.open_ballot()["form"]
        with sqlite3.connect(tmp_path / "ballots.db") as database:
            database.execute("ALTER TABLE ballots RENAME TO elsewhere")
        ranks = dict.fromkeys(study.showings[0][0].candidate_ids, 1)
        reply = rater.give(ranks, ranks, form)
    box.close()
    assert reply.status_code == 503 and "it was not kept: go back, and send it again" in reply.text
    assert reply.headers["cache-control"] == "no-store"


def test_a_study_that_is_prepared_anew_under_a_server_is_no_longer_shown(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    study, _ = write_study(tmp_path)
    links, box = Links(SECRET, study.study_id, 1), BallotBox(f"sqlite:///{tmp_path / 'ballots.db'}")
    picture = next(iter(study.picture_sha256))
    with served(study, box, links) as url:
        for changed in ({"picture_size": 64}, {"seed": 4}):
            write_study(tmp_path, **changed)
            reply = Rater(url, links.rater(0)).get(f"/pictures/{picture}.png")
            assert reply.status_code == 503 and "start the server again" in reply.text
        assert requests.get(f"{url}/admin/{links.admin()}/").status_code == 200, "of the study that it serves"
    box.close()


def test_a_study_is_asked_by_the_code_that_it_was_prepared_with(tmp_path: Path, study_dir: Path) -> None:
    study = replace(read_study(study_dir), code_sha256="0" * 64)
    links, box = Links(SECRET, study.study_id, 1), BallotBox(f"sqlite:///{tmp_path / 'ballots.db'}")
    for ask in (lambda: create_app(study, box, links, ["localhost"]), lambda: offline_page(study, 0, links.rater(0))):
        with pytest.raises(ValueError, match="prepared with other pages or questions than those of this version"):
            ask()
    box.close()


def test_forged_foreign_and_expired_links_are_refused_and_logged_without_the_link(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    genuine = site.links.rater(0)
    another_study = Links(SECRET, "f" * 64, 1).rater(0)
    beyond = site.links.rater(len(site.study.showings))
    for token in ("x", genuine[:-4] + "AAAA", another_study, site.links.admin(), beyond, "%00", "..%2f.."):
        for path in ("/", "/ballot"):
            assert Rater(site.url, token).get(path).status_code in (403, 404), token
        assert Rater(site.url, token).post("/ballot", {"form": "x"}).status_code in (403, 404)
    assert requests.get(f"{site.url}/admin/{genuine}/").status_code == 403
    assert requests.get(f"{site.url}/admin/{genuine}/ballots.csv").status_code == 403
    assert site.ballots == []
    assert "not one of this study" in caplog.text and another_study not in caplog.text and genuine not in caplog.text


def test_an_expired_link_says_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    token = site.links.rater(0)
    monkeypatch.setattr(site.links, "_lifetime_sec", -1)
    reply = Rater(site.url, token).get()
    assert reply.status_code == 403 and "has expired: ask for a new one" in reply.text


def test_another_raters_form_is_refused(site: Site) -> None:
    form = site.rater(1).open_ballot()["form"]
    ranks = site.ranks(1, 0)
    reply = site.rater(0).give(ranks, ranks, form)
    assert reply.status_code == 403 and "another rater" in reply.text and site.ballots == []


@pytest.mark.parametrize("value", ["0", "4", "-1", "1.5", "", "one", "1e0", "٣", "99999999999999999999"])
def test_ranks_out_of_range_are_refused(site: Site, value: str) -> None:
    ranks = site.ranks(0, 0)
    first = next(iter(ranks))
    form = site.rater().open_ballot()["form"]
    reply = site.rater().post("/ballot", fields_of(ranks, ranks, form) | {f"match_{first}": value})
    assert reply.status_code == 403 and "from 1 to 3" in reply.text and site.ballots == []


def test_missing_foreign_and_doubled_ranks_are_refused(site: Site) -> None:
    ranks = site.ranks(0, 0)
    first = next(iter(ranks))
    form = site.rater().open_ballot()["form"]
    fields = fields_of(ranks, ranks, form)
    without = {name: value for name, value in fields.items() if name != f"quality_{first}"}
    for changed, status in (
        (without, 403),
        (fields | {"quality_0000000000000000": 1}, 403),
        ({"form": form}, 403),
        ({}, 403),
        (fields | {"form": site.links.rater(0)}, 403),
    ):
        assert site.rater().post("/ballot", changed).status_code == status
    doubled = [*fields.items(), (f"quality_{first}", 2)]
    assert site.rater().post("/ballot", doubled).status_code == 422
    assert site.ballots == []


def test_what_another_sites_page_sends_is_refused(site: Site) -> None:
    ranks, form = site.ranks(0, 0), site.rater().open_ballot()["form"]
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": site.url.replace("127.0.0.1", "localhost")},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        assert site.rater().give(ranks, ranks, form, headers=headers).status_code == 403, headers
        assert site.rater().post("/undo", {"undo": form}, headers=headers).status_code == 403
    assert site.ballots == []
    own = {"Origin": site.url, "Sec-Fetch-Site": "same-origin"}
    assert site.rater().give(ranks, ranks, form, headers=own).status_code == 303


def test_another_host_name_is_refused(site: Site) -> None:
    reply = requests.get(f"{site.url}/r/{site.links.rater(0)}/", headers={"Host": "evil.example"})
    assert reply.status_code == 400 and "ballot" not in reply.text


def test_oversized_bodies_are_refused_with_or_without_a_length(site: Site) -> None:
    rater = site.rater()
    assert rater.post("/ballot", {"form": "x" * MAX_BODY_BYTES}).status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield b"x" * 10_000

    with suppress(requests.ConnectionError):  # it may be cut off before it has sent all
        assert rater.session.post(rater.url + "/ballot", data=endless()).status_code == 413
    assert rater.session.post(rater.url + "/ballot", data=b"\xff\xfe=1").status_code == 422
    many = "&".join(f"a{number}=" for number in range(2000))
    assert rater.session.post(rater.url + "/ballot", data=many).status_code == 422
    assert rater.get().status_code == 200 and site.ballots == []


@pytest.mark.parametrize(
    "path",
    [
        "/pictures/../key.json",
        "/pictures/..%2fkey.json",
        "/pictures/..%2f..%2fstudy%2fkey.png",
        "/pictures/%2e%2e/%2e%2e/key.json",
        "/pictures/key.png",
        "/pictures/0000000000000000.png",
        "/pictures//etc/passwd",
        "/key.json",
        "/study.json",
    ],
)
def test_no_path_leads_out_of_the_pictures(site: Site, path: str) -> None:
    address = urlsplit(site.url)
    with socket.create_connection((address.hostname, address.port)) as connection:  # as it is, no client mends it
        request = f"GET /r/{site.links.rater(0)}{path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        reply = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    assert reply.startswith("HTTP/1.1 404") and "method_of" not in reply and "root:" not in reply


def test_no_header_name_or_metadata_of_a_picture_tells_its_method(site: Site, study_dir: Path) -> None:
    by_method: dict[str, set[tuple[str, ...]]] = {}
    for prompt in site.study.prompts.values():
        for candidate, pictures in prompt.candidates.items():
            for picture in pictures:
                reply = site.rater().get(f"/pictures/{picture}.png")
                names = tuple(sorted(name.lower() for name in reply.headers))
                assert not {"last-modified", "etag", "server", "content-disposition", "x-method"} & set(names)
                with Image.open(io.BytesIO(reply.content)) as image:
                    assert image.info == {} and image.getexif() == {}
                    shape = (str(image.size), image.mode, str(image.format), reply.headers["content-type"], *names)
                by_method.setdefault(site.key.method_of[candidate], set()).add(shape)
    assert len(by_method) == 5 and len({frozenset(shapes) for shapes in by_method.values()}) == 1


def test_nothing_a_raters_browser_gets_names_a_method_or_a_check(site: Site) -> None:
    tellers = [*site.key.methods, *site.key.controls, "real_test", "untrained", "shuffled", "repeat", "attention"]
    pages: set[str] = set()
    for slot, showing in enumerate(site.study.showings[0]):
        reply = site.rater().get()
        text = (reply.text + str(reply.headers)).lower()
        assert not [word for word in tellers if word.lower() in text]
        page = re.sub("/r/[^/]+/", "", reply.text.replace(form_of(reply.text), ""))
        page = page.replace(site.study.prompts[showing.prompt_id].caption, "")
        page = re.sub(r"[0-9a-f]{16}|\d+", "#", page)
        pages.add(" ".join(re.sub('<form method="post" action=.*?</form>', "", page).split()))
        site.give(0, slot)
    assert len(pages) == 1, "but for ids, captions and numbers all pages are alike, checks and repeats too"
    for path in ("/assets/study.css", "/assets/ballot.js"):
        text = requests.get(site.url + path).text.lower()
        assert not [word for word in (*site.key.methods, *site.key.controls, "real_test") if word in text]


def test_pages_forbid_foreign_resources_and_framing(site: Site) -> None:
    for reply in (site.rater().get(), site.rater().get("/"), requests.get(site.url + "/"), Rater(site.url, "x").get()):
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert reply.headers["referrer-policy"] == "same-origin" and "server" not in reply.headers
        assert not re.findall(r'(?:src|href|action)="(?!/)', reply.text), "every address is of this site"


SCRIPT = "a bird</title><script>alert('x')</script> & \"quoted\" <img src=x onerror=alert(1)>"


def test_a_script_in_a_caption_is_shown_as_text(tmp_path: Path) -> None:
    write_crops(tmp_path / "crops")
    images = [{**image, "captions": [SCRIPT]} for image in read_images(tmp_path / "crops", "test")]
    write_samples(tmp_path / "samples" / "variations", images, METHODS, copies=VARIATIONS)
    study, _ = write_study(tmp_path)
    links = Links(SECRET, study.study_id, 1)
    box = BallotBox(f"sqlite:///{tmp_path / 'ballots.db'}")
    with served(study, box, links) as url:
        page = Rater(url, links.rater(0)).get().text
    box.close()
    for text in (page, offline_page(study, 0, links.rater(0))):
        assert "<script>alert" not in text and "onerror=alert(1)>" not in text.replace("&gt;", "")
        assert SCRIPT in unescape(text)


def test_the_admin_sees_progress_mean_ranks_and_links_that_work(site: Site) -> None:
    for slot in range(3):
        site.give(1, slot)
    admin = f"{site.url}/admin/{site.links.admin()}"
    page = requests.get(f"{admin}/").text
    num_planned = sum(map(len, site.study.showings))
    assert f"3 of {num_planned} ballots are given" in page and "0 of 4 raters have finished" in page
    assert page.count('scope="row"') == 4 + 2 and "stackgan" in page and "untrained" not in page
    links = re.findall(r'href="(/r/[^"]+)"', page)
    assert len(links) == 4 and all(requests.get(site.url + link).status_code == 200 for link in links)
    table = pq.read_table(io.BytesIO(requests.get(f"{admin}/ballots.parquet").content))
    assert table.num_rows == 3 * 3 * 2 and set(table.column("rater").to_pylist()) == {2}
    assert len(requests.get(f"{admin}/ballots.csv").text.splitlines()) == 1 + 18


def test_the_admins_page_without_ballots_says_so_in_place_of_numbers(site: Site) -> None:
    page = requests.get(f"{site.url}/admin/{site.links.admin()}/").text
    assert "No ballot is given yet" in page and "ballots are given" in page and "nan" not in page.lower()


def test_unknown_pages_and_methods_are_refused(site: Site) -> None:
    assert requests.get(f"{site.url}/docs").status_code == 404
    assert requests.get(f"{site.url}/openapi.json").status_code == 404
    assert requests.put(f"{site.url}/r/{site.links.rater(0)}/ballot").status_code == 405
