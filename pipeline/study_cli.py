"""`stackgan study`: serve a prepared study, hand out its links, bring ballots in and take them out."""

import argparse
import json
import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.files import replaced_file
from pipeline.tracking import storage_root

if TYPE_CHECKING:
    from pipeline.evaluation.study.ballots import BallotBox
    from pipeline.evaluation.study.files import Study
    from pipeline.evaluation.study.links import Links

logger = logging.getLogger(__name__)

STUDY_DIR = Path("study")
BALLOTS_DIR = Path("human_study/ballots")
HOST, PORT = "127.0.0.1", 8200
WILDCARDS = ("0.0.0.0", "::")
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
LIFETIME_DAYS = 60.0
MAX_FILE_BYTES = 10 * 2**20


def add_study(parser: argparse.ArgumentParser) -> None:
    """Add the commands to `stackgan study`."""
    commands = parser.add_subparsers(required=True, metavar="command")
    command = _command(commands, "serve", "open the study's web page, for raters and for you", _serve)
    command.add_argument("--host", default=HOST, help=f"address to listen on (default {HOST}: this machine alone)")
    command.add_argument("--port", type=int, default=PORT, help=f"default {PORT}")
    command.add_argument(
        "--host-name", action="append", default=[], metavar="NAME", help="a name the page is reached by from elsewhere"
    )
    command = _command(commands, "links", "print the admin's link and each rater's personal link", _links)
    command.add_argument("--base-url", default=f"http://{HOST}:{PORT}", metavar="URL", help="where the page is reached")
    command = _command(commands, "offline", "write each rater's study as one HTML file", _offline)
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files")
    command.add_argument("--rater", type=int, action="append", metavar="N", help="these raters only, from 1")
    command = _command(commands, "import", "bring in ballot files that offline pages saved", _import)
    command.add_argument("files", type=Path, nargs="+", metavar="FILE")
    command = _command(commands, "export", "write the ballots as Parquet and CSV for evaluate_human_rank", _export)
    command.add_argument("--out", type=Path, default=BALLOTS_DIR, metavar="DIR", help=f"default {BALLOTS_DIR}")


def _command(commands: Any, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[:1].upper() + text[1:])
    command.add_argument(
        "--study", type=Path, default=STUDY_DIR, metavar="DIR", help=f"the prepared study (default {STUDY_DIR})"
    )
    command.add_argument(
        "--days", type=float, default=LIFETIME_DAYS, help=f"links are accepted so long (default {LIFETIME_DAYS:.0f})"
    )
    command.set_defaults(run=run)
    return command


def _open(arguments: argparse.Namespace) -> "tuple[Study, Links]":
    from pipeline.evaluation.study.files import read_study
    from pipeline.evaluation.study.links import Links, study_secret

    study = read_study(arguments.study)
    if arguments.days <= 0:
        raise ValueError(f"--days {arguments.days}: give a number above 0")
    return study, Links(study_secret(_storage_dir()), study.study_id, arguments.days)


def _storage_dir() -> Path:
    return storage_root() / "study"


def _box() -> "BallotBox":
    from pipeline.evaluation.study.ballots import BallotBox

    url = os.environ.get("STUDY_DATABASE_URL")
    if url is None:
        _storage_dir().mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{_storage_dir() / 'ballots.db'}"
    return BallotBox(url)


def _serve(arguments: argparse.Namespace) -> Iterable[str]:
    import uvicorn

    from pipeline.evaluation.study.web import create_app

    study, links = _open(arguments)
    names: list[str] = arguments.host_name
    if arguments.host in WILDCARDS and not names:
        raise ValueError(f"--host {arguments.host} is every address: give the name that raters type as --host-name")
    box = _box()
    app = create_app(study, box, links, (*LOOPBACK_NAMES, arguments.host, *names))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=arguments.host,
            port=arguments.port,
            access_log=False,  # its lines would hold links, which are keys
            log_level="warning",
            server_header=False,
            proxy_headers=False,
        )
    )
    base_url = f"http://{names[0] if names else arguments.host}:{arguments.port}"
    logger.info("Raters' links:  stackgan study links --base-url %s", base_url)
    logger.info("Your own page:  %s/admin/%s/", base_url, links.admin())
    with suppress(KeyboardInterrupt):  # the usual end, after which uvicorn raises it once more
        server.run()
    box.close()
    return []


def _links(arguments: argparse.Namespace) -> Iterable[str]:
    study, links = _open(arguments)
    base_url = arguments.base_url.rstrip("/")
    raters = [f"rater {rater + 1}: {base_url}/r/{links.rater(rater)}/" for rater in range(study.num_raters)]
    return [f"admin: {base_url}/admin/{links.admin()}/", *raters]


def _offline(arguments: argparse.Namespace) -> Iterable[Path]:
    from pipeline.evaluation.study.offline import offline_page

    study, links = _open(arguments)
    numbers: Sequence[int] = arguments.rater or range(1, study.num_raters + 1)
    for number in numbers:
        if not 1 <= number <= study.num_raters:
            raise ValueError(f"--rater {number}: the study is planned for raters 1 to {study.num_raters}")
    written: list[Path] = []
    for number in numbers:
        path = arguments.out / f"rater_{number}.html"
        with replaced_file(path) as partial_path:
            partial_path.write_text(offline_page(study, number - 1, links.rater(number - 1)), encoding="utf-8")
        written.append(path)
    return written


def _import(arguments: argparse.Namespace) -> Iterable[str]:
    study, links = _open(arguments)
    found = {path: _ballots_of(path, study, links) for path in arguments.files}
    box = _box()
    box.bring_in(ballot for ballots in found.values() for ballot in ballots)
    box.close()
    return [f"{path}: {len(ballots)} ballots of rater {ballots[0].rater + 1}" for path, ballots in found.items()]


def _ballots_of(path: Path, study: "Study", links: "Links") -> Any:
    from pipeline.evaluation.study.offline import ballots_of_file

    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path} is larger than any ballot file")
    try:
        ballots = ballots_of_file(json.loads(path.read_text(encoding="utf-8")), study, links)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not ballots:
        raise ValueError(f"{path}: it holds no ballot")
    return ballots


def _export(arguments: argparse.Namespace) -> Iterable[str]:
    from pipeline.evaluation.study.ballot_tables import csv_bytes, parquet_bytes
    from pipeline.evaluation.study.files import read_key

    study, _ = _open(arguments)
    key = read_key(study)
    box = _box()
    ballots = box.all(study.study_id)
    box.close()
    stem = arguments.out / f"ballots_{study.study_id[:12]}"
    if not ballots and not stem.with_suffix(".parquet").exists():  # one that was exported and then taken back must go
        return ["0 ballots are given: nothing is written"]
    for suffix, write in ((".parquet", parquet_bytes), (".csv", csv_bytes)):
        with replaced_file(stem.with_suffix(suffix)) as partial_path:
            partial_path.write_bytes(write(study, key, ballots))
    num_raters = len({ballot.rater for ballot in ballots})
    return [f"{stem}.parquet: {len(ballots)} ballots of {num_raters} of {study.num_raters} raters"]
