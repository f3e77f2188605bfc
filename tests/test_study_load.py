"""Two hundred raters at once against the real server, on SQLite and PostgreSQL; SIGKILL in the middle loses nothing."""

import asyncio
from pathlib import Path

import pytest

from benchmarks.study_load import lost_and_doubled, make_study, percentile, put_under_load, serving
from pipeline.evaluation.study.files import Study

pytestmark = [pytest.mark.load, pytest.mark.slow]

NUM_RATERS, NUM_BALLOTS = 200, 4
LONGEST_P99_MS = 300


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("load") / "study"
    return make_study(folder, num_raters=NUM_RATERS, num_prompts=NUM_BALLOTS, num_pictures=1)


def test_two_hundred_raters_lose_and_double_nothing_and_do_not_wait(study: Study, database_url: str) -> None:
    with serving(study.folder, database_url) as server:
        load = asyncio.run(put_under_load(server, study, num_ballots=NUM_BALLOTS, think_sec=2.0))
    assert len(load.acknowledged) == NUM_RATERS * NUM_BALLOTS and load.num_retries == 0
    assert lost_and_doubled(database_url, study, load) == (0, 0)
    assert percentile(load.ballot_sec, 0.99) < LONGEST_P99_MS
    assert percentile(load.page_sec, 0.99) < LONGEST_P99_MS


def test_a_server_killed_under_load_has_every_acknowledged_ballot(study: Study, database_url: str) -> None:
    with serving(study.folder, database_url) as server:
        load = asyncio.run(put_under_load(server, study, num_ballots=NUM_BALLOTS, think_sec=0.0, kill_after=300))
    assert load.num_retries > 0, "raters saw that it was away"
    assert len(load.acknowledged) == NUM_RATERS * NUM_BALLOTS
    assert lost_and_doubled(database_url, study, load) == (0, 0)


def test_a_lost_ballot_would_be_counted(study: Study, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ballots.db'}"
    with serving(study.folder, url) as server:
        load = asyncio.run(put_under_load(server, study, num_ballots=1, think_sec=0.0))
    load.acknowledged.add((0, 3))
    assert lost_and_doubled(url, study, load) == (1, 0)
