"""`stackgan study`: links that work, ballot files brought in whole or not at all, and a server that keeps to itself."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import requests

from pipeline.cli import main
from pipeline.evaluation.study.ballot_tables import read_ballots
from pipeline.evaluation.study.ballots import BallotBox
from pipeline.evaluation.study.files import Key, Study, read_key, read_study
from pipeline.evaluation.study.links import Links
from tests.study_data import SECRET, ballots_of, write_inputs, write_study

Document = dict[str, Any]


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_inputs(folder)
    write_study(folder, pictures_per_caption=1)
    return folder / "study"


class Commands:
    """The command as a person at a terminal has it, with a database of its own."""

    def __init__(self, study_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch):
        self.study_dir, self.folder, self._capsys, self._patch = study_dir, folder, capsys, patch
        self.study: Study = read_study(study_dir)
        self.key: Key = read_key(self.study)
        self.links = Links(SECRET, self.study.study_id, lifetime_days=60)
        self.database_url = f"sqlite:///{folder / 'ballots.db'}"
        patch.setenv("STUDY_SECRET", SECRET)
        patch.setenv("STUDY_DATABASE_URL", self.database_url)

    def __call__(self, command: str, *arguments: object) -> list[str]:
        self._patch.setattr(
            "sys.argv", ["stackgan", "study", command, "--study", str(self.study_dir), *map(str, arguments)]
        )
        main()
        return self._capsys.readouterr().out.splitlines()

    def refusal(self, command: str, *arguments: object) -> str:
        """Return the line with which the command ends."""
        with pytest.raises(SystemExit) as ended:
            self(command, *arguments)
        message = str(ended.value)
        assert message.startswith("error: ") and "\n" not in message
        return message

    def ballot_file(self, rater: int = 1, **changed: Any) -> Document:
        """Return what a rater's offline page saves."""
        ballots = [
            {
                "slot": one.slot,
                "revision": 0,
                "quality": dict(one.quality),
                "match": dict(one.match),
                "seconds": 12.5,
            }
            for one in ballots_of(self.study, self.key, rater)
        ]
        document = {"contract": "ballot_file/v1", "study_id": self.study.study_id, "token": self.links.rater(rater)}
        return document | {"ballots": ballots} | changed

    def write(self, document: object, name: str = "ballots.json") -> Path:
        path = self.folder / name
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    def kept(self) -> list[tuple[int, int]]:
        box = BallotBox(self.database_url)
        found = [(ballot.rater, ballot.slot) for ballot in box.all(self.study.study_id)]
        box.close()
        return found


@pytest.fixture
def study(
    study_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Commands:
    return Commands(study_dir, tmp_path, capsys, monkeypatch)


def test_links_are_of_the_admin_and_of_every_rater(study: Commands) -> None:
    admin, *raters = study("links", "--base-url", "https://study.example/")
    assert admin.startswith("admin: https://study.example/admin/")
    study.links.require_admin(admin.split("/")[-2])
    assert [study.links.read_rater(line.split("/")[-2]) for line in raters] == [0, 1, 2, 3]
    assert raters[2].startswith("rater 3: https://study.example/r/")


def test_offline_pages_are_written_for_the_raters_asked_for(study: Commands) -> None:
    lines = study("offline", "--out", study.folder / "pages", "--rater", 2, "--rater", 4)
    assert lines == [str(study.folder / "pages" / f"rater_{number}.html") for number in (2, 4)]
    text = Path(lines[0]).read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', text), "nothing of it lies elsewhere"
    assert text.count("data:image/jpeg;base64,") == 3 * len(study.study.showings[1])
    for word in (*study.key.methods, *study.key.controls, "real_test"):
        assert word not in text
    assert "--rater 5: the study is planned for raters 1 to 4" in study.refusal("offline", "--out", "x", "--rater", 5)


def test_a_ballot_file_is_brought_in_and_exported(study: Commands) -> None:
    num_ballots = len(study.study.showings[1])
    path = study.write(study.ballot_file())
    for _ in range(2):
        assert study("import", path) == [f"{path}: {num_ballots} ballots of rater 2"]
    assert study.kept() == [(1, slot) for slot in range(num_ballots)]
    (line,) = study("export", "--out", study.folder / "out")
    assert line.endswith(f".parquet: {num_ballots} ballots of 1 of 4 raters")
    parquet_path, csv_path = (
        study.folder / "out" / f"ballots_{study.study.study_id[:12]}{end}" for end in (".parquet", ".csv")
    )
    assert pq.read_table(parquet_path).num_rows == len(csv_path.read_text().splitlines()) - 1 == num_ballots * 3 * 2


def of_ballot(**changed: Any) -> Callable[[Commands], object]:
    """Return a file whose third ballot is changed."""

    def make(study: Commands) -> object:
        document = study.ballot_file()
        document["ballots"][2] |= changed
        return document

    return make


BAD_FILES: dict[str, tuple[Callable[[Commands], object], str]] = {
    "no JSON": (lambda study: "{", "Expecting property name"),
    "deep": (lambda study: "[" * 100_000, "recursion"),
    "a list": (lambda study: [], "not of contract ballot_file/v1"),
    "another contract": (lambda study: study.ballot_file(contract="ballots/v1"), "not of contract ballot_file/v1"),
    "another study": (lambda study: study.ballot_file(study_id="f" * 64), "it is of study 'ffffffffffff'; this one is"),
    "forged": (lambda study: study.ballot_file(token="MQ.x.y"), "not one of this study"),
    "another study's link": (
        lambda study: study.ballot_file(token=Links(SECRET, "f" * 64, 60).rater(1)),
        "not one of this study",
    ),
    "the admin's link": (lambda study: study.ballot_file(token=study.links.admin()), "not one of this study"),
    "a rater who is not planned": (lambda study: study.ballot_file(token=study.links.rater(9)), "planned for 4 raters"),
    "no ballots": (lambda study: study.ballot_file(ballots=[]), "holds no ballot"),
    "ballots that are none": (lambda study: study.ballot_file(ballots="all"), "holds no list of ballots"),
    "a word for a ballot": (lambda study: study.ballot_file(ballots=["one"]), "a ballot is not an object"),
    "a slot beyond": (of_ballot(slot=99), "slot 99 is none of the rater's"),
    "a slot that is true": (of_ballot(slot=True), "slot True is none"),
    "a path for a slot": (of_ballot(slot="../1"), "slot '../1' is none"),
    "no time": (of_ballot(seconds=None), "seconds is None"),
    "a time below 0": (of_ballot(seconds=-1), "seconds is -1"),
    "a time that is no number": (of_ballot(seconds=float("nan")), "seconds is nan"),
    "a time without end": (of_ballot(seconds=-(10**400)), "ballot 3: seconds is -1000"),
    "no revision": (of_ballot(revision=None), "ballot 3: revision is None"),
    "a revision below 0": (
        of_ballot(revision=-1),
        "ballot 3: revision is -1; it must be a whole number from 0 to 10000",
    ),
    "no ranks": (of_ballot(quality=None), "ballot 3 has no ranks of quality"),
    "a rank missing": (of_ballot(match={}), "ballot 3, match: rank every set"),
    "a stranger's rank": (of_ballot(match={"0" * 16: 1}), "ballot 3, match: a rank is of pictures that were not shown"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_ballot_file_is_refused_and_nothing_is_kept(study: Commands, name: str) -> None:
    make, message = BAD_FILES[name]
    good = study.write(study.ballot_file(rater=0), "good.json")
    bad = study.write(make(study), "bad.json")
    refusal = study.refusal("import", good, bad)
    assert message in refusal and "bad.json" in refusal
    assert study.kept() == [], "not even of the good file beside it"


@pytest.mark.parametrize("rank", [0, 4, -1, 1.5, "1", True, None, 10**30])
def test_ranks_of_a_file_are_checked_as_those_of_a_form(study: Commands, rank: object) -> None:
    document = study.ballot_file()
    first = next(iter(document["ballots"][0]["quality"]))
    document["ballots"][0]["quality"][first] = rank
    assert "ballot 1, quality: a rank is a whole number from 1 to 3" in study.refusal("import", study.write(document))
    assert study.kept() == []


def test_a_file_that_disagrees_with_what_was_given_is_refused(study: Commands) -> None:
    study("import", study.write(study.ballot_file()))
    document = study.ballot_file()
    document["ballots"][0]["quality"] = dict.fromkeys(document["ballots"][0]["quality"], 1)
    del document["ballots"][3:]
    assert "another answer is kept of rater 2's ballot 1, so" in study.refusal("import", study.write(document))


def test_a_ballot_that_was_taken_back_and_given_anew_offline_counts(study: Commands) -> None:
    document = study.ballot_file()
    early = study.write({**document, "ballots": document["ballots"][:4]}, "early.json")
    document["ballots"][3] |= {"revision": 1, "match": dict.fromkeys(document["ballots"][3]["match"], 2)}
    document["ballots"][4]["seconds"] = 10**400
    late = study.write(document, "late.json")
    study("import", early)
    study("import", late)
    study("import", late, early)
    box = BallotBox(study.database_url)
    ballots = box.all(study.study.study_id)
    box.close()
    assert [ballot.slot for ballot in ballots] == list(range(len(document["ballots"])))
    assert set(ballots[3].match.values()) == {2} and ballots[4].seconds == 7 * 24 * 3600


def test_a_ballot_that_was_taken_back_is_given_anew_by_a_file(study: Commands) -> None:
    (first, *_) = ballots_of(study.study, study.key, 1)
    box = BallotBox(study.database_url)
    box.give(first)
    box.withdraw(first.study_id, 1, 0, 0)
    box.close()
    study("import", study.write(study.ballot_file()))
    assert study.kept()[0] == (1, 0) and len(study.kept()) == len(study.study.showings[1])


def test_without_ballots_nothing_is_exported(study: Commands) -> None:
    assert study("export", "--out", study.folder / "out") == ["0 ballots are given: nothing is written"]
    assert not (study.folder / "out").exists()


def test_ballots_that_were_all_taken_back_are_no_longer_exported(study: Commands) -> None:
    (ballot, *_) = ballots_of(study.study, study.key, 1)
    box = BallotBox(study.database_url)
    box.give(ballot)
    study("export", "--out", study.folder / "out")
    box.withdraw(ballot.study_id, ballot.rater, ballot.slot, ballot.revision)
    box.close()
    study("export", "--out", study.folder / "out")
    assert read_ballots(study.folder / "out", study.study) == ([], 0)


def test_without_a_study_each_command_says_how_to_make_one(study: Commands, tmp_path: Path) -> None:
    study.study_dir = tmp_path / "nothing"
    for command in ("serve", "links", "export"):
        assert "study.json is missing: run `dvc repro prepare_human_study`" in study.refusal(command)


def test_a_database_that_cannot_be_reached_ends_in_one_line(study: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDY_DATABASE_URL", "postgresql+psycopg://me:s3cret@127.0.0.1:1/x")
    assert "STUDY_DATABASE_URL: postgresql+psycopg://me:***@127.0.0.1:1/x cannot be opened" in study.refusal("export")


def test_links_need_a_lifetime(study: Commands) -> None:
    assert "--days 0.0: give a number above 0" in study.refusal("links", "--days", 0)


def test_the_server_listens_on_this_machine_alone_and_tells_the_admin_where(study: Commands) -> None:
    stackgan = Path(sys.executable).with_name("stackgan")
    command = [stackgan, "study", "serve", "--study", study.study_dir, "--port", "0"]
    process = subprocess.Popen(command, env=os.environ, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = [process.stderr.readline() for _ in range(2)]
        assert "stackgan study links" in lines[0] and "/admin/" in lines[1]
        listening: list[Any] = []
        while not listening:
            assert process.poll() is None
            listening = [c for c in psutil.Process(process.pid).net_connections("tcp") if c.status == "LISTEN"]
        assert {one.laddr.ip for one in listening} == {"127.0.0.1"}
        url = f"http://127.0.0.1:{listening[0].laddr.port}"
        page = requests.get(f"{url}/r/{study.links.rater(0)}/ballot")
        assert page.status_code == 200 and "Ballot 1" in page.text
        admin = lines[1].strip().split("/")[-2]
        assert requests.get(f"{url}/admin/{admin}/").status_code == 200
        requests.get(f"{url}/r/forged/ballot")
    finally:
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[1]
    assert "refused (403): GET /r/…/ballot" in rest and "forged" not in rest
    assert study.links.rater(0) not in rest and "Traceback" not in rest


def test_a_page_for_every_address_asks_for_the_name_that_raters_type(study: Commands) -> None:
    for host in ("0.0.0.0", "::"):
        assert f"--host {host} is every address: give the name that raters type" in study.refusal(
            "serve", "--host", host
        )
