"""Tracking against a real MLflow on SQLite: one run a stage, found again after a failure, nothing logged twice."""

import json
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from mlflow.tracking import MlflowClient

from pipeline import tracking
from pipeline.tracking import (
    NullRun,
    StageRun,
    fingerprint,
    input_hashes,
    read_stage_node,
    scratch_dir,
    stage_run,
    storage_bucket,
    storage_root,
    tracking_uri,
    tree_sha256,
)

ROOT = Path(__file__).parent.parent
DVC = {
    "stages": {
        "first": {"cmd": "x", "params": ["first"], "deps": ["raw/${dataset.name}"], "outs": ["made"]},
        "second": {
            "cmd": "x",
            "params": ["second"],
            "deps": ["made"],
            "outs": ["end"],
            "metrics": [{"scores.json": {"cache": False}}],
        },
    }
}
PARAMS = {"dataset": {"name": "tiny"}, "first": {"a": 1}, "second": {"b": 0.5}}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with two stages, as the working folder."""
    for name in ("RUN_STORAGE", "MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "STACKGAN_JOB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(DVC))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    (tmp_path / "raw" / "tiny").mkdir(parents=True)
    (tmp_path / "raw" / "tiny" / "file").write_text("data")
    return tmp_path


def client() -> MlflowClient:
    return MlflowClient(f"sqlite:///{storage_root()}/mlflow.db")


def run_first(content: str = "made of it") -> str:
    with stage_run("first") as run:
        Path("made").write_text(content)
    return run.run_id


def run_second() -> str:
    with stage_run("second") as run:
        Path("end").mkdir(exist_ok=True)
        Path("end/file").write_text("end")
        Path("scores.json").write_text('{"score": {"mean": 2.5, "names": ["x"]}, "ok": true}')
    return run.run_id


def test_a_stage_run_holds_params_outputs_and_the_numbers_of_its_reports(project: Path) -> None:
    run_first()
    run = client().get_run(run_second())
    assert run.info.status == "FINISHED" and run.info.run_name == "second"
    assert run.data.params == {"second.b": "0.5"}
    assert run.data.metrics == {"score.mean": 2.5}
    assert run.data.tags["output.end"] == tree_sha256(Path("end"))


def test_a_lineage_can_be_walked_by_the_bytes_of_the_outputs(project: Path) -> None:
    old, new = run_first("one"), run_first("two")
    assert client().get_run(run_second()).data.tags["upstream.first"] == new != old


def fingerprint_of_first() -> str:
    node = read_stage_node("first")
    return fingerprint(node, input_hashes(node))


def test_the_fingerprint_follows_params_and_inputs_and_nothing_else(project: Path) -> None:
    before = fingerprint_of_first()
    (project / "raw/tiny/__pycache__").mkdir()
    (project / "raw/tiny/__pycache__/x.pyc").write_text("")
    (project / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "second": {"b": 9.0}}))
    assert fingerprint_of_first() == before
    (project / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "first": {"a": 2}}))
    assert fingerprint_of_first() != before
    (project / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    (project / "raw/tiny/file").write_text("other data")
    assert fingerprint_of_first() != before


def test_the_provenance_is_of_the_moment_the_stage_began(project: Path) -> None:
    inputs, mark = {"raw/tiny": tree_sha256(Path("raw/tiny"))}, fingerprint_of_first()
    with stage_run("first") as run:
        (project / "raw/tiny/file").write_text("other data")
        Path("made").write_text("x")
        copy: StageRun = pickle.loads(pickle.dumps(run))  # as a training worker gets it
        assert json.loads(json.dumps(copy.provenance)) == {"fingerprint": mark, "code": "", "inputs": inputs}
    assert client().get_run(run.run_id).data.tags["fingerprint"] == mark


def code_of_first(project: Path) -> object:
    (project / "made").unlink(missing_ok=True)  # as DVC does before it runs a stage
    with stage_run("first") as run:
        Path("made").write_text("x")
    return run.provenance["code"]


def test_the_provenance_names_the_commit_and_whether_other_files_than_the_outputs_differ(project: Path) -> None:
    def git(*arguments: str) -> str:
        settings = ("user.name=a", "user.email=a@b.c", "commit.gpgsign=false")
        options = [part for setting in settings for part in ("-c", setting)]
        return subprocess.run(["git", *options, *arguments], capture_output=True, text=True, check=True).stdout.strip()

    (project / "made").write_text("x")
    git("init")
    git("add", "dvc.yaml", "params.yaml", "raw", "made")
    git("commit", "-m", "all")
    commit = git("rev-parse", "HEAD")
    assert code_of_first(project) == commit
    (project / "dvc.yaml").write_text((project / "dvc.yaml").read_text() + "# changed")
    assert code_of_first(project) == f"{commit}+changes"


def test_a_failed_run_is_continued_and_a_finished_one_is_not(project: Path) -> None:
    with pytest.raises(RuntimeError), stage_run("first") as failed:
        raise RuntimeError
    assert client().get_run(failed.run_id).info.status == "FAILED"
    assert run_first() == failed.run_id
    assert run_first() != failed.run_id


def test_a_job_that_lost_its_machine_goes_on_in_its_finished_run(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STACKGAN_JOB", "one")
    Path("made").write_text("made of it")
    first = run_second()
    before = client().get_run(first)
    assert run_second() == first
    after = client().get_run(first)
    assert after.info.status == "FINISHED" and after.data.tags["job"] == "one"
    assert after.data.metrics.keys() >= {"score.mean"} and after.data.params == before.data.params
    assert len(client().get_metric_history(first, "score.mean")) == 1
    monkeypatch.setenv("STACKGAN_JOB", "two")
    assert run_second() != first


def test_changed_params_open_a_new_run_and_another_folder(project: Path) -> None:
    with pytest.raises(RuntimeError), stage_run("first") as failed:
        raise RuntimeError
    (project / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "first": {"a": 2}}))
    with stage_run("first") as run:
        Path("made").write_text("x")
        assert run.run_id != failed.run_id and run.claim_storage() != failed.claim_storage()


def test_a_history_is_logged_once_however_often_it_is_told(project: Path) -> None:
    rows = [{"step": step, "d_loss": step / 2, "g_loss": 1.0} for step in range(3, 2400, 3)]
    with stage_run("first") as run:
        run.log_history(rows[:2])
        copy: StageRun = pickle.loads(pickle.dumps(run))  # as another process opens it, after a crash
        copy.log_history(rows)
        copy.log_history(rows)
        Path("made").write_text("x")
    logged = client().get_metric_history(run.run_id, "d_loss")
    assert [(metric.step, metric.value) for metric in logged] == [(row["step"], row["d_loss"]) for row in rows]


def test_only_rank_zero_records(project: Path) -> None:
    with stage_run("first") as run:
        assert run.for_rank(0) is run and isinstance(run.for_rank(1), NullRun)
        Path("made").write_text("x")


def test_a_second_process_waits_for_the_one_that_holds_the_storage(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held_dir = storage_root() / "first-held"
    hold = (
        "import sys; from pathlib import Path; from pipeline.tracking import *\n"
        "run = StageRun(read_stage_node('first'), '', '', Path(sys.argv[1]), {})\n"
        "run.claim_storage(); print('held', flush=True); sys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(held_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert holder.stdin is not None and holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    second = StageRun(read_stage_node("first"), "", "", held_dir, {})
    with ThreadPoolExecutor() as pool, caplog.at_level(logging.WARNING):
        waiting = pool.submit(second.claim_storage)
        while "waiting for it" not in caplog.text:
            os.sched_yield()
        assert not waiting.done() and f"kill {holder.pid}" in caplog.text
        holder.communicate()
        assert waiting.result() == held_dir
    holder.stdout.close()


def test_a_missing_input_names_itself_and_opens_no_run(project: Path) -> None:
    with pytest.raises(ValueError, match="made is missing"), stage_run("second"):
        pass
    assert not (storage_root() / "mlflow.db").exists()


def test_a_queued_experiment_tracks_into_the_repository_it_was_copied_from(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = project / ".dvc" / "tmp" / "exps" / "copy"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert storage_root() == project / "runs"
    monkeypatch.setenv("RUN_STORAGE", str(project / "elsewhere"))
    assert storage_root() == project / "elsewhere"


def load_of(run_id: str) -> list[int]:
    """Return the steps of the samples of the CPU's load that a run has."""
    return [metric.step for metric in client().get_metric_history(run_id, "system/cpu_utilization_percentage")]


def wait_for_load(run_id: str, num_samples: int) -> None:
    while len(load_of(run_id)) < num_samples:
        os.sched_yield()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample the machine's load twenty times a second."""
    monkeypatch.setattr(tracking, "SYSTEM_METRICS_SEC", 0.05)


@pytest.mark.usefixtures("often")
def test_the_load_of_a_continued_run_goes_on_where_it_ended(project: Path) -> None:
    with pytest.raises(RuntimeError), stage_run("first") as failed:
        wait_for_load(failed.run_id, 2)
        raise RuntimeError
    num_earlier = len(load_of(failed.run_id))
    with stage_run("first") as run:
        assert run.run_id == failed.run_id
        wait_for_load(run.run_id, num_earlier + 2)
        Path("made").write_text("x")
    steps = load_of(run.run_id)
    assert steps == list(range(len(steps))) and len(steps) >= num_earlier + 2
    assert "system/system_memory_usage_percentage" in client().get_run(run.run_id).data.metrics


@pytest.mark.usefixtures("often")
def test_nothing_watches_the_machine_once_a_stage_has_ended_and_nothing_is_said_of_it(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError), stage_run("first") as run:
        wait_for_load(run.run_id, 1)
        assert "SystemMetricsMonitor" in {thread.name for thread in threading.enumerate()}
        raise RuntimeError
    assert "SystemMetricsMonitor" not in {thread.name for thread in threading.enumerate()}
    said = "".join(capfd.readouterr())
    assert "metrics" not in said and "GPU" not in said


@pytest.mark.usefixtures("often")
def test_a_history_is_whole_beside_the_load_of_the_machine(project: Path) -> None:
    rows = [{"step": step, "d_loss": step / 2} for step in range(0, 200, 10)]
    with stage_run("first") as run:
        wait_for_load(run.run_id, 3)  # later steps than the first rows
        for end in range(1, len(rows) + 1):
            run.log_history(rows[:end])
        Path("made").write_text("x")
    assert [metric.step for metric in client().get_metric_history(run.run_id, "d_loss")] == list(range(0, 200, 10))


def test_a_stage_runs_where_the_load_cannot_be_read(project: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.tracking import run_stage, stage_run\n"
        "sys.modules['psutil'] = None  # as where it is not installed\n"
        "def main():\n"
        "    with stage_run('first') as run: Path('made').write_text(run.run_id)\n"
        "run_stage(main)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stderr.count("first: the machine's load is not logged: ModuleNotFoundError: ") == 1
    assert client().get_run((project / "made").read_text()).info.status == "FINISHED"


def test_a_scratch_folder_is_this_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert scratch_dir() == scratch_dir() == tmp_path / f"stackgan-{os.getuid()}"
    assert scratch_dir().stat().st_mode & 0o777 == 0o700
    stranger = os.getuid() + 1
    (tmp_path / f"stackgan-{stranger}").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: stranger)
    with pytest.raises(ValueError, match=f"stackgan-{stranger} belongs to another user: remove it"):
        scratch_dir()


def test_a_bucket_has_a_folder_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    places: list[Path] = []
    for bucket in ("s3://bucket/runs", "s3://bucket/runs/", "s3://other/runs"):
        monkeypatch.setenv("RUN_STORAGE", bucket)
        places.append(storage_root())
        assert storage_bucket() == bucket.rstrip("/")
    assert places[0] == places[1] != places[2] and {place.parent for place in places} == {scratch_dir()}
    monkeypatch.setenv("RUN_STORAGE", "/a/folder")
    assert storage_bucket() is None and storage_root() == Path("/a/folder")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("RUN_STORAGE", "s3://bucket/runs")
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI"):
        tracking_uri()


def test_a_storage_that_cannot_be_made_is_told_with_its_variable(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUN_STORAGE", "/proc/nowhere")
    with pytest.raises(ValueError, match=r"/proc/nowhere cannot be made \(.+\); set RUN_STORAGE"), stage_run("first"):
        pass


def test_outside_of_a_repository_one_is_told_where_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"dvc\.yaml is missing: run from the repository's root"):
        read_stage_node("first")
