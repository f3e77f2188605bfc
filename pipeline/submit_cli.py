"""`stackgan submit`, `attach` and `cancel`: the DAG as a job on a Ray cluster."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.data.files import replaced_file
from pipeline.handover import with_upstream
from pipeline.jobs import JobInfo, JobServer
from pipeline.submitting import (
    WAIT_SEC,
    Submission,
    bring_home,
    exit_status,
    is_reproduced,
    prepared,
    push_data,
    remembered,
    run_dvc,
    shown,
)
from pipeline.systems import composed

logger = logging.getLogger(__name__)


def add_submit(commands: Any) -> None:
    """Add the commands to those of `stackgan` (what argparse's add_subparsers returned)."""
    command = commands.add_parser(
        "submit",
        help="run the DAG as a job on a Ray cluster, and bring its results back",
        description="Send the working tree to a Ray cluster, reproduce the DAG there, and bring dvc.lock, the reports "
        "and the outputs back. The exit status is the job's. Ctrl-C leaves the job running.",
    )
    command.add_argument("targets", nargs="*", metavar="STAGE", help="stages of dvc.yaml (default: all)")
    command.add_argument(
        "--address",
        default=os.environ.get("RAY_API_SERVER_ADDRESS", ""),
        metavar="URL",
        help="of the head's dashboard, http://head:8265 (default: RAY_API_SERVER_ADDRESS)",
    )
    command.add_argument(
        "-S",
        dest="overrides",
        action="append",
        default=[],
        metavar="OVERRIDE",
        help="settings, as for `dvc exp run`, which are written into params.yaml: -S dataset=cub -S hardware=gpu",
    )
    command.add_argument("--detach", action="store_true", help="return as soon as the cluster has the job")
    _add_pull(command)
    command.set_defaults(run=_submit)
    command = commands.add_parser("attach", help="follow a submitted job again, and bring its results back")
    _add_job(command)
    _add_pull(command)
    command.set_defaults(run=_attach)
    command = commands.add_parser("cancel", help="stop a submitted job; submitted again, it goes on")
    _add_job(command)
    command.set_defaults(run=_cancel)


def _add_job(command: argparse.ArgumentParser) -> None:
    command.add_argument("job", nargs="?", metavar="JOB", help="as `submit` named it (default: the last one)")


def _add_pull(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--no-pull", dest="pull", action="store_false", help="leave the outputs in the DVC remote, for `dvc pull`"
    )


def _submit(arguments: argparse.Namespace) -> Iterable[str]:
    document = composed(arguments.overrides) if arguments.overrides else None
    server = JobServer(arguments.address)
    if document:  # not before: a mistake leaves params.yaml as it was
        with replaced_file(Path("params.yaml")) as path:
            path.write_text(yaml.safe_dump(document, sort_keys=False))
    if is_reproduced(arguments.targets):
        return ["nothing to do: every stage is reproduced", *_pulled(arguments, arguments.targets)]
    submission = prepared(server.address, arguments.targets)
    push_data(submission)
    before = server.info(submission.job)
    num_told = len(server.log(submission.job)) if before and before.is_over else 0  # by an earlier try: Ray appends
    submission.send(server)
    logger.info("job %s at %s", submission.job, server.address)
    if arguments.detach:
        return [f"{submission.job} runs on; stackgan attach, stackgan cancel"]
    return _followed(submission, server, arguments, num_told)


def _attach(arguments: argparse.Namespace) -> Iterable[str]:
    submission = remembered(arguments.job)
    return _followed(submission, JobServer(submission.address), arguments)


def _cancel(arguments: argparse.Namespace) -> Iterable[str]:
    submission = remembered(arguments.job)
    server = JobServer(submission.address)
    info = server.info(submission.job)
    if info is None or info.is_over:
        raise ValueError(f"{submission.job} does not run ({info.state if info else 'the cluster knows no such job'})")
    server.stop(submission.job)
    return [f"{submission.job} is stopping; submitted again, it goes on from its last checkpoint"]


def _followed(
    submission: Submission, server: JobServer, arguments: argparse.Namespace, num_told: int = 0
) -> Iterable[str]:
    try:
        info, log = _to_its_end(submission, server, num_told)
    except KeyboardInterrupt:
        raise ValueError(f"no longer followed; {submission.job} runs on: stackgan attach, stackgan cancel") from None
    if info.state != "succeeded":
        logger.error("error: %s %s; its log says why above", submission.job, info.state)
        sys.exit(exit_status(info))
    names = bring_home(submission, log)
    return [f"{submission.job} succeeded; written: {', '.join(names)}", *_pulled(arguments, submission.targets)]


def _pulled(arguments: argparse.Namespace, targets: Sequence[str]) -> list[str]:
    if not arguments.pull:
        return ["the outputs are in the DVC remote: dvc pull"]
    run_dvc("pull", *with_upstream(targets))  # of no target: all there is
    return []


def _to_its_end(submission: Submission, server: JobServer, num_told: int) -> tuple[JobInfo, str]:
    """Follow a job until it is over, and return how it ended and its log.

    A head that went away is waited for, and is handed the job again if it forgot it. `num_told` characters of the log
    are known.
    """
    is_lost = False

    def tell(piece: str) -> None:
        nonlocal num_seen, num_told
        fresh = piece[max(0, num_told - num_seen) :]  # a log is told from its beginning each time
        num_seen += len(piece)
        num_told = max(num_told, num_seen)
        sys.stderr.write(shown(fresh))
        sys.stderr.flush()

    while True:
        num_seen = 0
        try:
            info = server.info(submission.job)
            if is_lost:
                logger.info("%s answers again", server.address)
                is_lost = False
            if info is None:
                logger.warning("the cluster was started anew and has forgotten %s; submitting it again", submission.job)
                num_told = 0
                submission.send(server)
                continue
            if info.state != "waiting":
                server.follow(submission.job, tell)
                info = server.info(submission.job)
            if info is not None and info.is_over:
                return info, server.log(submission.job)
        except ConnectionError as error:
            if not is_lost:
                logger.warning("waiting for %s: %s", server.address, error)
                is_lost = True
        time.sleep(WAIT_SEC)
