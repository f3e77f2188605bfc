"""What a job asks of its cluster before the first stage."""

import os
from pathlib import Path

import pytest

from pipeline.cluster_job import _set_threads, progress_of, require_places, require_versions
from tests.repository import ROOT


def test_what_is_installed_is_what_the_tree_asks_for() -> None:
    require_versions(ROOT / "requirements.txt")


def test_another_version_is_told_with_the_remedy(tmp_path: Path) -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    lines = [{"torch": "torch==1.0.1", "mlflow": "mlflow==9.9"}.get(line.partition("==")[0], line) for line in lines]
    (tmp_path / "requirements.txt").write_text("\n".join(lines))
    with pytest.raises(
        ValueError,
        match=r"^the cluster has torch \S+ in place of 1\.0\.1, mlflow \S+ in place of 9\.9: rebuild its image",
    ):
        require_versions(tmp_path / "requirements.txt")


@pytest.mark.parametrize("missing", ["RUN_STORAGE", "MLFLOW_TRACKING_URI"])
def test_a_place_that_is_not_given_is_told(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_STORAGE", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.delenv(missing)
    with pytest.raises(ValueError, match=f"the cluster's nodes have no {missing}: set it where they are started"):
        require_places(progress_of("job"))


def test_an_mlflow_server_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_STORAGE", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:1"):
        require_places(progress_of("job"))


def test_progress_is_kept_where_checkpoints_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_STORAGE", str(tmp_path))
    assert progress_of("job").place == f"{tmp_path}/jobs/job"
    monkeypatch.setenv("RUN_STORAGE", "s3://bucket/runs")
    assert progress_of("job").place == "s3://bucket/runs/jobs/job"


@pytest.mark.parametrize("asked", [None, "", "3"])
def test_rays_one_thread_is_not_the_stages(asked: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as Ray leaves it
    if asked is None:
        monkeypatch.delenv("STACKGAN_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("STACKGAN_NUM_THREADS", asked)
    _set_threads()
    assert os.environ.get("OMP_NUM_THREADS") == (asked or None)
