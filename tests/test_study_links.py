"""Personal links: only what was signed for this study, lately, is accepted."""

import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.evaluation.study.answers import Refused
from pipeline.evaluation.study.links import Links, study_secret

STUDY, SECRET = "a" * 64, "x" * 40


@pytest.fixture
def links() -> Links:
    return Links(SECRET, STUDY, lifetime_days=1)


def test_a_link_names_its_rater(links: Links) -> None:
    assert [links.read_rater(links.rater(rater)) for rater in (0, 7, 300)] == [0, 7, 300]
    links.require_admin(links.admin())


def exchanged(token: str) -> str:
    """Change a letter in the middle of the signature (the last one holds bits that mean nothing)."""
    return token[:-6] + ("A" if token[-6] != "A" else "B") + token[-5:]


@pytest.mark.parametrize("forge", [exchanged, lambda token: "Mg" + token[1:], str.upper])
def test_an_altered_link_is_refused(links: Links, forge: Callable[[str], str]) -> None:
    with pytest.raises(Refused, match="not one of this study"):
        links.read_rater(forge(links.rater(1)))


@pytest.mark.parametrize("token", ["", ".", "a.b.c", "'; DROP TABLE ballots; --", "é" * 50, "x" * 10_000])
def test_what_is_no_link_is_refused(links: Links, token: str) -> None:
    for read in (links.read_rater, links.require_admin, links.read_form):
        with pytest.raises(Refused):
            read(token)


def test_a_link_of_another_study_or_secret_is_refused(links: Links) -> None:
    for other in (Links(SECRET, "b" * 64, 1), Links("y" * 40, STUDY, 1)):
        with pytest.raises(Refused, match="not one of this study"):
            links.read_rater(other.rater(1))


def test_a_link_is_of_one_purpose(links: Links) -> None:
    with pytest.raises(Refused):
        links.require_admin(links.rater(0))
    with pytest.raises(Refused):
        links.read_rater(links.admin())
    with pytest.raises(Refused):
        links.read_form(links.rater(0))


def test_an_expired_link_and_form_are_refused(monkeypatch: pytest.MonkeyPatch, links: Links) -> None:
    rater, form, now = links.rater(1), links.form(1, 0, 0), time.time()
    monkeypatch.setattr(time, "time", lambda: now + 24 * 3600 - 5)
    assert links.read_rater(rater) == 1
    monkeypatch.setattr(time, "time", lambda: now + 24 * 3600 + 5)
    with pytest.raises(Refused, match="has expired: ask for a new one"):
        links.read_rater(rater)
    with pytest.raises(Refused, match="has expired"):
        links.read_form(form)


def test_a_form_says_whose_it_is_and_since_when_it_is_shown(monkeypatch: pytest.MonkeyPatch, links: Links) -> None:
    form, now = links.form(3, 5, 1), time.time()
    monkeypatch.setattr(time, "time", lambda: now + 12.5)
    read = links.read_form(form)
    assert read[:3] == (3, 5, 1) and read.sec_since_shown == pytest.approx(12.5, abs=1)


def test_of_many_who_draw_the_secret_at_once_all_have_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STUDY_SECRET", raising=False)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(study_secret, [tmp_path] * 16))
    assert len(found) == 1 and len(found.pop()) == 64
    assert os.listdir(tmp_path) == ["study_secret"]
    (tmp_path / "study_secret").write_text("")  # as a full disk leaves it
    with pytest.raises(ValueError, match="study_secret holds no whole secret: remove it to draw a new one"):
        study_secret(tmp_path)


def test_the_secret_is_drawn_once_and_readable_by_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STUDY_SECRET", raising=False)
    secret = study_secret(tmp_path / "study")
    assert study_secret(tmp_path / "study") == secret and len(secret) == 64
    assert stat.S_IMODE(os.stat(tmp_path / "study" / "study_secret").st_mode) == 0o600
    monkeypatch.setenv("STUDY_SECRET", "z" * 32)
    assert study_secret(tmp_path / "study") == "z" * 32
    monkeypatch.setenv("STUDY_SECRET", "short")
    with pytest.raises(ValueError, match="STUDY_SECRET is shorter than 32 characters"):
        study_secret(tmp_path / "study")
