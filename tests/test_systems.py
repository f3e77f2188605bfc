"""Systems by their configuration: each choice of conf/gan is recognised at any size, and what cannot be queued."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.evaluation.published import SYSTEMS
from pipeline.systems import SIZE_KEYS, composed, known_systems, queue, system_of

ROOT = Path(__file__).parents[1]
CHOICES = [system.choice for system in SYSTEMS]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def known() -> dict[str, dict[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return known_systems(first=CHOICES)


def settings_of(document: dict[str, Any]) -> dict[str, str]:
    """Return params as MLflow keeps them."""
    return {f"gan.{key}": str(value) for key, value in document["gan"].items()}


def test_every_system_of_the_tables_is_a_choice_of_its_own(known: dict[str, dict[str, str]]) -> None:
    assert list(known)[: len(CHOICES)] == CHOICES
    assert set(known) == {path.stem for path in (ROOT / "conf" / "gan").glob("*.yaml")}
    different = {tuple(sorted(settings.items())) for settings in known.values()}
    assert len(different) == len(known) - 1  # paper is stackgan_256


@pytest.mark.parametrize("size", ["paper", "demo", "tiny"])
@pytest.mark.parametrize("choice", CHOICES)
def test_a_system_is_recognised_at_every_size(choice: str, size: str, known: dict[str, dict[str, str]]) -> None:
    document = composed([f"gan={choice}", f"size={size}"])
    assert system_of(settings_of(document), known) == choice
    pixels = document["gan"]["stage2_size"] if choice.startswith("stackgan") else document["gan"]["stage1_size"]
    assert pixels == next(system.pixels for system in SYSTEMS if system.choice == choice)


def test_the_committed_params_are_stackgan_256(known: dict[str, dict[str, str]]) -> None:
    assert system_of(settings_of(yaml.safe_load((ROOT / "params.yaml").read_text())), known) == "stackgan_256"


def test_a_training_that_differs_in_more_than_its_size_is_no_system(known: dict[str, dict[str, str]]) -> None:
    document = composed(["gan=stackgan_256", "gan.ema_decay=0.999"])
    assert system_of(settings_of(document), known) is None
    assert system_of({}, known) is None
    document = composed(["gan=published_tf"])
    assert system_of(settings_of(document), known) == "published_tf"


def test_sizes_and_data_sets_set_no_other_key_of_the_gan() -> None:
    for path in (*(ROOT / "conf" / "size").glob("*.yaml"), *(ROOT / "conf" / "dataset").glob("*.yaml")):
        assert set((yaml.safe_load(path.read_text()) or {}).get("gan", {})) <= set(SIZE_KEYS), path


@pytest.mark.parametrize(
    ("choices", "overrides", "told"),
    [
        (["stackgan_512"], [], "conf/gan has no stackgan_512; it has .*gawwn"),
        (["../size/tiny"], [], "conf/gan has no ../size/tiny"),
        (["gawwn"], ["gan=paper"], "name systems as its arguments"),
        (["gawwn"], ["size=huge"], "gan=gawwn size=huge: .*huge"),
        (["gawwn"], ["train_stage1.wings=2"], "train_stage1.wings=2: .*wings"),
        (["gawwn"], ["nonsense"], "nonsense"),
        (["gawwn"], ["dataset=cub"], "data/raw/cub is known to neither git nor DVC.*`dvc add data/raw/cub` first"),
    ],
    ids=str,
)
def test_what_cannot_be_queued_is_refused_in_one_line(choices: list[str], overrides: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        queue(choices, overrides)
    assert "\n" not in str(error.value)


def test_outside_of_the_repository_the_missing_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"conf/gan is missing: run from the repository's root"):
        known_systems()
