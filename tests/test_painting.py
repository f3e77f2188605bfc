"""Pictures of sentences: their names, what their files say of them, and that they depend on nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.files import file_sha256
from pipeline.data.tables import EncoderId
from pipeline.gan import painting
from pipeline.gan.painting import (
    Painter,
    Subject,
    load_painters,
    pictures_of,
    subjects_between,
    write_picture,
    write_pictures,
)
from pipeline.gan.stages import new_stage
from tests.gan_data import ARCHITECTURE, EMBEDDING_DIM

TEXTS = torch.randn(3, EMBEDDING_DIM, generator=torch.Generator().manual_seed(0))
ENCODER = EncoderId("gru", "e5")


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    new_stage(2, ARCHITECTURE, seed=3, encoder=ENCODER).save(folder / "stage2")
    return folder


@pytest.fixture(scope="module")
def painters(models_dir: Path) -> list[Painter]:
    return load_painters(models_dir, ENCODER, both_stages=True)


def subjects(*captions: str) -> list[Subject]:
    return [Subject(embedding=text, caption=caption) for text, caption in zip(TEXTS, captions, strict=False)]


def named(captions: list[str], painters: list[Painter], seeds: tuple[int, ...] = (0,)) -> list[str]:
    return [picture.name for picture in pictures_of(subjects(*captions), seeds, painters)]


@pytest.mark.parametrize(
    ("caption", "name"),
    [
        ("A small, RED bird", "0000_a-small-red-bird"),
        ("../../etc/passwd", "0000_etc-passwd"),
        ("C:\\con.png", "0000_c-con-png"),
        ("un oiseau doré \U0001f426", "0000_un-oiseau-dore"),
        ("!?", "0000"),
        ("飞鸟", "0000"),
        ("x" * 300, "0000_" + "x" * 40),
        ("a bird with a beak that is very longish - and more", "0000_a-bird-with-a-beak-that-is-very-longish"),
    ],
)
def test_a_file_is_named_after_its_caption_and_never_a_path(caption: str, name: str, painters: list[Painter]) -> None:
    assert named([caption], painters[1:]) == [name]


def test_equal_captions_seeds_and_stages_have_names_of_their_own(painters: list[Painter]) -> None:
    assert named(["a", "a"], painters[1:]) == ["0000_a", "0001_a"]
    assert named(["a"], painters, (4, 5)) == [
        "0000_a_seed4_stage1",
        "0000_a_seed4_stage2",
        "0000_a_seed5_stage1",
        "0000_a_seed5_stage2",
    ]
    points = subjects_between(["a red bird", "a blue one"], TEXTS[:2], 2)
    assert [picture.name for picture in pictures_of(points, [0], painters[1:])] == [
        "0000_a-red-bird-to-a-blue-one",
        "0001_a-red-bird-to-a-blue-one",
    ]


def test_points_between_captions_are_evenly_spaced_and_end_at_them() -> None:
    points = subjects_between(["a", "b"], TEXTS[:2], 5)
    assert [point.position for point in points] == [0, 0.25, 0.5, 0.75, 1]
    assert torch.equal(points[0].embedding, TEXTS[0]) and torch.equal(points[4].embedding, TEXTS[1])
    torch.testing.assert_close(points[1].embedding, 0.75 * TEXTS[0] + 0.25 * TEXTS[1])


def test_a_file_says_all_that_its_pixels_depend_on(painters: list[Painter], models_dir: Path, tmp_path: Path) -> None:
    caption = "un oiseau doré \U0001f426"
    for painter, generator in zip(painters, ("stage1_generator", "generator"), strict=True):
        (picture,) = pictures_of(subjects(caption), [7], [painter])
        pixels = write_picture(picture, tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as image:
            assert image.text == {
                "caption": caption,
                "seed": "7",
                "stage": painter.name,
                "model_sha256": file_sha256(models_dir / "stage2" / f"{generator}.safetensors"),
                "encoder_sha256": "e5",
            }
            np.testing.assert_array_equal(np.asarray(image), pixels)
            assert image.size == (painter.stage.image_size, painter.stage.image_size)
    point = subjects_between(["a", "b"], TEXTS[:2], 4)[1]
    write_picture(pictures_of([point], [7], painters[1:])[0], tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert [image.text[key] for key in ("caption", "caption_to", "position")] == ["a", "b", "0.333333"]


def test_a_file_has_the_same_bytes_whatever_is_painted_beside_it(painters: list[Painter], tmp_path: Path) -> None:
    together = pictures_of(subjects("a", "b", "c"), [0, 1], painters)
    list(write_pictures(together, tmp_path / "many"))
    for picture in together[6:9]:
        write_picture(picture, tmp_path / "one.png")
        assert file_sha256(tmp_path / "one.png") == file_sha256(tmp_path / "many" / f"{picture.name}.png")


def test_a_folder_is_written_twice_with_the_same_bytes(painters: list[Painter], tmp_path: Path) -> None:
    pictures = pictures_of(subjects("a", "b"), [0], painters)
    paths = list(write_pictures(pictures, tmp_path / "x"))
    assert paths == [*(tmp_path / "x" / f"{picture.name}.png" for picture in pictures), tmp_path / "x" / "grid.png"]
    again = list(write_pictures(pictures, tmp_path / "y"))
    assert [file_sha256(path) for path in paths] == [file_sha256(path) for path in again]
    assert sorted(tmp_path.rglob("*.png")) == sorted([*paths, *again])


def test_a_grid_says_what_it_shows_and_of_how_many(
    painters: list[Painter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(painting, "MAX_GRID", 4)
    list(write_pictures(pictures_of(subjects("a", "b", "c"), [5], painters), tmp_path))
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.text["caption"] == "a\nb" and grid.text["seed"] == "5"
        assert grid.text["stage"] == "stage1\nstage2" and grid.text["encoder_sha256"] == "e5"
        assert grid.text["model_sha256"] == "\n".join(painter.sha256 for painter in painters)
    assert len(list(tmp_path.glob("*_stage?.png"))) == 6


@pytest.mark.parametrize("num_seeds", [1, 2])
@pytest.mark.parametrize("num_painters", [1, 2])
def test_a_grid_between_captions_has_a_line_for_each_seed_and_stage(
    num_seeds: int, num_painters: int, painters: list[Painter], tmp_path: Path
) -> None:
    points = subjects_between(["a", "b"], TEXTS[:2], 3)
    pictures = pictures_of(points, range(num_seeds), painters[:num_painters])
    list(write_pictures(pictures, tmp_path))
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width == 2 * 20 + 3 * 256 + 2 * 12
        assert grid.height // 300 == num_seeds * num_painters  # a line of 256 pixels with its heading and labels
        assert grid.text["position"] == "0\n0.5\n1" and grid.text["caption_to"] == "b"


def test_models_that_were_trained_with_another_encoder_are_refused(models_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stage2 was trained on embeddings of gru e5, .*text_encoder is clip 77; run"):
        load_painters(models_dir, EncoderId("clip", "77"), both_stages=False)
    new_stage(2, ARCHITECTURE, seed=3).save(tmp_path / "stage2")
    with pytest.raises(ValueError, match="stage2 does not say which encoder it was trained with; run `dvc repro`"):
        load_painters(tmp_path, ENCODER, both_stages=False)
