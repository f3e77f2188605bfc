"""Stages: what noise and text go where, which weights paint, what a snapshot holds, which Stage-I is refused."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.gan.architecture import STAGE1_FIELDS, Architecture, architecture_of
from pipeline.gan.networks import Stage1Generator
from pipeline.gan.sampling import paint
from pipeline.gan.stages import Stage, load_stage, load_stage1_within, new_stage
from pipeline.params import GanParams
from tests.gan_presets import PRESETS, narrow

EMBEDDING_DIM = 7
TEXTS = torch.randn(3, EMBEDDING_DIM, generator=torch.Generator().manual_seed(0))
SEEDS = [4, 5, 6]

every_preset = pytest.mark.parametrize("group", PRESETS)
both_stages = pytest.mark.parametrize("number", [1, 2])


def narrow_architecture(group: str = "paper", **changes: Any) -> Architecture:
    return architecture_of(narrow(group, **changes), EMBEDDING_DIM)


def noise_of(stage: Stage, seed: int = 1) -> Tensor:
    return torch.randn(len(TEXTS), stage.noise_dim, generator=torch.Generator().manual_seed(seed))


def spread(network: nn.Module) -> None:
    """Widen the weights of a narrow, untrained network, so that what it is told changes what it says."""
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight.mul_(10)


def spread_stage(number: int, group: str = "paper", **changes: Any) -> Stage:
    stage = new_stage(number, narrow_architecture(group, **changes), seed=3)
    for network in stage.modules():
        spread(network)
    return stage


@every_preset
@both_stages
def test_noise_is_z_then_eps_then_the_eps_of_stage2(number: int, group: str) -> None:
    stage = spread_stage(number, group)
    for network in stage.modules():
        network.eval()
    noise = noise_of(stage)
    z, eps, *more = noise.split([5, 6, 6][: number + 1], dim=1)
    if stage.stage1_generator is None:
        expected = stage.generator(TEXTS, z, eps)
    else:
        expected = stage.generator(stage.stage1_generator(TEXTS, z, eps).images, TEXTS, more[0])
    for ours, value in zip(stage.generate(TEXTS, noise), expected, strict=True):
        assert torch.equal(ours, value)


def test_no_gradient_reaches_the_frozen_stage1() -> None:
    stage = spread_stage(2)
    assert stage.stage1_generator is not None
    stage.generate(TEXTS, noise_of(stage)).images.sum().backward()
    assert all(parameter.grad is not None for parameter in stage.generator.parameters())
    assert all(not p.requires_grad and p.grad is None for p in stage.stage1_generator.parameters())


@both_stages
def test_a_discriminator_is_told_the_embedding_or_the_mu_of_its_stages_generator(number: int) -> None:
    own, mu = (spread_stage(number, group) for group in ("paper", "published_pytorch"))
    assert own.text_for_discriminator(TEXTS) is TEXTS
    told = mu.text_for_discriminator(TEXTS)
    assert torch.equal(told, mu.generate(TEXTS, noise_of(mu)).mu)
    assert told.shape == (3, 6) and not told.requires_grad


@every_preset
@both_stages
def test_stage2_of_the_pytorch_release_alone_has_an_unconditional_head(number: int, group: str) -> None:
    stage = new_stage(number, narrow_architecture(group), seed=0)
    assert (stage.discriminator.alone is not None) == (number == 2 and group == "published_pytorch")


@pytest.mark.parametrize(("stage1_size", "stage2_size"), [(64, 256), (64, 128), (128, "none"), (256, "none")])
def test_pictures_have_the_side_that_is_asked_for(stage1_size: int, stage2_size: Any) -> None:
    architecture = narrow_architecture(stage1_size=stage1_size, stage2_size=stage2_size)
    for number, size in ((1, stage1_size), (2, stage2_size)):
        if size == "none":
            continue
        stage = new_stage(number, architecture, seed=0)
        assert stage.image_size == size
        images = stage.generate(TEXTS, noise_of(stage)).images
        assert images.shape == (3, 3, size, size)
        assert stage.discriminator(images, TEXTS).shape == (3,)


@every_preset
@both_stages
def test_the_same_seed_gives_the_same_weights_with_an_average_or_without(number: int, group: str) -> None:
    architecture = narrow_architecture(group)
    one, averaged = (new_stage(number, architecture, seed=3, averaged=averaged) for averaged in (False, True))
    other = new_stage(number, architecture, seed=4)
    for name in ("generator", "discriminator"):
        ours, again, another = (getattr(stage, name).state_dict() for stage in (one, averaged, other))
        assert all(torch.equal(ours[key], again[key]) for key in ours)
        assert not all(torch.equal(ours[key], another[key]) for key in ours)
    assert averaged.average is not None
    assert all(
        torch.equal(value, averaged.generator.state_dict()[key]) for key, value in averaged.average.state_dict().items()
    )


@both_stages
def test_spectral_normalisation_is_of_the_discriminator_and_changes_no_first_weight(number: int) -> None:
    plain, normalised = (
        new_stage(number, narrow_architecture(spectral_normalisation=on), seed=3) for on in (False, True)
    )
    assert plain.generator.state_dict().keys() == normalised.generator.state_dict().keys()
    weights = plain.discriminator.state_dict()
    found = normalised.discriminator.state_dict()
    originals = [key for key in found if key.endswith(".original")]
    layers = [layer for layer in plain.discriminator.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(originals) == len(layers)
    for key in originals:
        assert torch.equal(found[key], weights[key.replace("parametrizations.weight.original", "weight")])


@every_preset
@both_stages
def test_a_loaded_stage_paints_what_the_saved_one_paints(number: int, group: str, tmp_path: Path) -> None:
    stage = spread_stage(number, group)
    stage.generate(TEXTS, noise_of(stage))  # moves BatchNorm's running statistics away from their defaults
    stage.save(tmp_path)
    loaded, _ = load_stage(tmp_path)
    assert loaded.architecture == stage.architecture
    assert (paint(loaded, TEXTS, SEEDS) == paint(stage, TEXTS, SEEDS)).all()


def averaged_stage(number: int, group: str = "paper") -> Stage:
    """Return a stage whose average paints otherwise than its generator."""
    stage = new_stage(number, narrow_architecture(group), seed=3, averaged=True)
    assert stage.average is not None
    spread(stage.generator)
    return stage


@both_stages
def test_pictures_are_painted_with_the_moving_average(number: int, tmp_path: Path) -> None:
    stage = averaged_stage(number)
    painter, without = stage.painting(), replace(stage, average=None)
    assert painter.generator is stage.average and painter.average is None
    assert without.painting().generator is stage.generator
    by_average, by_generator = paint(painter, TEXTS, SEEDS), paint(without, TEXTS, SEEDS)
    assert (by_average != by_generator).any()
    stage.save(tmp_path / "averaged")
    without.save(tmp_path / "plain")
    assert (paint(load_stage(tmp_path / "averaged")[0], TEXTS, SEEDS) == by_average).all()
    assert (paint(load_stage(tmp_path / "plain")[0], TEXTS, SEEDS) == by_generator).all()
    assert load_stage(tmp_path / "averaged")[1] != load_stage(tmp_path / "plain")[1]  # the painter's own hash


def test_stage2_refines_what_stage1s_moving_average_paints(tmp_path: Path) -> None:
    stage1 = averaged_stage(1)
    stage1.save(tmp_path / "stage1")
    stage2 = new_stage(2, stage1.architecture, seed=9, stage1_dir=tmp_path / "stage1")
    assert stage2.stage1_generator is not None and stage1.average is not None
    frozen, average = stage2.stage1_generator.state_dict(), stage1.average.state_dict()
    assert all(torch.equal(frozen[key], average[key]) for key in average)
    stage2.save(tmp_path / "stage2")
    within, _ = load_stage1_within(tmp_path / "stage2")
    assert (paint(within, TEXTS, SEEDS) == paint(stage1.painting(), TEXTS, SEEDS)).all()


def test_painting_while_stage1_follows_its_batches_moves_nothing() -> None:
    """A grid in the middle of a training must not change the training."""
    stage = spread_stage(2)
    assert stage.stage1_generator is not None
    stage.stage1_generator.train()
    before = {key: value.clone() for key, value in stage.stage1_generator.state_dict().items()}
    together = paint(stage, TEXTS, SEEDS)
    assert stage.stage1_generator.training
    assert all(torch.equal(value, before[key]) for key, value in stage.stage1_generator.state_dict().items())
    assert abs(together[1:2].astype(int) - paint(stage, TEXTS[1:2], SEEDS[1:2])).max() <= 1


OTHER: dict[str, Any] = {
    "embedding_dim": 8,
    "stage1_size": 128,
    "stage2_size": 128,
    "generator_dim": 16,
    "discriminator_dim": 8,
    "z_dim": 4,
    "condition_dim": 4,
    "conditioning_augmentation": False,
    "condition_spread": "log_sigma",
    "condition_activation": "relu",
    "truncated_noise": True,
    "text_twice": False,
    "num_residual_blocks": 2,
    "bottleneck_residuals": False,
    "upsampling": "deconvolution",
    "sketch_layer": True,
    "joint_kernel": 3,
    "third_activation": False,
    "discriminator_text": "mu",
    "unconditional_head": True,
    "logit_bias": True,
    "truncated_weights": False,
    "spectral_normalisation": True,
    "box_conditioned": True,
}


@pytest.mark.parametrize("key", [key for key in STAGE1_FIELDS if key != "box_conditioned"])
def test_a_stage1_of_another_kind_is_refused_by_the_key(key: str, tmp_path: Path) -> None:
    new_stage(1, narrow_architecture(), seed=0).save(tmp_path)
    other = replace(narrow_architecture(), **{key: OTHER[key]})
    with pytest.raises(
        ValueError, match=f"was trained with {key} = .*, Stage-II asks for {OTHER[key]}; rerun"
    ) as error:
        new_stage(2, other, seed=0, stage1_dir=tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_the_network_that_is_told_a_box_is_refused_as_stage1(tmp_path: Path) -> None:
    new_stage(1, narrow_architecture(stage2_size="none", box_conditioned=True), seed=0).save(tmp_path)
    with pytest.raises(ValueError, match="was trained with box_conditioned = True, Stage-II asks for False; rerun"):
        new_stage(2, narrow_architecture(), seed=0, stage1_dir=tmp_path)


def test_what_a_stage2_may_choose_anew_changes_nothing_of_stage1() -> None:
    architecture = narrow_architecture()
    stage1 = Stage1Generator(architecture).eval()
    noise = torch.randn(3, 5 + 6, generator=torch.Generator().manual_seed(1)).split((5, 6), dim=1)
    for key in {field.name for field in fields(Architecture)} - set(STAGE1_FIELDS):
        other = Stage1Generator(replace(architecture, **{key: OTHER[key]})).eval()
        other.load_state_dict(stage1.state_dict())
        assert torch.equal(other(TEXTS, *noise).images, stage1(TEXTS, *noise).images), key


def test_every_number_of_the_architecture_but_one_is_a_key_of_section_gan() -> None:
    assert {field.name for field in fields(Architecture)} - {"embedding_dim"} <= {f.name for f in fields(GanParams)}
    assert set(OTHER) == {field.name for field in fields(Architecture)}
    gan = narrow("published_pytorch")
    assert asdict(architecture_of(gan, 7)) == {"embedding_dim": 7} | {
        key: getattr(gan, key) for key in OTHER if key != "embedding_dim"
    }


@pytest.mark.parametrize("change", [{"stage1_size": None}, {"wings": 2}], ids=["missing", "unknown"])
def test_a_snapshot_of_another_version_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    new_stage(1, narrow_architecture(), seed=0).save(tmp_path)
    path = tmp_path / "generator.json"
    manifest = json.loads(path.read_text())
    config = manifest["config"] | change
    manifest["config"] = {key: value for key, value in config.items() if value is not None or key == "encoder"}
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"another version of this code .* rerun `dvc repro`"):
        load_stage(tmp_path)
