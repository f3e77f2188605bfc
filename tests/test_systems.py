"""Systems by their configuration: each choice of conf/gan sets something of its own, and what cannot be queued."""

import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.evaluation.published import SYSTEMS
from pipeline.systems import SECTIONS, choices, composed, queue, settings_of

ROOT = Path(__file__).parents[1]
NAMES = [system.choice for system in SYSTEMS]


@pytest.fixture(autouse=True)
def own_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a git repository of one's own that has this one's configuration: nothing may be queued in this one."""
    for name in ("conf", "dvc.yaml", "params.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)


def test_every_choice_sets_something_of_its_own_but_paper_which_is_stackgan_256() -> None:
    assert set(NAMES) <= set(choices())
    settings = {choice: tuple(sorted(settings_of(choice, []).items())) for choice in choices()}
    assert settings["paper"] == settings["stackgan_256"]
    assert len(set(settings.values())) == len(settings) - 1


@pytest.mark.parametrize("size", ["paper", "demo", "tiny"])
def test_a_system_paints_the_pixels_that_its_row_says_at_every_size(size: str) -> None:
    for system in SYSTEMS:
        gan = composed([f"gan={system.choice}", f"size={size}"])["gan"]
        final = gan["stage1_size"] if gan["stage2_size"] == "none" else gan["stage2_size"]
        assert final == system.pixels, system.choice


def test_settings_are_those_of_params_yaml_as_mlflow_keeps_them() -> None:
    committed = yaml.safe_load((ROOT / "params.yaml").read_text())
    expected = {f"{section}.{key}": str(value) for section in SECTIONS for key, value in committed[section].items()}
    assert settings_of("stackgan_256", []) == expected
    changed = settings_of("stackgan_256", ["gan.ema_decay=0.5", "train_stage1.num_epochs=7"])
    assert changed == expected | {"gan.ema_decay": "0.5", "train_stage1.num_epochs": "7"}


def test_what_a_gan_of_one_stage_does_not_train_is_no_setting_of_it() -> None:
    settings = settings_of("stage1_64", [])
    assert "train_stage1.num_epochs" in settings
    assert not any(key.startswith("train_stage2.") for key in settings)


@pytest.mark.parametrize(
    ("systems", "overrides", "told"),
    [
        (["stackgan_512"], [], "conf/gan has no stackgan_512; it has .*gawwn"),
        (["../size/tiny"], [], "conf/gan has no ../size/tiny"),
        (["gawwn"], ["gan=paper"], "name systems as its arguments"),
        (["gawwn"], ["size=huge"], "gan=gawwn size=huge: .*huge"),
        (["gawwn"], ["train_stage1.wings=2"], "train_stage1.wings=2: .*wings"),
        (["gawwn"], ["nonsense"], "nonsense"),
        (
            ["gawwn"],
            ["dataset=cub"],
            "git does not know data/raw/cub.*`dvc add data/raw/cub && git add",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_queued_is_refused_in_one_line(systems: list[str], overrides: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        queue(systems, overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["data/raw/cub.dvc", "data/raw.dvc", "data/raw/cub/CUB_200_2011/images.txt"])
def test_raw_data_that_git_knows_of_is_no_reason_to_refuse(place: str, tmp_path: Path) -> None:
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).touch()
    with pytest.raises(ValueError, match="git does not know data/raw/cub"):
        queue(["gawwn"], ["dataset=cub"])
    subprocess.run(["git", "add", place], check=True)
    with pytest.raises(ValueError, match=r"`dvc exp run --queue .*` ended with status"):  # this is no DVC repository
        queue(["gawwn"], ["dataset=cub"])


def test_outside_of_the_repository_the_missing_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"conf/gan is missing: run from the repository's root"):
        choices()
