"""GAWWN's networks: shapes, where the box acts, every weight trained, the same pictures from a snapshot."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.gan.architecture import Architecture, architecture_of
from pipeline.gan.gawwn import BoxDiscriminator, BoxGenerator
from pipeline.gan.sampling import paint
from pipeline.gan.stages import Stage, load_stage, new_stage
from tests.gan_presets import narrow, preset

EMBEDDING_DIM, NUM_IMAGES = 7, 3
EMBEDDINGS = torch.randn(NUM_IMAGES, EMBEDDING_DIM, generator=torch.Generator().manual_seed(0))


def architecture(**changes: Any) -> Architecture:
    return architecture_of(narrow("gawwn", **changes), EMBEDDING_DIM)


def spread_stage(**changes: Any) -> Stage:
    """Return an untrained stage whose weights are wide enough that what it is told changes what it says."""
    stage = new_stage(1, architecture(**changes), seed=3)
    with torch.no_grad():
        for network in stage.modules():
            for layer in network.modules():
                if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                    layer.weight.mul_(10)
    return stage


def with_box(*box: float) -> Tensor:
    return torch.cat((EMBEDDINGS, torch.tensor([box]).repeat(NUM_IMAGES, 1)), dim=1)


def noise_of(stage: Stage) -> Tensor:
    return torch.randn(NUM_IMAGES, stage.noise_dim, generator=torch.Generator().manual_seed(1))


def test_the_preset_is_what_was_published_for_it() -> None:
    gan = preset("gawwn")
    assert (gan.stage1_size, gan.stage2_size) == (128, "none")
    assert (gan.generator_dim, gan.discriminator_dim, gan.z_dim) == (128, 128, 100)
    assert not gan.conditioning_augmentation and gan.box_conditioned


@pytest.mark.parametrize("size", [64, 128, 256])
def test_networks_at_full_width_have_their_shapes_and_read_no_value_back(size: int) -> None:
    """Meta tensors have no values: anything that would synchronise with the device raises here."""
    full = architecture_of(preset("gawwn"), 1024)
    full = type(full)(**{name: getattr(full, name) for name in full.__slots__} | {"stage1_size": size})
    with torch.device("meta"):
        generator, discriminator = BoxGenerator(full), BoxDiscriminator(full)
        texts = torch.empty(2, full.text_dim)
        images = generator(texts, torch.empty(2, full.z_dim), torch.empty(2, full.condition_dim)).images
        assert images.shape == (2, 3, size, size)
        assert discriminator.image_features(images).shape[2:] == (16, 16)
        assert discriminator(images, texts).shape == (2,)


@pytest.mark.parametrize("size", [64, 128])
def test_a_gradient_reaches_every_weight(size: int) -> None:
    stage = spread_stage(stage1_size=size)
    texts = with_box(0.2, 0.1, 0.7, 0.9)
    stage.discriminator(stage.generate(texts, noise_of(stage)).images, texts).square().sum().backward()
    for network in (stage.generator, stage.discriminator):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_another_box_gives_another_picture_and_another_verdict() -> None:
    stage = spread_stage()
    for network in stage.modules():
        network.eval()
    noise, boxes = noise_of(stage), ((0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0))
    one, other = (stage.generate(with_box(*box), noise).images for box in boxes)
    assert not torch.allclose(one, other, atol=1e-3)
    verdicts = [stage.discriminator(one, with_box(*box)) for box in boxes]
    assert not torch.allclose(*verdicts, atol=1e-3)


def test_the_local_pathway_acts_within_the_box_alone() -> None:
    """What a change of the local pathway changes stays around the box."""
    stage = spread_stage()
    generator = stage.generator.eval()
    assert isinstance(generator, BoxGenerator)
    noise = noise_of(stage)
    texts = with_box(0.0, 0.0, 0.25, 0.25)
    before = stage.generate(texts, noise).images
    with torch.no_grad():
        for parameter in generator.in_the_box.parameters():
            parameter.mul_(1.5)
    change = (stage.generate(texts, noise).images - before).abs().amax(dim=(0, 1))  # (128, 128)
    # 4 cells of 8 pixels, and what the convolutions behind the map (one 3x3, three up-samplings) can reach.
    assert change[:32, :32].max() > 1e-3
    assert change[64:, :].max() == 0 and change[:, 64:].max() == 0


def test_a_loaded_stage_paints_what_the_saved_one_paints(tmp_path: Path) -> None:
    stage = spread_stage()
    texts = with_box(0.2, 0.1, 0.7, 0.9)
    stage.generate(texts, noise_of(stage))  # moves BatchNorm's running statistics away from their defaults
    stage.save(tmp_path)
    loaded, _ = load_stage(tmp_path)
    assert loaded.image_size == 128
    assert (paint(loaded, texts, [4, 5, 6]) == paint(stage, texts, [4, 5, 6])).all()


def test_pictures_are_told_their_boxes_and_a_sentence_that_it_fills_the_picture() -> None:
    stage = new_stage(1, architecture(), seed=0)
    rows = [{"bbox": [38.0, 38.0, 19.0, 19.0], "crop_box": [0, 0, 76, 76]}, {"bbox": None}, {"bbox": None}]
    texts = stage.texts_of(EMBEDDINGS, rows)
    assert torch.equal(texts[:, :-4], EMBEDDINGS)
    assert texts[0, -4:].tolist() == pytest.approx([0.5, 0.5, 51 / 64, 51 / 64])
    assert texts[1, -4:].tolist() == [0, 0, 1, 1]
    plain = new_stage(1, architecture_of(narrow("stage1_64"), EMBEDDING_DIM), seed=0)
    assert plain.texts_of(EMBEDDINGS, rows) is EMBEDDINGS
