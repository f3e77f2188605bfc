"""Sampling: a picture is a function of its caption and seed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.tables import EncoderId
from pipeline.gan.job import new_stage_for
from pipeline.gan.sampling import captioned_grid, noise_for, paint, to_uint8
from pipeline.gan.stages import Stage, load_stage, load_stage1_within, new_stage
from tests.gan_data import ARCHITECTURE, EMBEDDING_DIM, training_job, write_training_set

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
