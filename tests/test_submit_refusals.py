"""What `stackgan submit` refuses at once, and a job before its first stage; a cluster without workers is enough."""

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local_cluster import LocalCluster, local_cluster, refusal, repository_at, stop_all_of
from tests.repository import Repository, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
QUICK_SEC = 40  # four seconds on an idle machine; other tests run at the same time


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(num_workers=0) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return repository_at(tmp_path_factory.mktemp("home") / "repository")


@pytest.fixture
def fresh(repository: Repository) -> Iterator[Repository]:
    """Yield the repository, and put its settings back as they were."""
    yield repository
    repository.run("git", "checkout", ".dvc", "params.yaml")
    (repository.folder / ".dvc" / "config.local").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://10.77.0.6:1", "nobody answers at http://10.77.0.6:1 (Connection refused); give the head's dashboard"),
        ("10.77.0.6:6379", "10.77.0.6:6379 is no address of a cluster"),
        ("http://user:word@10.77.0.6:8265", "and no password, belongs there"),
        ("http://10.77.0.5:5000", "http://10.77.0.5:5000 is no Ray cluster"),
        ("", "no cluster is named: give the head's dashboard, such as http://head:8265, as --address or in RAY_API"),
    ],
)
def test_a_wrong_address_is_reported_at_once(
    cluster: LocalCluster, fresh: Repository, address: str, words: str
) -> None:
    started = time.monotonic()
    assert words in refusal(cluster.run(fresh, "stackgan", "submit", "--address", address))
    assert time.monotonic() - started < QUICK_SEC


@pytest.mark.parametrize("token", ["wrong" * 8, ""])
def test_a_wrong_token_is_reported_at_once(
    cluster: LocalCluster, fresh: Repository, token: str, tmp_path: Path
) -> None:
    done = cluster.run(fresh, "stackgan", "submit", RAY_AUTH_TOKEN=token, HOME=str(tmp_path))
    assert "refuses our token: put the cluster's into RAY_AUTH_TOKEN" in refusal(done)


def test_another_version_of_ray_is_reported_at_once(cluster: LocalCluster, fresh: Repository, tmp_path: Path) -> None:
    """The answers of a head of Ray 2.55, which cannot be installed beside ours."""
    script = (
        "import http.server, json\n"
        "class Head(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        version = {'version': '4', 'ray_version': '2.55.0', 'ray_commit': '', 'session_name': ''}\n"
        "        self.send_response(200); self.end_headers()\n"
        "        self.wfile.write(json.dumps(version if 'version' in self.path else []).encode())\n"
        "server = http.server.HTTPServer(('127.0.0.1', 8299), Head)\n"
        "print('listening', flush=True)\n"
        "server.serve_forever()"
    )
    log_path = tmp_path / "head.log"
    head = cluster.start(fresh, sys.executable, "-c", script, log_path=log_path)
    wait_for(lambda: "listening" in log_path.read_text(), head, log_path)
    try:
        message = refusal(cluster.run(fresh, "stackgan", "submit", "--address", "http://127.0.0.1:8299"))
    finally:
        stop_all_of(head)
    assert re.search(r"runs Ray 2\.55\.0 and this is 2\.\d+\.\d+: install ray==2\.55\.0 here, or rebuild", message)


def test_a_tree_that_is_too_large_is_reported_at_once(cluster: LocalCluster, fresh: Repository) -> None:
    large = fresh.folder / "notes" / "recording.wav"
    large.parent.mkdir()
    large.write_bytes(bytes(60_000_000))
    message = refusal(cluster.run(fresh, "stackgan", "submit"))
    large.unlink()
    assert re.search(r"too large to send: 6\d MB, 50 may be; the largest are notes/recording\.wav \(60 MB\)", message)


@pytest.mark.parametrize(
    ("url", "level", "words"),
    [
        ("../store", (), "means another place on a cluster: give its whole path"),
        ("s3://stackgan/dvc", ("--local",), "no default DVC remote in .dvc/config to carry data to the cluster"),
        (None, (), "no default DVC remote in .dvc/config to carry data to the cluster and back"),
    ],
)
def test_a_remote_that_a_cluster_cannot_use_is_reported_at_once(
    cluster: LocalCluster, fresh: Repository, url: str | None, level: tuple[str, ...], words: str
) -> None:
    fresh.run("dvc", "remote", "remove", "store")
    if url:
        fresh.run("dvc", "remote", "add", *level, "--default", "store", url)
    assert words in refusal(cluster.run(fresh, "stackgan", "submit"))


def reported_by_the_job(cluster: LocalCluster, repository: Repository, *settings: str) -> str:
    """Return the line that a job's last try ended with; most of the time goes into its start."""
    started = time.monotonic()
    done = cluster.run(repository, "stackgan", "submit", *settings)
    assert time.monotonic() - started < 6 * QUICK_SEC
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "Running stage" not in done.stderr
    (message,) = (line for line in done.stderr.splitlines() if line.startswith("error: ") and "above" not in line)
    return message


def test_gpus_that_are_not_there_are_reported_before_any_stage(cluster: LocalCluster, fresh: Repository) -> None:
    message = reported_by_the_job(cluster, fresh, "-S", "hardware=gpu", "-S", "train_stage1.seed=12")
    assert "ask for 1 GPUs and Ray sees 0; lower them, or use hardware=cpu" in message


def test_a_missing_bucket_of_the_remote_is_reported_before_anything_is_sent(
    cluster: LocalCluster, fresh: Repository
) -> None:
    (fresh.folder / "notes.txt").write_text("data that DVC has to carry")
    fresh.run("dvc", "add", "--quiet", "notes.txt")
    fresh.run("dvc", "remote", "modify", "store", "url", "s3://nowhere/dvc")
    done = cluster.run(fresh, "stackgan", "submit")
    for name in ("notes.txt", "notes.txt.dvc"):
        (fresh.folder / name).unlink()
    assert "the DVC remote cannot be written from here (DVC says why above); create it, or give" in refusal(done)
    assert "bucket does not exist" in done.stderr


def test_a_remote_that_the_cluster_cannot_write_is_reported_before_any_stage(
    cluster: LocalCluster, fresh: Repository
) -> None:
    fresh.run("dvc", "remote", "modify", "store", "url", "s3://nowhere/dvc")
    fresh.run("dvc", "remote", "modify", "--local", "store", "url", "s3://stackgan/dvc")  # at home it is another
    for _ in range(2):
        message = reported_by_the_job(cluster, fresh)
        assert re.search(r"the DVC remote cannot be written \(.*bucket does not exist.*\); create it, or give", message)


def test_a_storage_that_refuses_writes_is_reported_before_any_stage(cluster: LocalCluster, fresh: Repository) -> None:
    flag = cluster.folder / "store_refuses_writes"
    flag.touch()
    message = reported_by_the_job(cluster, fresh)
    flag.unlink()
    assert (
        "s3://stackgan/runs/jobs/" in message
        and "cannot be used (" in message
        and "set RUN_STORAGE to another" in message
    )
