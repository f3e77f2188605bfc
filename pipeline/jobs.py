"""Ray's job API, only here: hand a folder and a command to a cluster, follow it, stop it.

A token, where the cluster asks for one, is Ray's own affair: $RAY_AUTH_TOKEN, or the file that $RAY_AUTH_TOKEN_PATH
names, ~/.ray/auth_token by default, with RAY_AUTH_MODE=token.
"""

import asyncio
import logging
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

CONNECT_SEC = 5
ANSWER_SEC, WATCH_SEC = 15, 10  # how long an answer may take, and how often a head whose log is followed is asked
HOW = "give the head's dashboard, such as http://head:8265"
State = Literal["waiting", "running", "succeeded", "failed", "stopped"]
STATES: Mapping[str, State] = {
    "PENDING": "waiting",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "STOPPED": "stopped",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class JobInfo:
    """What a cluster says of a job."""

    state: State
    exit_status: int | None
    message: str

    @property
    def is_over(self) -> bool:
        """Return whether it has ended."""
        return self.state in ("succeeded", "failed", "stopped")


class JobServer:
    """The job API of one cluster. Every method raises ConnectionError where the cluster does not answer."""

    def __init__(self, address: str):
        """Connect.

        Args:
            address: of the head's dashboard, http://host:port.

        Raises:
            ValueError: it is no such address, the token is refused, or the cluster has another version of Ray.
            ConnectionError: nobody answers there.
        """
        self.address = address.rstrip("/")
        self._require_answer()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._client = self._connected()

    def _connected(self) -> "JobSubmissionClient":
        import ray
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        for name in ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)
        os.environ["RAY_RUNTIME_ENV_IGNORE_GITIGNORE"] = "1"  # Ray reads it otherwise than git, who chose what is sent
        try:
            for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # Ray would take them over the address given
                os.environ.pop(name, None)
            client = JobSubmissionClient(self.address)
            client.list_jobs()  # the version is told to anyone, this is not
        except AuthenticationError:
            raise ValueError(
                f"{self.address} refuses our token: put the cluster's into RAY_AUTH_TOKEN (or the file "
                "~/.ray/auth_token) and set RAY_AUTH_MODE=token"
            ) from None
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise ValueError(f"{self.address} is no Ray cluster ({_one_line(error)}); {HOW}") from None
        theirs = client._server_ray_version  # pyright: ignore[reportPrivateUsage] - it has no public name
        if theirs != ray.__version__:
            raise ValueError(
                f"{self.address} runs Ray {theirs} and this is {ray.__version__}: install ray=={theirs} here, or "
                "rebuild the cluster's image from this tree's requirements.txt"
            )
        return client

    def submit(self, job_id: str, *, command: str, folder: Path, env: Mapping[str, str]) -> None:
        """Start a command in a copy of a folder on the cluster; a job of that name that has ended is forgotten first.

        Raises:
            ValueError: the cluster refuses.
        """
        from ray.job_submission import JobStatus

        try:
            with self._answering():
                known = {job.submission_id: job.status for job in self._client.list_jobs()}
                if job_id in known:
                    if known[job_id] in (JobStatus.PENDING, JobStatus.RUNNING):
                        return
                    self._client.delete_job(job_id)
                runtime_env = {"working_dir": str(folder), "env_vars": dict(env)}
                self._client.submit_job(entrypoint=command, submission_id=job_id, runtime_env=runtime_env)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{self.address} refuses the job: {_one_line(error)}") from None

    def info(self, job_id: str) -> JobInfo | None:
        """Return how a job stands, or None where the cluster does not know it (its head was started anew)."""
        try:
            with self._answering():
                details = self._client.get_job_info(job_id)
        except RuntimeError as error:
            if "404" in str(error) or "does not exist" in str(error):
                return None
            raise ConnectionError(_one_line(error)) from None
        return JobInfo(
            state=STATES[str(details.status.value)],
            exit_status=details.driver_exit_code,
            message=" ".join((details.message or "").split()),
        )

    def follow(self, job_id: str, tell: Callable[[str], None]) -> None:
        """Call `tell` with the job's log, from its beginning, piece by piece, until the job or the connection ends.

        A connection to a head that lost its power, or the network, never ends by itself: so the head is asked now and
        then whether it is there.
        """
        import aiohttp

        async def read() -> None:
            pieces: AsyncIterator[str] = self._client.tail_job_logs(job_id)
            async for piece in pieces:
                tell(piece)

        async def watch() -> None:
            while True:
                await asyncio.sleep(WATCH_SEC)
                await asyncio.to_thread(self._require_answer)

        async def read_and_watch() -> None:
            tasks = [asyncio.create_task(read()), asyncio.create_task(watch())]
            done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            for task in done:
                task.result()

        try:
            asyncio.run(read_and_watch())
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            raise ConnectionError(_one_line(error)) from None

    def log(self, job_id: str) -> str:
        """Return the whole log of a job."""
        with self._answering():
            return self._client.get_job_logs(job_id)

    def stop(self, job_id: str) -> None:
        """Ask a job to end; it has a few seconds to do so."""
        with self._answering():
            self._client.stop_job(job_id)

    @contextmanager
    def _answering(self) -> Generator[None]:
        """Ask the head first, for Ray's client waits without an end, and turn what it raises of a lost connection."""
        import requests

        self._require_answer()
        try:
            yield
        except requests.RequestException as error:
            raise ConnectionError(_one_line(error)) from None
        except RuntimeError as error:
            if re.search(r"status code 5\d\d", str(error)):  # a head that is starting
                raise ConnectionError(_one_line(error)) from None
            raise

    def _require_answer(self) -> None:
        import requests

        _require_listener(self.address)
        try:
            requests.get(f"{self.address}/api/version", timeout=ANSWER_SEC)  # a refusal is an answer
        except requests.RequestException as error:
            raise ConnectionError(f"{self.address} does not answer ({_one_line(error)[:100]}); {HOW}") from None


def _require_listener(address: str) -> None:
    """Connect once with a short patience: Ray's client has none of its own.

    Raises:
        ValueError: it is no address.
        ConnectionError: nobody listens there.
    """
    if not address:
        raise ValueError(f"no cluster is named: {HOW}, as --address or in RAY_API_SERVER_ADDRESS")
    parts = urlsplit(address)
    try:
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        host = parts.hostname or ""
        if not host or parts.username or parts.password:
            raise ValueError("a host, and no password, belongs there")
    except (KeyError, ValueError) as error:
        raise ValueError(f"{address} is no address of a cluster ({_one_line(error)}); {HOW}") from None
    try:
        socket.create_connection((host, port), CONNECT_SEC).close()
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise ConnectionError(f"nobody answers at {address} ({reason}); {HOW}, and see that its port is open") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
