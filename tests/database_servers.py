"""A real PostgreSQL server for the tests, its own and gone afterwards."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SERVER_USER = "postgres"


def postgres_program(name: str) -> str:
    """Find a program of PostgreSQL's server, or skip."""
    places = [shutil.which(name), *sorted(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), reverse=True)]
    found = next((place for place in places if place), None)
    if found is None:
        pytest.skip(f"no {name}: the tests on PostgreSQL need its server (Debian: apt-get install postgresql)")
    return found


@contextmanager
def running_postgres() -> Iterator[str]:
    """Start a server on a socket in a folder of its own, and yield the URL of its database."""
    initdb, pg_ctl = postgres_program("initdb"), postgres_program("pg_ctl")
    is_root = os.geteuid() == 0  # as whom the server refuses to run
    folder = Path(tempfile.mkdtemp(prefix="study_postgres_"))
    if is_root:
        shutil.chown(folder, SERVER_USER, SERVER_USER)

    def run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, cwd=folder, user=SERVER_USER if is_root else None)

    data_dir, log = str(folder / "data"), str(folder / "log")
    run(initdb, "--pgdata", data_dir, "--username", SERVER_USER, "--auth", "trust", "--no-sync")
    settings = f"-c listen_addresses='' -c unix_socket_directories={folder} -c max_connections=200"
    run(pg_ctl, "--pgdata", data_dir, "--log", log, "--wait", "--options", settings, "start")
    try:
        yield f"postgresql+psycopg://{SERVER_USER}@/postgres?host={folder}"
    finally:
        run(pg_ctl, "--pgdata", data_dir, "--mode", "immediate", "--wait", "stop")
        shutil.rmtree(folder, ignore_errors=True)
