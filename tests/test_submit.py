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

from pipeline.data.files import file_sha256
from tests.local_cluster import (
    CONTINUED,
    FAULTS,
    LocalCluster,
    local_cluster,
    refusal,
    repository_at,
    stop_all_of,
    submit_among_faults,
)
from tests.repository import ROOT, Repository, wait_for

STAGES = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
NUM_EPOCHS = 90
SIGNS = (40, 50, 60, 70, 80)  # the epochs after which something fails, beyond those of the job that is cancelled
LONG = ("-S", "size=tiny", "-S", f"train_stage1.num_epochs={NUM_EPOCHS}")
# In seconds: a test may be the first, before which the cluster is started and a training submitted.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return repository_at(tmp_path_factory.mktemp("home") / "repository")


TRAINING = "train_stage1"
UPSTREAM = ["make_demo_dataset", "crop_images", "fit_text_encoder", "embed_captions", TRAINING]


@pytest.fixture(scope="module")
def trained(cluster: LocalCluster, repository: Repository) -> subprocess.CompletedProcess[str]:
    """Submit a training with what it needs, and wait for its results."""
    return cluster.run(repository, "stackgan", "submit", TRAINING, "-S", "size=tiny")


@pytest.fixture(scope="module")
def submitted(
    cluster: LocalCluster, repository: Repository, trained: subprocess.CompletedProcess[str]
) -> subprocess.CompletedProcess[str]:
    """Submit the whole DAG, of which the training is done, and wait for its results."""
    assert trained.returncode == 0
    return cluster.run(repository, "stackgan", "submit", "-S", "size=tiny")


def ran(done: subprocess.CompletedProcess[str]) -> list[str]:
    """List the stages that a submitted job ran."""
    assert done.returncode == 0, done.stderr[-4000:]
    return re.findall(r"Running stage '(\w+)'", done.stderr)


def require_equal_weights(repository: Repository, request: pytest.FixtureRequest, *models: str) -> None:
    """Compare with the models of the DAG at home, which may run meanwhile in another process of the tests."""
    at_home: Path = request.getfixturevalue("at_home")
    for model in models:
        weights = sorted((at_home / "models" / model).glob("*.safetensors"))
        assert weights
        for path in weights:
            assert file_sha256(path) == file_sha256(repository.folder / "models" / model / path.name), path


def test_a_submitted_training_comes_home_with_the_weights_of_home(
    repository: Repository, trained: subprocess.CompletedProcess[str], request: pytest.FixtureRequest
) -> None:
    assert ran(trained) == UPSTREAM
    assert repository.changed_stages().isdisjoint(UPSTREAM)
    assert "succeeded; written: dvc.lock, reports/" in trained.stdout
    assert "stackgan-results:" not in trained.stderr
    require_equal_weights(repository, request, "text_encoder", "stage1")


def test_a_second_submit_does_nothing(
    cluster: LocalCluster, repository: Repository, trained: subprocess.CompletedProcess[str]
) -> None:
    before = len(cluster.tracked(repository))
    done = cluster.run(repository, "stackgan", "submit", TRAINING)
    assert done.stdout == "nothing to do: every stage is reproduced\n"
    assert len(cluster.tracked(repository)) == before


def test_each_stage_has_one_finished_run_on_the_server(
    cluster: LocalCluster, repository: Repository, trained: subprocess.CompletedProcess[str]
) -> None:
    tracked = cluster.tracked(repository)
    runs = {run["stage"]: run for run in tracked}
    assert len(runs) == len(tracked) and runs.keys() >= set(UPSTREAM)
    commit = repository.run("git", "rev-parse", "HEAD").stdout.strip()
    for stage, run in runs.items():
        assert run["status"] == "FINISHED", stage
        assert run["tags"]["mlflow.source.git.commit"] == commit
        assert run["tags"]["git_changed_files"] == "1"  # params.yaml
    assert runs[TRAINING]["epochs"] == [1, 2, 3]


@pytest.mark.slow
def test_the_rest_of_the_dag_runs_alone_and_comes_home(
    cluster: LocalCluster,
    repository: Repository,
    submitted: subprocess.CompletedProcess[str],
    request: pytest.FixtureRequest,
) -> None:
    assert sorted(ran(submitted)) == sorted(set(STAGES) - set(UPSTREAM))
    assert repository.changed_stages() == set()
    assert {"models", "samples", "data"} <= {path.name for path in repository.folder.iterdir()}
    reports = json.loads((repository.folder / "reports" / "evaluate_inception.json").read_text())
    assert "stackgan" in reports["methods"]
    assert sorted(run["stage"] for run in cluster.tracked(repository)) == sorted(STAGES)
    require_equal_weights(repository, request, "stage2", "classifier")


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_jobs_status_is_ours(
    cluster: LocalCluster, repository: Repository, trained: subprocess.CompletedProcess[str]
) -> None:
    done = cluster.run(
        repository, "stackgan", "submit", "train_stage1", "-S", "size=tiny", "-S", "train_stage1.batch_size=7"
    )
    assert done.returncode == 1
    assert "train_stage1.batch_size 7 cannot be shared equally among 2 workers" in done.stderr
    repository.run("git", "checkout", "params.yaml")


@pytest.mark.slow
def test_a_change_of_the_last_stage_runs_that_alone(
    cluster: LocalCluster, repository: Repository, submitted: subprocess.CompletedProcess[str]
) -> None:
    """What the others wrote is in the remote and not on the cluster's machines; the generator there is registered."""
    done = cluster.run(repository, "stackgan", "submit", "-S", "size=tiny", "-S", "report.seed=1")
    assert ran(done) == ["report"]
    version = re.findall(r"registered as (models:/stackgan-demo/\d+)", submitted.stderr)[-1]
    assert f"registered as {version}" in done.stderr
    repository.run("git", "checkout", "params.yaml")


@pytest.mark.slow
def test_what_was_made_at_home_is_not_made_again(cluster: LocalCluster, tmp_path: Path) -> None:
    home = repository_at(tmp_path / "home")
    home.run("dvc", "exp", "run", "-S", "size=tiny", "-S", "make_demo_dataset.seed=3", "make_demo_dataset")
    assert ran(cluster.run(home, "stackgan", "submit", "crop_images")) == ["crop_images"]
    assert home.changed_stages().isdisjoint({"make_demo_dataset", "crop_images"})
    job = json.loads((home.folder / "runs" / "jobs" / "last.json").read_text())["job"]
    left = {folder.name for folder in cluster.folder.glob("*/scratch/jobs/*") if folder.is_dir()}
    assert left <= {job}  # what jobs before it left on the machines is gone


# Who is refused, and what stays secret.


def answer(cluster: LocalCluster, repository: Repository, url: str, **headers: str) -> int:
    """Return the status of an answer to a plain request from the submitter's machine."""
    ask = (
        "import json, sys, urllib.error, urllib.request as r\n"
        "try: print(r.urlopen(r.Request(sys.argv[1], headers=json.loads(sys.argv[2]))).status)\n"
        "except urllib.error.HTTPError as error: print(error.code)"
    )
    return int(cluster.run(repository, sys.executable, "-c", ask, url, json.dumps(headers)).stdout)


def test_strangers_are_refused(cluster: LocalCluster, repository: Repository) -> None:
    head, tracking = cluster.secrets["RAY_API_SERVER_ADDRESS"], cluster.secrets["MLFLOW_TRACKING_URI"]
    token = cluster.secrets["RAY_AUTH_TOKEN"]
    for path in ("/api/jobs/", "/api/version", "/api/packages/gcs/tree.zip", "/nodes?view=summary"):
        assert answer(cluster, repository, head + path) == 401
        assert answer(cluster, repository, head + path, Authorization="Bearer wrong") in (401, 403)
    assert answer(cluster, repository, f"{head}/api/jobs/", Authorization=f"Bearer {token}") == 200
    search = f"{tracking}/api/2.0/mlflow/experiments/search?max_results=1"
    assert answer(cluster, repository, search) == 200
    assert answer(cluster, repository, search, Host="evil.example") == 403


def test_no_secret_is_in_logs_runs_or_what_was_sent(
    cluster: LocalCluster, repository: Repository, trained: subprocess.CompletedProcess[str]
) -> None:
    secrets = [value for name, value in cluster.secrets.items() if name.endswith(("TOKEN", "KEY", "KEY_ID"))]
    assert len(secrets) == 3 and all(len(secret) == 32 for secret in secrets)
    assert not any(secret in trained.stderr + trained.stdout for secret in secrets)
    tracked = json.dumps(cluster.tracked(repository))
    assert not any(secret in tracked for secret in secrets)
    sent = [path for path in (repository.folder / "runs" / "jobs").rglob("*") if path.is_file()]
    own_logs = list((cluster.folder / "head" / "ray").glob("session_2*/logs/job-driver-*.log"))
    assert sent and own_logs
    for path in (*sent, *own_logs):
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in secrets), path


# What happens while a training runs.


@pytest.fixture(scope="module")
def undisturbed(cluster: LocalCluster, repository: Repository, trained: subprocess.CompletedProcess[str]) -> str:
    """Return the sha256 of the generator of a longer training on the cluster that nothing happened to."""
    done = cluster.run(repository, "stackgan", "submit", "train_stage1", *LONG)
    assert done.returncode == 0, done.stderr[-4000:]
    return generator_of(repository)


@pytest.mark.slow
def test_a_trainings_run_has_the_load_of_every_machine_at_work(
    cluster: LocalCluster, repository: Repository, undisturbed: str
) -> None:
    query = f"params.`train_stage1.num_epochs` = '{NUM_EPOCHS}' and params.`train_stage1.sample_every_epochs` = '2'"
    for run in cluster.tracked(repository, f"{query} and tags.stage = 'train_stage1'"):
        loads = [name.split("/") for name in run["metrics"] if name.startswith("system/")]
        machines = {name[1] for name in loads if len(name) == 3}  # beside that of the head, where the stage runs
        assert machines and machines <= {"10.77.0.7", "10.77.0.8"}
        assert ["system", "cpu_utilization_percentage"] in loads


def generator_of(repository: Repository) -> str:
    return file_sha256(repository.folder / "models" / "stage1" / "generator.safetensors")


def wait_until(holds: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        os.sched_yield()


@pytest.mark.slow
def test_a_job_left_attached_to_cancelled_and_struck_by_faults_ends_as_an_undisturbed_one(
    cluster: LocalCluster, repository: Repository, undisturbed: str, tmp_path: Path
) -> None:
    """A training that each part of the cluster fails in its turn; benchmarks/faults.py does it to the whole demo."""
    every = 3  # grids every so many epochs: the same weights, and a training of its own for DVC
    settings = (*LONG, "-S", f"train_stage1.sample_every_epochs={every}")
    done = cluster.run(repository, "stackgan", "submit", "train_stage1", *settings, "--detach")
    assert "runs on; stackgan attach, stackgan cancel" in done.stdout, done.stderr
    attach_log = tmp_path / "attach.log"
    attached = cluster.start(repository, "stackgan", "attach", log_path=attach_log)
    wait_for(lambda: "stage1 epoch 3/" in attach_log.read_text(), attached, attach_log)
    assert "is stopping; submitted again, it goes on" in cluster.run(repository, "stackgan", "cancel").stdout
    assert attached.wait(60) != 0
    assert "stopped; its log says why above" in attach_log.read_text()
    wait_until(lambda: cluster.run(repository, "stackgan", "cancel").returncode == 1)
    assert "does not run (stopped)" in refusal(cluster.run(repository, "stackgan", "cancel"))

    signs = tuple(f"stage1 epoch {epoch}/" for epoch in SIGNS)
    log_path = tmp_path / "submit.log"
    struck = submit_among_faults(cluster, repository, signs, log_path, "train_stage1", *settings)
    assert CONTINUED in log_path.read_text().partition(signs[0])[0]
    for one, may_move in zip(struck, FAULTS.values(), strict=True):
        assert one.moved in may_move, one
    assert generator_of(repository) == undisturbed
    (run,) = cluster.tracked(
        repository, f"params.`train_stage1.num_epochs` = '{NUM_EPOCHS}' and tags.stage = 'train_stage1' and "
        f"params.`train_stage1.sample_every_epochs` = '{every}'"
    )  # fmt: skip
    assert run["status"] == "FINISHED" and run["epochs"] == list(range(1, NUM_EPOCHS + 1))
    assert run["grids"] == [f"grids/epoch_{epoch:05d}.png" for epoch in range(every, NUM_EPOCHS + 1, every)]
