"""A job is the tree that git sees, named by what it holds."""

import json
import subprocess
from pathlib import Path

import pytest

from pipeline.jobs import JobInfo
from pipeline.submitting import JOBS_DIR, exit_status, prepared, remembered, shown

ADDRESS = "http://head:8265"


def git(*arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments], check=True)


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a small repository with a stage and a remote, and stand in it."""
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    Path("dvc.yaml").write_text("stages:\n  train: {cmd: python train.py}\n")
    Path("train.py").write_text("print()\n")
    Path("run.sh").write_text("#!/bin/sh\n")
    Path("run.sh").chmod(0o755)
    Path(".gitignore").write_text("/runs\n/secret\n")
    Path("secret").write_text("key")
    Path(".dvc").mkdir()
    Path(".dvc/.gitignore").write_text("/tmp\n")
    Path(".dvc/config").write_text("[core]\n    remote = store\n['remote \"store\"']\n    url = s3://bucket/dvc\n")
    git("add", "--all")
    git("commit", "--quiet", "--message", "all")
    return tmp_path


def sent(job: str) -> set[str]:
    folder = JOBS_DIR / job
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_git_sees_is_sent_and_nothing_else() -> None:
    names = {".dvc/.gitignore", ".dvc/config", ".gitignore", "dvc.yaml", "run.sh", "train.py"}
    Path("new.py").write_text("")
    submission = prepared(ADDRESS, [])
    assert sent(submission.job) == names | {"new.py"}
    assert (submission.tree / "run.sh").stat().st_mode & 0o100
    about = json.loads(submission.env["STACKGAN_GIT"])
    assert len(about["mlflow.source.git.commit"]) == 40


def test_a_job_is_named_by_what_it_holds() -> None:
    name = prepared(ADDRESS, []).job
    assert prepared("http://other:8265", []).job == name
    others = {prepared(ADDRESS, ["train"]).job}
    Path("train.py").write_text("print(1)\n")
    others.add(prepared(ADDRESS, []).job)
    Path("train.py").write_text("print()\n")
    Path("run.sh").chmod(0o644)
    others.add(prepared(ADDRESS, []).job)
    Path("run.sh").chmod(0o755)
    Path("run.sh").rename("renamed.sh")
    others.add(prepared(ADDRESS, []).job)
    assert len(others | {name}) == 5


def test_a_submission_is_remembered() -> None:
    first, last = prepared(ADDRESS, ["train"]), prepared(ADDRESS, [])
    assert remembered(None) == last and remembered(first.job) == first


@pytest.mark.parametrize("job", ["stackgan-unknown", "../../secret", "/etc/passwd"])
def test_a_job_that_was_not_submitted_from_here_is_told(job: str) -> None:
    with pytest.raises(ValueError, match=r"was submitted from here \(runs/jobs/.*\.json is missing\)"):
        remembered(job)


def test_nothing_submitted_yet_is_told() -> None:
    with pytest.raises(ValueError, match="no job was submitted from here"):
        remembered(None)


def test_an_unknown_stage_is_told() -> None:
    with pytest.raises(ValueError, match=r"dvc\.yaml has no stage tarin; it has train"):
        prepared(ADDRESS, ["tarin"])


def test_another_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path / "runs")
    with pytest.raises(ValueError, match="run from the repository's root"):
        prepared(ADDRESS, [])


def test_the_line_of_results_is_not_shown() -> None:
    log = "stage1 epoch 1/3\nstackgan-results: 12 34\nbye"
    assert shown(log) == "stage1 epoch 1/3\nbye"


@pytest.mark.parametrize(
    ("info", "status"),
    [
        (JobInfo(state="succeeded", exit_status=0, message=""), 0),
        (JobInfo(state="failed", exit_status=3, message=""), 3),
        (JobInfo(state="failed", exit_status=None, message="its node died"), 1),
        (JobInfo(state="stopped", exit_status=None, message=""), 1),
        (JobInfo(state="stopped", exit_status=0, message=""), 1),
    ],
)
def test_the_jobs_status_is_the_commands(info: JobInfo, status: int) -> None:
    assert exit_status(info) == status
