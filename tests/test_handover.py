"""Results come home in a job's log whole, and nowhere else than where dvc.yaml says."""

import io
import zipfile
from pathlib import Path

import pytest

from pipeline.handover import (
    archive_in,
    contents_of,
    line_of,
    packed,
    result_paths,
    stages_of,
    with_upstream,
    write_results,
)
from tests.repository import ROOT

DVC_YAML = """
stages:
  train:
    cmd: python train.py
    outs: [models]
    metrics:
      - reports/train.json: {cache: false}
    plots:
      - reports/history.csv:
          cache: false
  report:
    cmd: python report.py
    outs:
      - reports/report.html: {cache: false}
      - samples
"""


def repository(folder: Path) -> Path:
    (folder / "reports").mkdir(parents=True)
    (folder / "dvc.yaml").write_text(DVC_YAML)
    return folder


def archive(**files: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, text in files.items():
            file.writestr(name, text)
    return content.getvalue()


def test_what_git_shows_is_handed_over(tmp_path: Path) -> None:
    root = repository(tmp_path)
    assert stages_of(root) == ["train", "report"]
    assert result_paths(root) == {"dvc.lock", "reports/train.json", "reports/history.csv", "reports/report.html"}


def test_results_come_home_in_a_log(tmp_path: Path) -> None:
    there, home = repository(tmp_path / "there"), repository(tmp_path / "home")
    for name, text in (("dvc.lock", "lock"), ("reports/train.json", "{}"), ("models", "large")):
        (there / name).write_text(text)
    (home / "dvc.lock").write_text("old")
    log = ["stage1 epoch 1/3", line_of(archive()), "more", line_of(packed(there)), "bye"]
    content = archive_in(log)
    assert content is not None
    contents = contents_of(content, home)
    assert contents == {"dvc.lock": b"lock", "reports/train.json": b"{}"}
    write_results(contents, home)
    assert (home / "dvc.lock").read_text() == "lock" and not (home / "models").exists()


def test_the_same_results_are_the_same_line(tmp_path: Path) -> None:
    root = repository(tmp_path)
    (root / "dvc.lock").write_text("lock")
    assert line_of(packed(root)) == line_of(packed(root))


def test_a_log_without_results_has_none() -> None:
    assert archive_in(["stage1 epoch 1/3"]) is None


@pytest.mark.parametrize("keep", [5, 30, 90, 120, -1])
def test_a_line_that_was_cut_is_refused(keep: int, tmp_path: Path) -> None:
    root = repository(tmp_path)
    (root / "dvc.lock").write_text("lock" * 100)
    line = line_of(packed(root))
    with pytest.raises(ValueError, match="were cut; submit again"):
        archive_in([line[: len("stackgan-results:") + keep] if keep > 0 else line[:keep]])


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "models/weights", "params.yaml", ".git/config"])
def test_a_file_that_dvc_yaml_does_not_name_is_refused(name: str, tmp_path: Path) -> None:
    root = repository(tmp_path)
    with pytest.raises(ValueError, match=r"files that dvc\.yaml does not name: "):
        contents_of(archive(**{"dvc.lock": "lock", name: "x"}), root)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="torn"):
        contents_of(b"no archive", repository(tmp_path))


def test_results_without_a_lock_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the results hold no dvc\.lock"):
        contents_of(archive(**{"reports/train.json": "{}"}), repository(tmp_path))


def test_a_stage_brings_those_along_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    in_order = stages_of(ROOT)
    assert with_upstream(in_order) == in_order
    assert with_upstream(["train_stage1"]) == [
        "make_demo_dataset", "crop_images", "fit_text_encoder", "embed_captions", "train_stage1",
    ]  # fmt: skip
    for index, stage in enumerate(in_order):  # dvc.yaml names a writer before its readers
        assert set(with_upstream([stage])) <= set(in_order[: index + 1])
