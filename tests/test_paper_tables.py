"""`stackgan tables`: the newest scores of each system with just these settings, and what is told without any."""

from pathlib import Path

import pytest

from pipeline.paper_tables import run_tables, show_tables
from pipeline.systems import settings_of
from tests.tracked_data import track_evaluation

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def own_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("conf", "dvc.yaml", "params.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")


def track(system: str, mean: float, *overrides: str, seed: int = 0) -> None:
    track_evaluation(settings_of(system, overrides), mean, seed=seed)


def shown(tmp_path: Path, *overrides: str) -> str:
    return "\n".join(show_tables(overrides, tmp_path / "tables.html"))


def test_the_newest_scores_of_each_system_stand_in_its_row(tmp_path: Path) -> None:
    for system, mean in (("stackgan_256", 1.11), ("gawwn", 2.22), ("stackgan_256", 3.33)):
        track(system, mean)
    told = shown(tmp_path)
    assert "3.33 ± 0.05" in told and "2.22 ± 0.05" in told and "1.11" not in told
    assert "StackGAN above GAWWN" in told and "holds" in told
    assert (tmp_path / "tables.html").read_text().count("<img ") == 2 * 2


def test_scores_of_other_settings_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A try with one epoch, another size or another key must not pass for the system."""
    caplog.set_level("INFO")
    track("stackgan_256", 2.0)
    track("stage1_64", 1.5)
    for number, override in enumerate(("train_stage1.num_epochs=1", "size=tiny", "gan.ema_decay=0.5")):
        track("stackgan_256", 4.0 + number, override, seed=number + 1)
    told = shown(tmp_path)
    assert "2.00 ± 0.05" in told and "1.50 ± 0.05" in told and "4.00" not in told
    assert "left out: 3 tracked evaluations on demo, of other settings than the default ones" in caplog.text
    assert "6.00 ± 0.05" in shown(tmp_path, "gan.ema_decay=0.5")
    assert "5.00 ± 0.05" in shown(tmp_path, "size=tiny")


def test_a_file_of_ones_own_in_conf_is_a_system_with_a_row(tmp_path: Path) -> None:
    (tmp_path / "conf").unlink()
    (tmp_path / "conf" / "gan").mkdir(parents=True)
    for path in (ROOT / "conf").rglob("*.yaml"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    mine = "# @package _global_\ndefaults:\n  - stackgan_256\ntrain_stage1:\n  seed: 77\n"
    (tmp_path / "conf" / "gan" / "mine.yaml").write_text(mine)
    track("mine", 2.5)
    track("stackgan_256", 2.0)
    (line,) = (line for line in shown(tmp_path).splitlines() if line.strip().startswith("mine"))
    assert "2.50 ± 0.05" in line


def test_scores_of_unlike_protocols_are_refused_and_no_page_is_written(tmp_path: Path) -> None:
    track("stackgan_256", 2.0)
    track("gawwn", 2.0, seed=5)
    with pytest.raises(ValueError, match=r"cannot be compared.*seed \(gawwn: 5, stackgan_256: 0\)"):
        shown(tmp_path)
    assert not (tmp_path / "tables.html").exists()


def test_settings_of_which_nothing_is_tracked_are_told_how_scores_are_made(tmp_path: Path) -> None:
    track("stackgan_256", 2.0)
    with pytest.raises(ValueError, match="no system's scores are tracked with these settings: `stackgan tables run`"):
        shown(tmp_path, "dataset=cub")


def test_a_system_that_is_none_is_refused_before_anything_is_queued() -> None:
    with pytest.raises(ValueError, match="conf/gan has no stackgan_512"):
        run_tables(["gawwn", "stackgan_512"], [], is_queued_only=True)
