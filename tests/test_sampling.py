"""Sampling: a picture is a function of its caption and seed; samples/ holds the same captions for every method."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.shards import ImageShards
from pipeline.data.tables import EncoderId, read_table
from pipeline.gan.job import new_stage_for
from pipeline.gan.sampling import captioned_grid, generate_samples, noise_for, paint, to_uint8
from pipeline.gan.stages import Stage, load_stage, load_stage1_within, new_stage
from tests.gan_data import ARCHITECTURE, CAPTIONS_PER_IMAGE, EMBEDDING_DIM, training_job, write_training_set

VARIED = {"num_varied_captions": 3, "variations_per_caption": 2}
TEXTS = torch.randn(5, EMBEDDING_DIM, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[1, 2])
def stage(request: pytest.FixtureRequest) -> Stage:
    return new_stage(request.param, ARCHITECTURE, seed=3)


def test_pictures_have_the_size_of_their_stage(stage: Stage) -> None:
    images = paint(stage, TEXTS, [0, 1, 2, 3, 4])
    assert images.shape == (5, stage.image_size, stage.image_size, 3) and images.dtype == np.uint8


def test_a_picture_does_not_depend_on_the_others_of_its_batch(stage: Stage) -> None:
    together = paint(stage, TEXTS, [7, 8, 9, 10, 11])
    alone = paint(stage, TEXTS[3:4], [10])
    np.testing.assert_allclose(together[3].astype(int), alone[0].astype(int), atol=1)


def test_another_seed_or_text_is_another_picture(stage: Stage) -> None:
    same_text = paint(stage, TEXTS[:1].repeat(2, 1), [0, 1])
    same_seed = paint(stage, TEXTS[:2], [0, 0])
    assert (same_text[0] != same_text[1]).any() and (same_seed[0] != same_seed[1]).any()


def test_painting_leaves_the_training_as_it_was(stage: Stage) -> None:
    before = {key: value.clone() for key, value in stage.generator.state_dict().items()}
    paint(stage, TEXTS, [0, 1, 2, 3, 4])
    assert stage.generator.training
    assert all(torch.equal(value, before[key]) for key, value in stage.generator.state_dict().items())


def test_a_saved_stage_paints_the_same_pictures(stage: Stage, tmp_path: Path) -> None:
    stage.save(tmp_path)
    loaded, _ = load_stage(tmp_path)
    np.testing.assert_array_equal(paint(stage, TEXTS, [0, 1, 2, 3, 4]), paint(loaded, TEXTS, [0, 1, 2, 3, 4]))


def test_the_stage1_within_stage2_paints_what_stage2_refines(tmp_path: Path) -> None:
    stage2 = new_stage(2, ARCHITECTURE, seed=3)
    stage2.save(tmp_path)
    stage1, _ = load_stage1_within(tmp_path)
    assert stage1.image_size == 64 and stage2.stage1_generator is not None
    z, eps = noise_for([8], stage2.noise_dim)[:, : ARCHITECTURE.z_dim + ARCHITECTURE.condition_dim].split(
        (ARCHITECTURE.z_dim, ARCHITECTURE.condition_dim), 1
    )
    with torch.no_grad():
        sketch = to_uint8(stage2.stage1_generator(TEXTS[:1], z, eps).images)
    np.testing.assert_array_equal(paint(stage1, TEXTS[:1], [8]), sketch)


@pytest.mark.parametrize("number", [1, 2])
def test_a_stage_names_the_encoder_of_its_embeddings_and_so_do_its_snapshots(number: int, tmp_path: Path) -> None:
    write_training_set(tmp_path, num_train=3, num_test=2)
    stage = new_stage_for(training_job(tmp_path, tmp_path, stage_number=number))
    assert stage.encoder == EncoderId("test", "0")
    stage.save(tmp_path / "models")
    assert load_stage(tmp_path / "models")[0].encoder == EncoderId("test", "0")
    new_stage(number, ARCHITECTURE, seed=0).save(tmp_path / "models")
    assert load_stage(tmp_path / "models")[0].encoder is None


def test_longer_noise_of_a_seed_begins_with_the_shorter() -> None:
    assert torch.equal(noise_for([5], 14), noise_for([5], 22)[:, :14])


def test_to_uint8_rounds_and_reaches_both_ends() -> None:
    images = torch.tensor([-1.0, -0.9999, 0.0, 0.9999, 1.0]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert to_uint8(images)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_a_grid_has_a_row_a_caption() -> None:
    images = np.zeros((3, 4, 64, 64, 3), np.uint8)
    grid = captioned_grid(images, ["one", "a rather long caption " * 6, "three"])
    assert isinstance(grid, Image.Image) and grid.size == (260 + 4 * 132 + 4, 3 * 132 + 4)


def test_samples_hold_the_same_captions_and_seeds_for_every_method(tmp_path: Path) -> None:
    write_training_set(tmp_path)
    new_stage(1, ARCHITECTURE, seed=0).save(tmp_path / "stage1")
    new_stage(2, ARCHITECTURE, seed=0, stage1_dir=tmp_path / "stage1").save(tmp_path / "stage2")
    arguments = {
        "stage1_dir": tmp_path / "stage1",
        "stage2_dir": tmp_path / "stage2",
        "crops_dir": tmp_path / "crops",
        "embeddings_dir": tmp_path / "embeddings",
    }
    generate_samples(**arguments, out_dir=tmp_path / "samples", captions_per_image=2, **VARIED, batch_size=5, seed=1)
    rows = read_table(tmp_path / "samples" / "samples.parquet", "samples/v1").to_pylist()
    methods = {row["method"] for row in rows}
    assert methods == {"untrained", "stage1", "stackgan"} and len(rows) == 3 * 6 * 2
    keys = {name: [(r["caption"], r["seed"], r["class_id"]) for r in rows if r["method"] == name] for name in methods}
    assert keys["untrained"] == keys["stage1"] == keys["stackgan"]
    assert len({seed for _, seed, _ in keys["stackgan"]}) == 12
    assert len(ImageShards(tmp_path / "samples" / "stage1", 64)) == 12
    assert len(ImageShards(tmp_path / "samples" / "stackgan", 256)) == 12
    assert (tmp_path / "samples" / "grid_stackgan.png").is_file()

    gallery_dir = tmp_path / "samples" / "gallery"
    shown = json.loads((gallery_dir / "captions.json").read_text())["captions"]
    place = {row["caption"]: index for index, row in enumerate(row for row in rows if row["method"] == "stackgan")}
    places = [place[row["caption"]] for row in shown]
    assert len(shown) == 8 and places == sorted(places) and (places[0], places[-1]) == (0, 11)
    for method, size in (("untrained", 256), ("stage1", 64), ("stackgan", 256)):
        pictures = ImageShards(tmp_path / "samples" / method, size).all()
        for number, index in enumerate(places):
            assert np.array_equal(np.array(Image.open(gallery_dir / f"{method}_{number}.png")), pictures[index])

    varied = read_table(tmp_path / "samples" / "variations" / "samples.parquet", "samples/v1").to_pylist()
    assert len(varied) == 3 * 3 * 2
    of_methods = {name: [(r["caption"], r["seed"]) for r in varied if r["method"] == name] for name in methods}
    assert of_methods["untrained"] == of_methods["stage1"] == of_methods["stackgan"]
    captions, seeds = zip(*of_methods["stackgan"], strict=True)
    assert captions[::2] == captions[1::2] and set(captions) <= {caption for caption, _, _ in keys["stackgan"]}
    assert len({*seeds, *(seed for _, seed, _ in keys["stackgan"])}) == 12 + 6
    pictures = ImageShards(tmp_path / "samples" / "variations" / "stackgan", 256).all()
    assert all((one != other).any() for one, other in zip(pictures[::2], pictures[1::2], strict=True))

    with pytest.raises(ValueError, match=f"captions_per_image is 9; a picture has {CAPTIONS_PER_IMAGE}"):
        generate_samples(**arguments, out_dir=tmp_path / "more", captions_per_image=9, **VARIED, batch_size=5, seed=1)


def test_samples_in_several_shards_are_the_same_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_training_set(tmp_path)
    new_stage(1, ARCHITECTURE, seed=0).save(tmp_path / "stage1")
    new_stage(2, ARCHITECTURE, seed=0, stage1_dir=tmp_path / "stage1").save(tmp_path / "stage2")
    for name, size in (("one", 500), ("several", 5)):
        monkeypatch.setattr("pipeline.gan.sampling.IMAGES_PER_SHARD", size)
        generate_samples(
            stage1_dir=tmp_path / "stage1",
            stage2_dir=tmp_path / "stage2",
            crops_dir=tmp_path / "crops",
            embeddings_dir=tmp_path / "embeddings",
            out_dir=tmp_path / name,
            captions_per_image=2,
            **VARIED,
            batch_size=5,
            seed=1,
        )
    rows = [read_table(tmp_path / name / "samples.parquet", "samples/v1").to_pylist() for name in ("one", "several")]
    assert rows[0] == rows[1]
    assert len(list((tmp_path / "several" / "stackgan").glob("shard_*.arrow"))) == 3  # 12 pictures
    one, several = (ImageShards(tmp_path / name / "stackgan", 256) for name in ("one", "several"))
    assert one.image_ids == several.image_ids == [row["sample_id"] for row in rows[0] if row["method"] == "stackgan"]
    assert np.array_equal(one.all(), several.all())
    grids = [(tmp_path / name / "grid_stackgan.png").read_bytes() for name in ("one", "several")]
    assert grids[0] == grids[1]
