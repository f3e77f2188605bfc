"""`stackgan tables`: the newest scores of each system, by its configuration, and what is told where there are none."""

from pathlib import Path

import pytest

from pipeline.paper_tables import run_tables, show_tables
from pipeline.systems import known_systems
from tests.tracked_data import track_evaluation

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def own_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    (tmp_path / "params.yaml").symlink_to(ROOT / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_the_newest_scores_of_each_system_are_shown_and_other_trainings_left_out(tmp_path: Path) -> None:
    known = known_systems()
    for choice, mean in (("stackgan_256", 1.11), ("gawwn", 2.22), ("stackgan_256", 3.33)):
        track_evaluation(known[choice], mean)
    track_evaluation(known["stackgan_256"] | {"gan.ema_decay": "0.5"}, 4.44)
    shown = "\n".join(show_tables(None, tmp_path / "tables.html"))
    assert "3.33 ± 0.05" in shown and "2.22 ± 0.05" in shown and "1.11" not in shown and "4.44" not in shown
    assert "StackGAN above GAWWN" in shown and "holds" in shown
    assert (tmp_path / "tables.html").read_text().count("<img ") == 2 * 2


def test_scores_of_unlike_protocols_are_refused_and_no_page_is_written(tmp_path: Path) -> None:
    known = known_systems()
    track_evaluation(known["stackgan_256"], 2.0)
    track_evaluation(known["gawwn"], 2.0, seed=5)
    with pytest.raises(ValueError, match=r"cannot be compared.*seed \(gawwn: 5, stackgan_256: 0\)"):
        show_tables("demo", tmp_path / "tables.html")
    assert not (tmp_path / "tables.html").exists()


def test_a_data_set_of_which_nothing_is_tracked_is_told_the_command(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run `stackgan tables run`"):
        show_tables("cub", tmp_path / "tables.html")


def test_what_cannot_be_queued_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="conf/gan has no stackgan_512"):
        run_tables(["stackgan_512"], [], is_queued_only=True)
    assert not (tmp_path / "mlflow.db").exists()
