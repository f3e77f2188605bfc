"""The DAG as a job on machines that share nothing but a network, and what becomes of it when they fail."""

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.local_cluster import LocalCluster, local_cluster, repository_at
from tests.repository import ROOT, Repository, wait_for

STAGES = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
NUM_EPOCHS = 30
LONG = ("-S", "size=tiny", "-S", f"train_stage1.num_epochs={NUM_EPOCHS}")
QUICK_SEC = 20  # in which a mistake is told: a few seconds on a quiet machine


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return repository_at(tmp_path_factory.mktemp("home") / "repository")


@pytest.fixture(scope="module")
def submitted(cluster: LocalCluster, repository: Repository) -> subprocess.CompletedProcess[str]:
    """Submit the whole DAG once and wait for its results."""
    return cluster.run(repository, "stackgan", "submit", "-S", "size=tiny")


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that a command ended with."""
    assert done.returncode == 1 and not done.stdout and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stderr.splitlines()[-1]


def test_a_submitted_dag_comes_home(
    cluster: LocalCluster, repository: Repository, submitted: subprocess.CompletedProcess[str]
) -> None:
    assert submitted.returncode == 0, submitted.stderr[-4000:]
    assert repository.changed_stages() == set()
    assert {"models", "samples", "data"} <= {path.name for path in repository.folder.iterdir()}
    reports = json.loads((repository.folder / "reports" / "evaluate_inception.json").read_text())
    assert "stackgan" in reports["methods"]
    assert "succeeded; written: dvc.lock, reports/" in submitted.stdout
    assert "stackgan-results:" not in submitted.stderr


def test_a_second_submit_does_nothing(
    cluster: LocalCluster, repository: Repository, submitted: subprocess.CompletedProcess[str]
) -> None:
    before = len(cluster.tracked(repository))
    assert cluster.run(repository, "stackgan", "submit").stdout == "nothing to do: every stage is reproduced\n"
    assert len(cluster.tracked(repository)) == before


def test_each_stage_has_one_finished_run_on_the_server_with_the_load_of_every_node(
    cluster: LocalCluster, repository: Repository, submitted: subprocess.CompletedProcess[str]
) -> None:
    runs = {run["stage"]: run for run in cluster.tracked(repository)}
    assert sorted(run["stage"] for run in cluster.tracked(repository)) == sorted(STAGES)
    commit = repository.run("git", "rev-parse", "HEAD").stdout.strip()
    for stage, run in runs.items():
        assert run["status"] == "FINISHED", stage
        assert run["tags"]["mlflow.source.git.commit"] == commit
        assert run["tags"]["git_changed_files"] == "1"  # params.yaml
    assert runs["train_stage1"]["epochs"] == [1, 2, 3]
    nodes = {name.split("/")[1] for name in runs["train_stage2"]["metrics"] if name.startswith("system/10.77")}
    assert nodes <= {"10.77.0.6", "10.77.0.7", "10.77.0.8"}


def test_the_same_dag_at_home_gives_the_same_models(
    tmp_path: Path, repository: Repository, submitted: subprocess.CompletedProcess[str]
) -> None:
    alone = Repository(tmp_path / "alone")
    alone.run("dvc", "exp", "run", "-S", "size=tiny", "train_stage2")
    for name in ("stage1/generator.safetensors", "stage2/generator.safetensors", "text_encoder/encoder.safetensors"):
        (mine,), (theirs,) = ([*r.folder.glob(f"models/{name}")] for r in (alone, repository))
        assert mine.read_bytes() == theirs.read_bytes(), name


def test_the_registered_model_paints_the_picture_that_generate_paints(
    cluster: LocalCluster, repository: Repository, submitted: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    version = re.findall(r"registered as (models:/stackgan-demo/\d+)", submitted.stderr)[-1]
    assert cluster.run(repository, "stackgan", "register").stdout == f"{version}\n"  # and no second one
    log_path = tmp_path / "serve.log"
    where = ("--host", "127.0.0.1", "--port", "5055")
    server = cluster.start(
        repository, "mlflow", "models", "serve", "-m", version, "--env-manager", "local", *where, log_path=log_path
    )
    try:
        wait_for(lambda: "Application startup complete" in log_path.read_text(), server, log_path)
        body = json.dumps({"dataframe_records": [{"caption": "a small red bird"}], "params": {"seed": 3}})
        ask = (
            "import sys, urllib.request as r; q = r.Request('http://127.0.0.1:5055/invocations', sys.argv[1].encode(), "
            "{'Content-Type': 'application/json'}); print(r.urlopen(q).read().decode())"
        )
        answer = json.loads(cluster.run(repository, sys.executable, "-c", ask, body).stdout)
    finally:
        stop_all_of(server)
    repository.run("stackgan", "generate", "a small red bird", "--seed", "3", "--out", "bird.png")
    assert base64.b64decode(answer["predictions"][0]["png"]) == (repository.folder / "bird.png").read_bytes()
    (repository.folder / "bird.png").unlink()


def stop_all_of(process: subprocess.Popen[bytes]) -> None:
    import psutil

    for child in (*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)):
        child.kill()
    process.wait()


def test_a_job_can_be_left_attached_to_again_and_cancelled(
    cluster: LocalCluster, repository: Repository, submitted: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    settings = (*LONG, "-S", "train_stage1.seed=5")
    done = cluster.run(repository, "stackgan", "submit", "train_stage1", *settings, "--detach")
    assert "runs on; stackgan attach, stackgan cancel" in done.stdout, done.stderr
    log_path = tmp_path / "attach.log"
    attached = cluster.start(repository, "stackgan", "attach", log_path=log_path)
    wait_for(lambda: "stage1 epoch 3/" in log_path.read_text(), attached, log_path)
    assert "is stopping; submitted again, it goes on" in cluster.run(repository, "stackgan", "cancel").stdout
    assert attached.wait(60) != 0
    assert "stopped; its log says why above" in log_path.read_text()
    wait_until(lambda: cluster.run(repository, "stackgan", "cancel").returncode == 1)
    assert "does not run (stopped)" in refusal(cluster.run(repository, "stackgan", "cancel"))
    done = cluster.run(repository, "stackgan", "submit", "train_stage1")
    assert done.returncode == 0 and "continuing after step" in done.stderr, done.stderr[-4000:]
    (run,) = cluster.tracked(repository, "params.`train_stage1.seed` = '5' and tags.stage = 'train_stage1'")
    assert run["status"] == "FINISHED" and run["epochs"] == list(range(1, NUM_EPOCHS + 1))


def wait_until(holds: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        os.sched_yield()


def test_the_jobs_status_is_ours(
    cluster: LocalCluster, repository: Repository, submitted: subprocess.CompletedProcess[str]
) -> None:
    done = cluster.run(
        repository, "stackgan", "submit", "train_stage1", "-S", "size=tiny", "-S", "train_stage1.batch_size=7"
    )
    assert done.returncode == 1
    assert "train_stage1.batch_size 7 cannot be shared equally among 2 workers" in done.stderr
    repository.run("git", "checkout", "params.yaml")


# What goes wrong while a training runs, and what mends it.


def lose_a_worker(cluster: LocalCluster) -> None:
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
    cluster.call("stop", "head")
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


FAULTS = (lose_a_worker, cut_the_link, lose_the_head, restart_tracking, refuse_writes_for_a_minute)


@pytest.fixture(scope="module")
def undisturbed(cluster: LocalCluster, repository: Repository, submitted: subprocess.CompletedProcess[str]) -> bytes:
    """Return the generator of a longer training on the cluster that nothing happened to."""
    done = cluster.run(repository, "stackgan", "submit", "train_stage1", *LONG)
    assert done.returncode == 0, done.stderr[-4000:]
    return generator_of(repository)


def generator_of(repository: Repository) -> bytes:
    return (repository.folder / "models" / "stage1" / "generator.safetensors").read_bytes()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_changes_nothing(
    cluster: LocalCluster,
    repository: Repository,
    undisturbed: bytes,
    fault: Callable[[LocalCluster], None],
    tmp_path: Path,
) -> None:
    number = 2 + FAULTS.index(fault)  # grids every so many epochs: the same weights, and a training of its own for DVC
    settings = (*LONG, "-S", f"train_stage1.sample_every_epochs={number}")
    log_path = tmp_path / "submit.log"
    job = cluster.start(repository, "stackgan", "submit", "train_stage1", *settings, log_path=log_path)
    wait_for(lambda: "stage1 epoch 4/" in log_path.read_text(), job, log_path)
    fault(cluster)
    assert job.wait(400) == 0, log_path.read_text()[-6000:]
    assert generator_of(repository) == undisturbed
    (run,) = cluster.tracked(
        repository, f"params.`train_stage1.sample_every_epochs` = '{number}' and tags.stage = 'train_stage1'"
    )
    assert run["status"] == "FINISHED" and run["epochs"] == list(range(1, NUM_EPOCHS + 1))
    expected = {*range(number, NUM_EPOCHS + 1, number), NUM_EPOCHS}
    assert run["grids"] == [f"grids/epoch_{epoch:05d}.png" for epoch in sorted(expected)]
