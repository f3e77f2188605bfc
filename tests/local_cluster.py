"""infra/local-cluster.sh for the tests: machines of a network of their own, whose plugs can be pulled."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.repository import Repository, copied_repository, wait_for

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "infra" / "local-cluster.sh"

RUNS_SCRIPT = """
import json, sys
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient
from pipeline.tracking import tracking_uri
client = MlflowClient(tracking_uri())
found = []
experiments = [experiment.experiment_id for experiment in client.search_experiments()]
for run in client.search_runs(experiments, sys.argv[1], max_results=1000):
    history = client.get_metric_history(run.info.run_id, "epoch")
    found.append({
        "stage": run.data.tags["stage"], "status": run.info.status, "tags": run.data.tags, "params": run.data.params,
        "metrics": run.data.metrics, "epochs": [int(metric.value) for metric in history],
        "grids": [file.path for file in client.list_artifacts(run.info.run_id, "grids")],
    })
print(json.dumps(found))
"""


@dataclass(frozen=True)
class LocalCluster:
    """A running cluster of `num_workers` + 1 Ray nodes with one CPU each."""

    folder: Path
    num_workers: int = 2

    @property
    def env(self) -> dict[str, str]:
        bin_dir = str(Path(sys.executable).parent)
        own = {"CLUSTER_DIR": str(self.folder), "CLUSTER_BIN": bin_dir, "NUM_WORKERS": str(self.num_workers)}
        others = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_", "RAY_"))}
        return {**others, **own}

    @property
    def secrets(self) -> dict[str, str]:
        """Return the keys and addresses of its `env` file."""
        lines = (self.folder / "env").read_text().splitlines()
        return dict(line.removeprefix("export ").split("=", 1) for line in lines)

    def call(self, *arguments: str) -> None:
        """Run a command of the script; what it starts in the background holds no pipe of ours."""
        with (self.folder / "script.log").open("a") as log:
            done = subprocess.run([SCRIPT, *arguments], env=self.env, stdout=log, stderr=log, check=False)
        assert done.returncode == 0, f"{arguments}: {(self.folder / 'script.log').read_text()[-3000:]}"

    def run(self, repository: Repository, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a repository, on the machine from which jobs are submitted."""
        return subprocess.run(
            [SCRIPT, "exec", *(["env", *(f"{name}={value}" for name, value in env.items())] if env else []), *command],
            env=self.env, cwd=repository.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def start(self, repository: Repository, *command: str, log_path: Path) -> subprocess.Popen[bytes]:
        """Start one there."""
        with log_path.open("wb") as log:
            return subprocess.Popen(
                [SCRIPT, "exec", *command], cwd=repository.folder, env=self.env, stdout=log, stderr=subprocess.STDOUT
            )

    def tracked(self, repository: Repository, query: str = "") -> list[dict[str, Any]]:
        """Return what MLflow has of the runs that a query finds, the newest first."""
        done = self.run(repository, sys.executable, "-c", RUNS_SCRIPT, query)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@contextmanager
def local_cluster(num_workers: int = 2) -> Iterator[LocalCluster]:
    """Start a cluster, or skip where this machine cannot have one."""
    if os.geteuid() != 0 or any(shutil.which(program) is None for program in ("ip", "unshare")):
        pytest.skip("network namespaces need root, ip and unshare (Debian: apt-get install iproute2 util-linux)")
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("no PostgreSQL server (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="stackgan_cluster_"))
    folder.chmod(0o755)  # PostgreSQL runs as a user of its own
    cluster = LocalCluster(folder, num_workers)
    try:
        cluster.call("up")
        yield cluster
    finally:
        cluster.call("down")
        shutil.rmtree(folder, ignore_errors=True)


def repository_at(folder: Path) -> Repository:
    """Make a copy of this repository that knows the cluster's DVC remote."""
    repository = copied_repository(folder)
    repository.run("dvc", "remote", "add", "--quiet", "--default", "store", "s3://stackgan/dvc")
    repository.run("git", "commit", "--quiet", "--all", "--message", "remote")
    return repository


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that a command ended with."""
    assert done.returncode == 1 and not done.stdout and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stderr.splitlines()[-1]


def stop_all_of(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started."""
    for child in (*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)):
        child.kill()
    process.wait()


# What goes wrong, and what mends it.


def lose_the_workers(cluster: LocalCluster) -> None:
    cluster.call("stop", "worker1")
    cluster.call("stop", "worker2")
    cluster.call("start", "worker1")
    cluster.call("start", "worker2")


def cut_the_link(cluster: LocalCluster) -> None:
    cluster.call("cut", "worker1")
    cluster.call("cut", "worker2")
    time.sleep(30)  # this long is the fault itself
    cluster.call("mend", "worker1")
    cluster.call("mend", "worker2")


def lose_the_head(cluster: LocalCluster) -> None:
    cluster.call("cut", "head")  # first, so that no connection is told of its end
    cluster.call("stop", "head")
    cluster.call("mend", "head")
    for folder in (cluster.folder / "head").glob("*/*"):
        subprocess.run(["rm", "-rf", str(folder)], check=True)  # another machine takes its place
    cluster.call("start", "head")


def restart_tracking(cluster: LocalCluster) -> None:
    cluster.call("stop", "tracking")
    cluster.call("start", "tracking")


def refuse_writes_for_a_minute(cluster: LocalCluster) -> None:
    flag = cluster.folder / "store_refuses_writes"
    flag.touch()
    time.sleep(60)  # this long is the fault itself
    flag.unlink()


# Whether a training goes on from a checkpoint afterwards; a cut link may be mended just before Ray gives up.
FAULTS = {
    lose_the_workers: {True},
    cut_the_link: {True, False},
    lose_the_head: {True},
    restart_tracking: {False},
    refuse_writes_for_a_minute: {False},
}
CONTINUED = "continuing after step"


@dataclass(frozen=True)
class Struck:
    """A fault that struck a job: when, how long it lasted, and whether a training then went on from a checkpoint."""

    fault: str
    sign: str
    at_sec: float
    lasted_sec: float
    moved: bool


def submit_among_faults(
    cluster: LocalCluster, repository: Repository, signs: tuple[str, ...], log_path: Path, *arguments: str
) -> list[Struck]:
    """Submit a job, let each part fail in its turn when the log has its sign, and wait for the results.

    Raises:
        AssertionError: the job failed.
    """
    started, struck = time.monotonic(), list[Struck]()
    job = cluster.start(repository, "stackgan", "submit", *arguments, log_path=log_path)
    begins = list[int]()  # where in the log
    for sign, fault in zip(signs, FAULTS, strict=True):
        wait_for(lambda sign=sign: sign in log_path.read_text(), job, log_path, within_sec=3600)
        begins.append(len(log_path.read_text()))
        at = time.monotonic()
        fault(cluster)
        lasted = time.monotonic() - at
        struck.append(Struck(fault.__name__, sign, at - started, lasted, moved=False))
    assert job.wait() == 0, log_path.read_text()[-6000:]
    log = log_path.read_text()
    ends = (*begins[1:], len(log))
    return [
        replace(one, moved=CONTINUED in log[begin:end]) for one, begin, end in zip(struck, begins, ends, strict=True)
    ]
