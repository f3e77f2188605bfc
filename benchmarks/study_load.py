"""Raters answering a study at once, by HTTP against `stackgan study serve`: latencies, and whether a ballot is lost.

Every rater opens a ballot, looks at it for a while (drawn between nothing and twice --think-sec) and sends it; with
--pictures a browser's fetching of the pictures is part of it. The server is a process of its own, on SQLite or on
--database; --kill sends it SIGKILL in the middle and starts it again, while raters keep trying. At the end every
ballot that was acknowledged is looked for in the database. `--raters 200 --ballots 10` sets the size.

The baseline is the same machine answering with a page that needs no database, asked one request after the other: how
many times that a ballot takes when all raters are there.
"""

import argparse
import asyncio
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path

import aiohttp
import numpy as np
from PIL import Image

from benchmarks.measure import tell
from pipeline.evaluation.study.ballots import BallotBox
from pipeline.evaluation.study.design import Blinding, PlannedPrompt, Prompt, plan_showings
from pipeline.evaluation.study.files import Study, read_study, write_study
from pipeline.evaluation.study.links import Links

SECRET = "of a benchmark, and longer than thirty-two characters"
METHODS = ("one", "two", "three")
PICTURE_SIZE = 256
RETRY_SEC = 0.05  # from one try to the next while the server is away
DEADLINE_SEC = 120.0  # a rater who gets no answer for so long gives up


@dataclass
class Load:
    """What raters saw of the server."""

    page_sec: list[float] = field(default_factory=list)
    ballot_sec: list[float] = field(default_factory=list)
    picture_sec: list[float] = field(default_factory=list)
    acknowledged: set[tuple[int, int]] = field(default_factory=set)  # rater, slot
    num_retries: int = 0


def make_study(folder: Path, *, num_raters: int, num_prompts: int, num_pictures: int) -> Study:
    """Write a study of noise, whose pictures are as large as they can be; each one has an id of its own."""
    blinding, rng = Blinding(os.urandom(32)), np.random.default_rng(0)
    planned: list[PlannedPrompt] = []
    (folder / "pictures").mkdir(parents=True)
    for number in range(num_prompts):
        candidates = {
            blinding.name(number, method): tuple(blinding.name(number, method, n) for n in range(num_pictures))
            for method in METHODS
        }
        for pictures in candidates.values():
            for picture in pictures:
                pixels = rng.integers(0, 256, (PICTURE_SIZE, PICTURE_SIZE, 3), np.uint8)
                Image.fromarray(pixels).save(folder / "pictures" / f"{picture}.png", compress_level=1)
        prompt = Prompt(blinding.name(number), f"a bird, number {number}", candidates)
        planned.append(PlannedPrompt(prompt, dict(zip(candidates, METHODS, strict=True)), None))
    plan = plan_showings(
        planned, methods=METHODS, controls=(), methods_per_ballot=0, num_raters=num_raters, num_repeats=0, seed=0
    )
    write_study(folder, planned, plan, methods=METHODS, controls=())
    return read_study(folder)


class Server:
    """`stackgan study serve` as a process that can be killed and started again on the same port."""

    def __init__(self, study_dir: Path, database_url: str):
        """Choose a free port."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        stackgan = Path(sys.executable).with_name("stackgan")
        self._command = [stackgan, "study", "serve", "--study", study_dir, "--port", str(self.port)]
        self._env = {**os.environ, "STUDY_DATABASE_URL": database_url, "STUDY_SECRET": SECRET}
        self.start()

    def start(self) -> None:
        """Start it."""
        self._process = subprocess.Popen(self._command, env=self._env, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        """End it without any warning."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


@contextmanager
def serving(study_dir: Path, database_url: str) -> Iterator[Server]:
    """Run a server until the end of the block."""
    server = Server(study_dir, database_url)
    try:
        yield server
    finally:
        server.kill()


async def put_under_load(
    server: Server,
    study: Study,
    *,
    num_ballots: int,
    think_sec: float,
    with_pictures: bool = False,
    kill_after: int | None = None,
) -> Load:
    """Let every rater of a study answer at once.

    Args:
        server: that is asked.
        study: whose raters answer.
        num_ballots: of each rater.
        think_sec: mean time from a page's arrival to its being sent.
        with_pictures: fetch a ballot's pictures too.
        kill_after: SIGKILL the server once so many ballots are acknowledged, and start it again.
    """
    load, links = Load(), Links(SECRET, study.study_id, lifetime_days=1)
    connector = aiohttp.TCPConnector(limit=0, limit_per_host=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        await _answered(session.get, server.url + "/", load)  # it is up
        load.num_retries = 0
        raters = [
            _rate(session, server.url, links.rater(rater), study, rater, num_ballots, think_sec, with_pictures, load)
            for rater in range(study.num_raters)
        ]
        tasks = [asyncio.create_task(rater) for rater in raters]
        if kill_after is not None:
            while len(load.acknowledged) < kill_after:
                await asyncio.sleep(0)
            server.kill()
            server.start()
        await asyncio.gather(*tasks)
    return load


async def _rate(
    session: aiohttp.ClientSession,
    url: str,
    token: str,
    study: Study,
    rater: int,
    num_ballots: int,
    think_sec: float,
    with_pictures: bool,
    load: Load,
) -> None:
    address, draws = f"{url}/r/{token}", random.Random(rater)
    await asyncio.sleep(draws.uniform(0, 2 * think_sec))  # they do not all open their page in one moment
    for slot in range(num_ballots):
        started = time.perf_counter()
        page = await _answered(session.get, f"{address}/ballot", load)
        load.page_sec.append(time.perf_counter() - started)
        if with_pictures:
            for picture in re.findall(r'src="/r/[^/]+/(pictures/\w+\.png)"', page):
                started = time.perf_counter()
                await _answered(session.get, f"{address}/{picture}", load, is_text=False)
                load.picture_sec.append(time.perf_counter() - started)
        (form,) = re.findall(r'name="form" value="([^"]+)"', page)
        candidates = study.showings[rater][slot].candidate_ids
        fields = {"form": unescape(form)}
        for question in ("quality", "match"):
            fields |= {f"{question}_{candidate}": str(rank) for rank, candidate in enumerate(candidates, 1)}
        await asyncio.sleep(draws.uniform(0, 2 * think_sec))
        started = time.perf_counter()
        await _answered(session.post, f"{address}/ballot", load, data=fields, allow_redirects=False)
        load.ballot_sec.append(time.perf_counter() - started)
        load.acknowledged.add((rater, slot))


async def _answered(request: object, url: str, load: Load, *, is_text: bool = True, **options: object) -> str:
    """Ask until there is an answer, as a person does who loads a page again."""
    deadline = time.monotonic() + DEADLINE_SEC
    while True:
        try:
            async with request(url, **options) as reply:  # type: ignore[operator]
                body = await reply.read()
                if reply.status not in (200, 303):
                    raise RuntimeError(f"{url}: {reply.status} {body[-300:]!r}")
                return body.decode() if is_text else ""
        except aiohttp.ClientConnectionError:
            if time.monotonic() > deadline:
                raise
            load.num_retries += 1
            await asyncio.sleep(RETRY_SEC)


def lost_and_doubled(database_url: str, study: Study, load: Load) -> tuple[int, int]:
    """Return how many acknowledged ballots are not in the database, and how many are there twice."""
    box = BallotBox(database_url)
    kept = Counter((ballot.rater, ballot.slot) for ballot in box.all(study.study_id))
    box.close()
    return len(load.acknowledged - set(kept)), sum(count > 1 for count in kept.values())


def percentile(seconds: list[float], share: float) -> float:
    """Return a percentile in milliseconds."""
    return 1000 * float(np.quantile(seconds, share))


@asynccontextmanager
async def _session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def alone_ms(server: Server, count: int = 200) -> float:
    """Return the median time of a page without a database, asked by one client."""
    load, times = Load(), []
    async with _session() as session:
        for _ in range(count):
            started = time.perf_counter()
            await _answered(session.get, server.url + "/", load)
            times.append(time.perf_counter() - started)
    return percentile(times, 0.5)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", help="a URL of SQLAlchemy (default: a new SQLite file)")
    parser.add_argument("--raters", type=int, default=200)
    parser.add_argument("--ballots", type=int, default=10)
    parser.add_argument("--think-sec", type=float, default=5.0)
    parser.add_argument("--pictures", action="store_true")
    parser.add_argument("--kill", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        study = make_study(
            Path(place) / "study", num_raters=arguments.raters, num_prompts=arguments.ballots, num_pictures=5
        )
        url = arguments.database or f"sqlite:///{place}/ballots.db"
        with serving(study.folder, url) as server:
            started = time.perf_counter()
            load = asyncio.run(
                put_under_load(
                    server,
                    study,
                    num_ballots=arguments.ballots,
                    think_sec=arguments.think_sec,
                    with_pictures=arguments.pictures,
                    kill_after=arguments.raters * arguments.ballots // 2 if arguments.kill else None,
                )
            )
            seconds = time.perf_counter() - started
            baseline = asyncio.run(alone_ms(server))
        lost, doubled = lost_and_doubled(url, study, load)
    rows: list[list[str]] = []
    results: dict[str, float | str] = {"lost": lost, "doubled": doubled, "ballots": len(load.acknowledged)}
    for name, times in (("page", load.page_sec), ("picture", load.picture_sec), ("ballot", load.ballot_sec)):
        if times:
            marks = [percentile(times, share) for share in (0.5, 0.99, 1.0)]
            rows.append([name, str(len(times)), *(f"{mark:.0f}" for mark in marks), f"{marks[0] / baseline:.1f}x"])
            results[f"{name}_p99_ms"] = marks[1]
    results |= {"ballots_per_sec": len(load.acknowledged) / seconds, "retries": load.num_retries}
    columns = ["", "answers", "median ms", "p99 ms", "longest ms", f"of {baseline:.1f} ms alone"]
    tell(f"{arguments.raters} raters at once: {lost} ballots lost, {doubled} doubled", columns, rows, results)


if __name__ == "__main__":
    main()
