"""A job is the tree that git sees, named by what it holds."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.cli import main
from pipeline.handover import line_of, packed
from pipeline.jobs import JobInfo
from pipeline.submitting import (
    JOBS_DIR,
    bring_home,
    exit_status,
    is_reproduced,
    prepared,
    push_data,
    remembered,
    run_dvc,
    shown,
)
from tests.repository import ROOT

ADDRESS = "http://head:8265"


def git(*arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments], check=True)


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a small repository with a stage and a remote, and stand in it."""
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    Path("dvc.yaml").write_text(
        "stages:\n  train: {cmd: python train.py, deps: [raw], outs: [model]}\n"
        "  test: {cmd: python test.py, deps: [model/best]}\n"
    )
    Path("params.yaml").write_text("dataset: {name: tiny}\n")
    Path("train.py").write_text("print()\n")
    Path("run.sh").write_text("#!/bin/sh\n")
    Path("run.sh").chmod(0o755)
    Path(".gitignore").write_text("/runs\n/secret\n/raw\n/model\n")
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
    names = {".dvc/.gitignore", ".dvc/config", ".gitignore", "dvc.yaml", "params.yaml", "run.sh", "train.py"}
    Path("new.py").write_text("")
    submission = prepared(ADDRESS, [])
    assert sent(submission.job) == names | {"new.py"}
    assert (submission.tree / "run.sh").stat().st_mode & 0o100
    about = json.loads(submission.env["STACKGAN_GIT"])
    assert len(about["mlflow.source.git.commit"]) == 40


def test_a_job_computes_on_as_many_threads_as_home_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert prepared(ADDRESS, []).env["STACKGAN_NUM_THREADS"] == "3"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert "STACKGAN_NUM_THREADS" not in prepared(ADDRESS, []).env  # the head's own counts


def test_what_a_stage_reads_is_sent_unless_dvc_carries_it() -> None:
    Path("raw/__pycache__").mkdir(parents=True)
    Path("model/best").mkdir(parents=True)
    Path("model/best/weights").write_text("an output")
    Path("raw/a name.txt").write_text("data")
    Path("raw/__pycache__/x.pyc").write_text("")
    assert "raw/a name.txt" in sent(prepared(ADDRESS, []).job)
    assert not any("pyc" in name or "model" in name for name in sent(remembered(None).job))
    Path("raw.dvc").write_text("outs: []\n")
    assert {name for name in sent(prepared(ADDRESS, []).job) if "raw" in name} == {"raw.dvc"}


def test_a_link_out_of_the_tree_is_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    key = tmp_path_factory.mktemp("elsewhere") / "key"
    key.write_text("secret")
    Path("linked.py").symlink_to("train.py")
    prepared(ADDRESS, [])
    Path("key").symlink_to(key)
    with pytest.raises(ValueError, match="key is a link out of the repository"):
        prepared(ADDRESS, [])


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
    with pytest.raises(ValueError, match=r" is not known here \(runs/jobs/.*\.json is missing\)"):
        remembered(job)


def test_nothing_submitted_yet_is_told() -> None:
    with pytest.raises(ValueError, match="no job was submitted from here"):
        remembered(None)


def test_an_unknown_stage_is_told() -> None:
    with pytest.raises(ValueError, match=r"dvc\.yaml has no stage tarin; it has train, test"):
        prepared(ADDRESS, ["tarin"])


def test_another_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path / "runs")
    with pytest.raises(ValueError, match="run from the repository's root"):
        prepared(ADDRESS, [])


def test_the_line_of_results_is_not_shown() -> None:
    log = "stage1 epoch 1/3\nstackgan-results: 12 34\nbye"
    assert shown(log) == "stage1 epoch 1/3\nbye"


# What DVC has here, and what it brings home.


@pytest.fixture
def with_dvc(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Let DVC reproduce three stages and keep data of nobody's; return its remote, a folder."""
    remote = tmp_path_factory.mktemp("remote")
    Path(".dvc/config").unlink()
    run_dvc("init", "--quiet", "--force")
    run_dvc("remote", "add", "--quiet", "--default", "store", str(remote))
    stages = {
        name: {
            "cmd": f"mkdir -p {name} && echo {name} > {name}/file && echo {{}} > {name}.json",
            "deps": [reads], "outs": [name], "metrics": [{f"{name}.json": {"cache": False}}],
        }
        for name, reads in (("first", "raw"), ("second", "first"), ("third", "second"))
    }  # fmt: skip
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    Path(".gitignore").write_text("/runs\n/raw\n/first\n/second\n/third\n")
    Path("raw").mkdir()
    Path("raw/file").write_text("raw")
    run_dvc("add", "--quiet", "raw")
    run_dvc("repro", "--quiet")
    return remote


def lock_sent(job: str) -> set[str]:
    return set(yaml.safe_load((JOBS_DIR / job / "dvc.lock").read_text())["stages"])


def forget(remote: Path, *names: str) -> None:
    """Remove outputs from here, from the cache and from the remote."""
    lock = yaml.safe_load(Path("dvc.lock").read_text())["stages"]
    hashes = [lock[name]["outs"][0]["md5"] for name in names]
    for folder in (remote, Path(".dvc/cache")):
        for md5 in hashes:
            (folder / "files" / "md5" / md5[:2] / md5[2:]).unlink(missing_ok=True)
    for name in names:
        shutil.rmtree(name)


def test_outputs_made_here_are_pushed(with_dvc: Path) -> None:
    submission = prepared(ADDRESS, [])
    assert not (with_dvc / "files").exists()
    push_data(submission)
    for name in ("raw", "first", "second", "third"):
        shutil.rmtree(name)
    shutil.rmtree(".dvc/cache")
    run_dvc("pull", "--quiet")
    assert all(Path(name, "file").is_file() for name in ("raw", "first", "second", "third"))
    assert lock_sent(submission.job) == {"first", "second", "third"}


def test_outputs_that_are_nowhere_are_made_anew(with_dvc: Path) -> None:
    run_dvc("push", "--quiet")
    forget(with_dvc, "second")
    assert is_reproduced([])
    submission = prepared(ADDRESS, [])
    push_data(submission)
    assert lock_sent(submission.job) == {"first", "third"}


def test_data_that_is_nowhere_is_told(with_dvc: Path) -> None:
    md5 = yaml.safe_load(Path("raw.dvc").read_text())["outs"][0]["md5"]
    (Path(".dvc/cache/files/md5") / md5[:2] / md5[2:]).unlink()
    shutil.rmtree("raw")
    with pytest.raises(ValueError, match=r"^raw: neither in DVC's cache nor in its remote"):
        push_data(prepared(ADDRESS, []))


def test_results_go_over_nothing_newer(with_dvc: Path) -> None:
    submission = prepared(ADDRESS, ["second"])
    sent = Path("dvc.lock").read_bytes()
    Path("dvc.lock").write_bytes(sent + b"# of the cluster\n")
    log = line_of(packed(Path()))
    Path("dvc.lock").write_bytes(sent)
    assert "dvc.lock" in bring_home(submission, log)
    bring_home(submission, log)  # once more is no harm
    Path("dvc.lock").write_bytes(sent + b"# of a stage that ran here\n")
    with pytest.raises(ValueError, match=rf"dvc\.lock has changed here since {submission.job} was sent"):
        bring_home(submission, log)
    assert Path("dvc.lock").read_bytes() == sent + b"# of a stage that ran here\n"


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


def test_a_submit_that_cannot_be_sent_leaves_the_params_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (tmp_path / "params.yaml").write_text("mine: 1\n")
    monkeypatch.chdir(tmp_path)
    for address in ("nowhere", ""):
        monkeypatch.setattr("sys.argv", ["stackgan", "submit", "-S", "dataset=cub", "--address", address])
        with pytest.raises(SystemExit, match=r"is no address of a cluster|no cluster is named"):
            main()
    assert (tmp_path / "params.yaml").read_text() == "mine: 1\n"
