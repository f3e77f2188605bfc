"""What was tracked, read back: the newest first, along the lineage, whole."""

from pathlib import Path

import pytest

from pipeline import tracked
from pipeline.tracked import evaluations
from tests.tracked_data import CAPTIONS, as_json, grey_of, scores, track_evaluation


@pytest.fixture(autouse=True)
def own_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # artifacts of a SQLite file go to ./mlruns
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_finished_evaluations_of_the_data_set_come_newest_first_over_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracked, "RUNS_AT_ONCE", 2)
    ids = [track_evaluation({}, 2.0) for _ in range(5)]
    track_evaluation({}, 2.0, status="FAILED")
    track_evaluation({}, 2.0, dataset="cub")
    assert [evaluation.run_id for evaluation in evaluations("demo")] == ids[::-1]
    assert list(evaluations("coco")) == []


def test_settings_report_and_gallery_are_those_of_the_runs_behind_it() -> None:
    track_evaluation({"gan.stage1_size": "64", "train_stage2.num_epochs": "2"}, 2.5)
    (evaluation,) = evaluations("demo")
    assert evaluation.settings == {"gan.stage1_size": "64", "train_stage2.num_epochs": "2", "code": "c0ffee00"}
    assert evaluation.report() == as_json({"methods": {"stackgan": scores(2.5)}})
    captions, pictures = evaluation.gallery("stackgan")
    assert tuple(captions) == CAPTIONS and [grey_of(png) for png in pictures] == [0, 1]


def test_samples_without_a_gallery_are_refused_by_their_run() -> None:
    track_evaluation({}, 2.0, with_gallery=False)
    (evaluation,) = evaluations("demo")
    samples = evaluation.run.data.tags["upstream.generate_samples"]
    with pytest.raises(
        ValueError, match=f"MLflow run {samples} holds no gallery/captions.json .*; run the system anew"
    ):
        evaluation.gallery("stackgan")


@pytest.mark.parametrize("lost", ["tag", "run"])
def test_of_a_lineage_that_is_lost_the_settings_are_missing(lost: str, tmp_path: Path) -> None:
    run_id = track_evaluation({"gan.stage1_size": "64", "evaluate_inception.seed": "0"}, 2.0)
    (evaluation,) = evaluations("demo")
    if lost == "tag":
        evaluation.client.delete_tag(run_id, "upstream.generate_samples")
    else:
        evaluation.client.set_tag(run_id, "upstream.generate_samples", "0" * 32)
    (again,) = evaluations("demo")
    assert again.settings == {"evaluate_inception.seed": "0", "code": ""}
