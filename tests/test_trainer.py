"""One step: each speed-up, part and worker gives the same numbers; each switch those of a plain re-computation."""

import multiprocessing
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.batches import Batch
from pipeline.gan import winograd
from pipeline.gan.architecture import architecture_of
from pipeline.gan.augmentation import shifted_and_cut
from pipeline.gan.layers import Conv, UpsampleConv
from pipeline.gan.stages import Stage, new_stage
from pipeline.gan.synchronised_norm import synchronise
from pipeline.gan.trainer import LOSSES, Trainer
from pipeline.gan.workers import averaged
from pipeline.params import GanParams, Speedup
from tests.gan_presets import PRESETS, narrow

EMBEDDING_DIM, BATCH_SIZE, LEARNING_RATE = 7, 4, 1e-3
SPEEDUPS: tuple[Speedup, ...] = get_args(Speedup)
# BatchNorm takes this bias away again: its gradient is rounding, another on each processor, which Adam makes large.
TAKEN_BACK = "G.project.0.bias"
NUM_EXACT = 3  # of LOSSES; the probabilities are told in float32

every_preset = pytest.mark.parametrize("group", PRESETS)
both_stages = pytest.mark.parametrize("number", [1, 2])


def stage_of(number: int, gan: GanParams, dtype: torch.dtype = torch.float64) -> Stage:
    stage = new_stage(number, architecture_of(gan, EMBEDDING_DIM), seed=3, averaged=gan.ema_decay > 0)
    for network in stage.modules():
        network.to(dtype)
    return stage


def trainer_of(
    stage: Stage,
    gan: GanParams,
    *,
    augment: bool = False,
    accumulation: int = 1,
    autocast: torch.dtype | None = None,
    speedups: Iterable[Speedup] = SPEEDUPS,
) -> Trainer:
    trainer = Trainer(
        stage, gan, augment=augment, accumulation=accumulation, autocast=autocast, speedups=speedups
    )  # fmt: skip
    trainer.set_learning_rate(LEARNING_RATE)
    return trainer


def batch_of(stage: Stage, gan: GanParams, step: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
    """Return random pictures and texts, exchanged as the params ask for."""
    generator = torch.Generator().manual_seed(100 + step)

    def draw(*shape: int) -> Tensor:
        return torch.randn(BATCH_SIZE, *shape, generator=generator, dtype=torch.float64).to(dtype)

    def pictures() -> Tensor:
        return draw(3, stage.image_size, stage.image_size).tanh().contiguous(memory_format=torch.channels_last)

    text = draw(EMBEDDING_DIM)
    return Batch(
        real=pictures(),
        text_embedding=text,
        wrong=pictures() if gan.wrong_pairs == "other_image" else None,
        wrong_text_embedding={
            "other_text": draw(EMBEDDING_DIM),
            "other_image": text,
            "next_text": text.roll(-1, dims=0),
        }[gan.wrong_pairs],
        augmentation_draws=torch.rand(3, BATCH_SIZE, 4, generator=generator),
    )


def noise_of(noise_dim: int, step: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(200 + step)
    return torch.randn(BATCH_SIZE, noise_dim, generator=generator, dtype=torch.float64).to(dtype)


def copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def weights_of(stage: Stage) -> dict[str, Tensor]:
    """Return the parameters of G and D, without the buffers: D's depend on how many passes it makes."""
    networks = {"G": stage.generator, "D": stage.discriminator}
    return {
        f"{name}.{key}": parameter.detach().clone().cpu()
        for name, network in networks.items()
        for key, parameter in network.named_parameters()
    }


def gradients_of(stage: Stage) -> dict[str, Tensor]:
    """Return the last gradients; of D those of its own update, where G's left them alone. Adam hides their scale."""
    networks = {"G": stage.generator, "D": stage.discriminator}
    return {
        f"{name}.{key}": parameter.grad.clone().cpu()
        for name, network in networks.items()
        for key, parameter in network.named_parameters()
        if parameter.grad is not None
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    losses: Tensor  # (num_steps, len(LOSSES))
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor]


def outcome_of(stage: Stage, losses: list[Tensor]) -> Outcome:
    return Outcome(losses=torch.stack(losses).cpu(), weights=weights_of(stage), gradients=gradients_of(stage))


def train(
    stage: Stage, gan: GanParams, num_steps: int = 2, share: slice = slice(None), device: str = "cpu", **options: Any
) -> Outcome:
    for network in stage.modules():
        network.to(device)
    trainer = trainer_of(stage, gan, **options)
    losses: list[Tensor] = []
    for step in range(num_steps):
        batch, noise = batch_of(stage, gan, step), noise_of(trainer.noise_dim, step)
        losses.append(trainer.step(share_of(batch, share, device), noise[share].to(device)))
    return outcome_of(stage, losses)


def share_of(batch: Batch, share: slice = slice(None), device: str = "cpu") -> Batch:
    """Return rows of a batch, on a device."""
    return replace(
        batch,
        real=batch.real[share].to(device),
        text_embedding=batch.text_embedding[share].to(device),
        wrong=None if batch.wrong is None else batch.wrong[share].to(device),
        wrong_text_embedding=batch.wrong_text_embedding[share].to(device),
        augmentation_draws=batch.augmentation_draws[:, share].to(device),
    )


def assert_the_same(one: Outcome, other: Outcome, networks: tuple[str, ...] = ("G", "D")) -> None:
    """Compare two trainings; `networks`: whose gradients are comparable."""
    torch.testing.assert_close(one.losses[:, :NUM_EXACT], other.losses[:, :NUM_EXACT], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-6, atol=1e-6)
    weights = [{key: outcome.weights[key] for key in one.weights if key != TAKEN_BACK} for outcome in (one, other)]
    assert one.weights.keys() == other.weights.keys()
    torch.testing.assert_close(*weights, rtol=1e-9, atol=1e-9)
    gradients = [
        {key: value for key, value in outcome.gradients.items() if key.startswith(networks)} for outcome in (one, other)
    ]
    assert len(gradients[0]) > 10
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-11)


# Speed-ups.


@pytest.fixture
def winograd_in_narrow_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the networks of these tests take the forms that only wide layers would."""
    monkeypatch.setattr(winograd, "_WIDE", 1)
    monkeypatch.setattr(winograd, "_MANY", 1)


SPED_UP = [(1, "paper"), (1, "published_tf"), (2, "published_pytorch")]


@cache
def with_every_speedup(number: int, group: str) -> Outcome:
    gan = narrow(group)
    return train(stage_of(number, gan), gan)


@pytest.mark.usefixtures("winograd_in_narrow_layers")
@pytest.mark.parametrize("without", [*SPEEDUPS, "any"])
@pytest.mark.parametrize(("number", "group"), SPED_UP)
def test_a_step_without_a_speedup_gives_the_same_losses_and_weights(number: int, group: str, without: str) -> None:
    gan = narrow(group)
    left = () if without == "any" else tuple(speedup for speedup in SPEEDUPS if speedup != without)
    stage = stage_of(number, gan)
    before = weights_of(stage)
    outcome = train(stage, gan, speedups=left)
    networks = ("G", "D") if "frozen_discriminator" in left else ("G",)
    assert_the_same(outcome, with_every_speedup(number, group), networks)
    # Whatever has a gradient moved.
    moved = {name: (outcome.weights[name] - value).abs().max() for name, value in before.items()}
    assert min(distance for name, distance in moved.items() if name != TAKEN_BACK) > 1e-5


@pytest.mark.parametrize("speedups", [SPEEDUPS, ()], ids=["on", "off"])
def test_each_speedup_is_on_where_it_is_asked_for_and_off_where_not(speedups: tuple[Speedup, ...]) -> None:
    on, gan = bool(speedups), narrow("paper")
    stage = stage_of(1, gan)
    trainer = trainer_of(stage, gan, speedups=speedups)
    passes: list[bool] = []
    stage.discriminator.downsample.register_forward_hook(lambda *_: passes.append(next_weight.requires_grad))
    next_weight = next(stage.discriminator.parameters())
    trainer.step(batch_of(stage, gan), noise_of(trainer.noise_dim))
    assert passes == ([True, True, False] if on else [True, True, True, True])  # real, wrong, fake; G's
    convs = [layer for network in stage.modules() for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    square = next(layer.weight for layer in convs if layer.weight.shape[1:] == (16, 3, 3))
    assert square.is_contiguous(memory_format=torch.channels_last) == on
    assert {layer.winograd for layer in convs if isinstance(layer, Conv)} == {on}
    assert {layer.transposed for layer in convs if isinstance(layer, UpsampleConv)} == {on}
    assert {optimizer.defaults["fused"] for optimizer in trainer._optimizers.values()} == {on}


# Parts and workers.


def case_of(name: str) -> tuple[int, GanParams]:
    """Return the stage and the params of what two workers compute."""
    penalised = {"gradient_penalty": "r1", "gradient_penalty_weight": 3.0}
    return {
        "stage1": (1, narrow("paper")),
        "stage1_redrawn_penalised": (1, narrow("published_tf", **penalised)),
        "stage2": (2, narrow("published_pytorch")),
        "synchronised": (1, narrow("paper", interpolation_weight=0.5, **penalised)),
    }[name]


CASES = ("stage1", "stage1_redrawn_penalised", "stage2", "synchronised")


def _work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(folder / "meeting").as_uri(), rank=rank, world_size=2)
    half = BATCH_SIZE // 2
    for name in CASES:
        number, gan = case_of(name)
        stage = stage_of(number, gan)
        if name == "synchronised":
            synchronise(stage.generator)
            synchronise(stage.discriminator)
        outcome = train(stage, gan, share=slice(rank * half, (rank + 1) * half), augment=True)
        told = {"losses.": averaged(outcome.losses)}
        told |= {f"weights.{key}": value for key, value in outcome.weights.items()}
        told |= {f"gradients.{key}": value for key, value in outcome.gradients.items()}
        save_file({key: value.contiguous() for key, value in told.items()}, folder / f"{name}_{rank}.safetensors")
    dist.destroy_process_group()


def read_outcome(path: Path) -> Outcome:
    told: dict[str, dict[str, Tensor]] = {"losses": {}, "weights": {}, "gradients": {}}
    for key, value in load_file(path).items():
        kind, _, name = key.partition(".")
        told[kind][name] = value
    return Outcome(losses=told["losses"][""], weights=told["weights"], gradients=told["gradients"])


@pytest.fixture(scope="module")
def of_workers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Outcome]]:
    """Return what each of two processes was told and left with, half of the batch being its share."""
    folder = tmp_path_factory.mktemp("workers")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(rank, folder)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=300)
    assert [worker.exitcode for worker in workers] == [0, 0]
    return {name: [read_outcome(folder / f"{name}_{rank}.safetensors") for rank in range(2)] for name in CASES}


@pytest.mark.parametrize("name", [name for name in CASES if name != "synchronised"])
def test_two_parts_give_the_losses_and_weights_of_two_workers(name: str, of_workers: dict[str, list[Outcome]]) -> None:
    number, gan = case_of(name)
    outcome = train(stage_of(number, gan), gan, accumulation=2, augment=True)
    for worker in of_workers[name]:
        assert_the_same(outcome, worker)


def test_two_synchronised_workers_give_the_losses_and_weights_of_one(of_workers: dict[str, list[Outcome]]) -> None:
    number, gan = case_of("synchronised")
    outcome = train(stage_of(number, gan), gan, augment=True)
    for worker in of_workers["synchronised"]:
        assert_the_same(outcome, worker)


def test_parts_are_normalised_on_their_own() -> None:
    """Why two parts are two workers rather than one batch."""
    gan = narrow("paper")
    whole, parts = (train(stage_of(1, gan), gan, 1, accumulation=count) for count in (1, 2))
    assert (whole.losses - parts.losses).abs().max() > 1e-4


# The three presets, written out.


def bce(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def adams_of(stage: Stage) -> tuple[torch.optim.Adam, torch.optim.Adam]:
    g, d = (
        torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, betas=(0.5, 0.999))
        for network in (stage.generator, stage.discriminator)
    )
    return g, d


def by_hand(
    stage: Stage, adams: tuple[torch.optim.Adam, torch.optim.Adam], group: str, batch: Batch, noise: Tensor
) -> tuple[Outcome, list[float]]:
    """Take a plain step of the published code that a preset follows; return what it did, and D's probabilities."""
    d, (adam_g, adam_d) = stage.discriminator, adams
    if stage.stage1_generator is not None:
        stage.stage1_generator.train(group != "paper")
    noise_d, noise_g = noise.chunk(2, dim=1) if group == "published_tf" else (noise, noise)
    real, text = batch.real, batch.text_embedding

    # D: what is real and belongs together against what is not.
    fakes = stage.generate(text, noise_d)
    images = fakes.images.detach()
    accepted_alone, refused_alone = [], []
    if group == "paper":
        right, wrong, fake = d(real, text), d(real, batch.wrong_text_embedding), d(images, text)
    elif group == "published_tf":
        assert batch.wrong is not None
        right, wrong, fake = d(real, text), d(batch.wrong, text), d(images, text)
    else:
        assert fakes.mu is not None
        text = fakes.mu.detach()
        right, wrong, fake = d(real, text), d(real, text.roll(-1, dims=0)), d(images, text)
        if d.alone is not None:
            accepted_alone = [bce(d.alone(d.downsample(real)), 1)]
            refused_alone = [bce(d.alone(d.downsample(images)), 0)]
    d_loss = bce(right, 1) + 0.5 * (bce(wrong, 0) + bce(fake, 0))
    if accepted_alone:
        d_loss = (bce(right, 1) + accepted_alone[0]) / 2 + (bce(wrong, 0) + bce(fake, 0) + refused_alone[0]) / 3
    adam_d.zero_grad()
    d_loss.backward()
    adam_d.step()
    of_d = {key: value for key, value in gradients_of(stage).items() if key.startswith("D.")}

    # G through the new D.
    if group == "published_tf":
        fakes = stage.generate(text, noise_g)
    g_loss = bce(d(fakes.images, text), 1)
    if accepted_alone and d.alone is not None:
        g_loss = g_loss + bce(d.alone(d.downsample(fakes.images)), 1)
    assert fakes.mu is not None and fakes.logvar is not None
    kl = 0.5 * (fakes.mu**2 + fakes.logvar.exp() - 1 - fakes.logvar).mean()
    adam_g.zero_grad()
    (g_loss + 2 * kl).backward()
    adam_g.step()
    outcome = outcome_of(stage, [torch.stack([d_loss, g_loss, kl]).detach()])
    probabilities = [logits.sigmoid().mean().item() for logits in (right, wrong, fake)]
    return replace(outcome, gradients=outcome.gradients | of_d), probabilities


@every_preset
@both_stages
def test_two_steps_are_those_of_the_published_code_written_out(number: int, group: str) -> None:
    gan = narrow(group)
    stage = stage_of(number, gan)
    plain = deepcopy(stage)
    adams, trainer = adams_of(plain), trainer_of(stage, gan)
    for step in range(2):
        batch, noise = batch_of(stage, gan, step), noise_of(trainer.noise_dim, step)
        told = trainer.step(batch, noise)
        expected, probabilities = by_hand(plain, adams, group, batch, noise)
        assert_the_same(outcome_of(stage, [told[:NUM_EXACT]]), expected)
        assert told[NUM_EXACT:].tolist() == pytest.approx(probabilities, rel=1e-6)
    # G's running statistics too: they say how often it painted.
    painters = [(stage.generator, plain.generator), (stage.stage1_generator, plain.stage1_generator)]
    for ours, expected in painters:
        if ours is not None and expected is not None:
            torch.testing.assert_close(dict(ours.named_buffers()), dict(expected.named_buffers()), rtol=1e-9, atol=1e-9)


def test_hinge_losses_are_those_of_a_plain_re_computation() -> None:
    gan = narrow("paper", adversarial_loss="hinge")
    stage = stage_of(1, gan)
    plain = deepcopy(stage)
    trainer = trainer_of(stage, gan)
    batch, noise = batch_of(stage, gan), noise_of(trainer.noise_dim)
    told = dict(zip(LOSSES, trainer.step(batch, noise).tolist(), strict=True))
    fakes = plain.generate(batch.text_embedding, noise)
    d, text = plain.discriminator, batch.text_embedding
    real = (1 - d(batch.real, text)).clamp(min=0).mean()
    refused = [(1 + d(batch.real, batch.wrong_text_embedding)), 1 + d(fakes.images, text)]
    d_loss = real + 0.5 * sum(each.clamp(min=0).mean() for each in refused)
    assert told["d_loss"] == pytest.approx(d_loss.item(), rel=1e-9)
    d.load_state_dict(stage.discriminator.state_dict())  # G is judged by the updated D
    assert told["g_loss"] == pytest.approx(-d(fakes.images, text).mean().item(), rel=1e-9)


@pytest.mark.parametrize("kl_form", ["mean", "sum"])
def test_kl_is_summed_or_averaged_over_the_code_as_asked(kl_form: Any) -> None:
    gan = narrow("paper", kl_form=kl_form)
    stage = stage_of(1, gan)
    trainer = trainer_of(stage, gan)
    batch, noise = batch_of(stage, gan), noise_of(trainer.noise_dim)
    fakes = deepcopy(stage).generate(batch.text_embedding, noise)
    assert fakes.mu is not None and fakes.logvar is not None
    each = 0.5 * (fakes.mu**2 + fakes.logvar.exp() - 1 - fakes.logvar)
    expected = each.mean() if kl_form == "mean" else each.sum(dim=1).mean()
    told = dict(zip(LOSSES, trainer.step(batch, noise).tolist(), strict=True))
    assert told["kl"] == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("changes", [{"text_twice": False}, {"conditioning_augmentation": False}], ids=str)
def test_without_a_drawn_code_there_is_no_kl(changes: dict[str, Any]) -> None:
    gan = narrow("paper", **changes)
    outcome = train(stage_of(2, gan), gan, 1)
    assert outcome.losses[0, LOSSES.index("kl")] == 0 and torch.isfinite(outcome.losses).all()


@pytest.mark.parametrize("group", ["paper", "published_tf"])
def test_d_sees_every_picture_shifted_and_cut_by_its_own_draws(group: str) -> None:
    gan = narrow(group)
    stage = stage_of(1, gan)
    plain = deepcopy(stage)
    trainer = trainer_of(stage, gan, augment=True)
    batch, noise = batch_of(stage, gan), noise_of(trainer.noise_dim)
    told = trainer.step(batch, noise)
    fakes = plain.generate(batch.text_embedding, noise[:, : stage.noise_dim]).images.detach()
    of_real, of_fake, of_wrong = batch.augmentation_draws
    seen = shifted_and_cut(batch.real, of_real)
    right, fake = (
        plain.discriminator(images, batch.text_embedding) for images in (seen, shifted_and_cut(fakes, of_fake))
    )
    if batch.wrong is None:
        wrong = plain.discriminator(seen, batch.wrong_text_embedding)
    else:
        wrong = plain.discriminator(shifted_and_cut(batch.wrong, of_wrong), batch.text_embedding)
    assert told[0].item() == pytest.approx((bce(right, 1) + 0.5 * (bce(wrong, 0) + bce(fake, 0))).item(), rel=1e-9)


# Switches of the training.


def test_noise_redrawn_as_it_was_gives_the_step_that_does_not_redraw() -> None:
    outcomes: list[Outcome] = []
    for redraw in (False, True):
        gan = narrow("paper", redraw_noise=redraw)
        stage = stage_of(1, gan)
        trainer = trainer_of(stage, gan)
        assert trainer.noise_dim == stage.noise_dim * (2 if redraw else 1)
        noise = noise_of(stage.noise_dim)
        told = trainer.step(batch_of(stage, gan), torch.cat([noise, noise], dim=1) if redraw else noise)
        outcomes.append(outcome_of(stage, [told]))
    assert_the_same(*outcomes)


def test_redrawn_noise_is_for_gs_update_alone() -> None:
    gan = narrow("paper", redraw_noise=True)
    stages, told = [stage_of(1, gan) for _ in range(3)], []
    noise = noise_of(2 * stages[0].noise_dim)
    first, second = noise.chunk(2, dim=1)
    for stage, halves in zip(stages, ((first, second), (first, -second), (-first, second)), strict=True):
        told.append(trainer_of(stage, gan).step(batch_of(stage, gan), torch.cat(halves, dim=1)))
    d_loss, g_loss = LOSSES.index("d_loss"), LOSSES.index("g_loss")
    assert told[0][d_loss] == told[1][d_loss] and told[0][g_loss] != told[1][g_loss]
    assert told[0][d_loss] != told[2][d_loss]
    weights = [weights_of(stage) for stage in stages]
    of_d = [name for name in weights[0] if name.startswith("D.")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in of_d)
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in of_d)


@pytest.mark.parametrize("group", ["paper", "published_tf"])  # published_tf draws noise for G's update anew
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_g_is_also_judged_on_texts_between_two_of_its_batch_where_asked(weight: float, group: str) -> None:
    gan = narrow(group, interpolation_weight=weight)
    stage = stage_of(1, gan)
    plain = deepcopy(stage)
    trainer = trainer_of(stage, gan)
    assert trainer.noise_dim == stage.noise_dim * (3 if gan.redraw_noise else 2)
    batch, noise = batch_of(stage, gan), noise_of(trainer.noise_dim)
    told = dict(zip(LOSSES, trainer.step(batch, noise).tolist(), strict=True))
    plain.discriminator.load_state_dict(stage.discriminator.state_dict())  # G is judged by the updated D
    of_g, between = noise.split(stage.noise_dim, dim=1)[-2:]
    texts = batch.text_embedding
    middles = torch.stack([(texts[0] + texts[1]) / 2, (texts[2] + texts[3]) / 2])
    own, middle = (
        bce(plain.discriminator(plain.generate(about, draws).images, about), 1)
        for about, draws in ((texts, of_g), (middles, between[[0, 2]]))
    )
    assert told["g_loss"] == pytest.approx((own + weight * middle).item(), rel=1e-9)


def test_texts_between_two_leave_ds_update_alone() -> None:
    outcomes: list[dict[str, Tensor]] = []
    for weight in (0.0, 1.0):
        gan = narrow("paper", interpolation_weight=weight)
        stage = stage_of(1, gan)
        trainer = trainer_of(stage, gan)
        noise = noise_of(2 * stage.noise_dim)
        trainer.step(batch_of(stage, gan), noise[:, : trainer.noise_dim])
        outcomes.append(weights_of(stage))
    same = {name for name, value in outcomes[0].items() if torch.equal(value, outcomes[1][name])}
    of_d = {name for name in outcomes[0] if name.startswith("D.")}
    assert of_d <= same and len(of_d) > 10
    assert {name for name in same if name.startswith("G.")} <= {TAKEN_BACK}


@pytest.mark.parametrize("follows", [True, False])
def test_a_frozen_stage1_follows_its_batches_statistics_where_asked_and_never_learns(follows: bool) -> None:
    gan = narrow("paper", stage1_batch_statistics=follows)
    stage = stage_of(2, gan)
    stage1 = stage.stage1_generator
    assert stage1 is not None
    before = copied(stage1)
    trainer = trainer_of(stage, gan)
    assert stage1.training == follows
    trainer.step(batch_of(stage, gan), noise_of(trainer.noise_dim))
    statistics = [name for name, _ in stage1.named_buffers()]
    moved = [name for name, value in stage1.state_dict().items() if not torch.equal(value, before[name])]
    assert moved == (statistics if follows else [])
    kept = {name.removeprefix("stage1.") for name in trainer.tensors() if name.startswith("stage1.")}
    assert kept == (set(before) if follows else set())


@both_stages
def test_the_moving_average_is_its_closed_form_buffers_included(number: int) -> None:
    decay, num_steps = 0.7, 4
    gan = narrow("paper", ema_decay=decay)
    stage = stage_of(number, gan)
    assert stage.average is not None
    seen = [copied(stage.generator)]
    trainer = trainer_of(stage, gan)
    for step in range(num_steps):
        trainer.step(batch_of(stage, gan, step), noise_of(trainer.noise_dim, step))
        seen.append(copied(stage.generator))
    for name, value in stage.average.state_dict().items():
        if not value.is_floating_point():
            continue
        expected = decay**num_steps * seen[0][name]
        for step in range(1, num_steps + 1):
            expected = expected + (1 - decay) * decay ** (num_steps - step) * seen[step][name]
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
        assert not torch.equal(value, seen[-1][name])
    assert any("running_var" in name for name in seen[0])
    tensors = trainer.tensors()
    assert all(torch.equal(tensors[f"average.{name}"], value) for name, value in stage.average.state_dict().items())


def test_the_moving_average_changes_nothing_of_the_training() -> None:
    with_average, without = (train(stage_of(1, gan), gan) for gan in (narrow("paper", ema_decay=0.9), narrow("paper")))
    assert torch.equal(with_average.losses, without.losses)
    assert all(torch.equal(value, without.weights[name]) for name, value in with_average.weights.items())


PENALTIES = ("r1", "matching_aware")


@pytest.mark.parametrize("group", ["paper", "published_pytorch"])
@pytest.mark.parametrize("form", PENALTIES)
def test_d_learns_from_the_weighed_penalty(form: Any, group: str) -> None:
    weight = 2.0
    gan = narrow(group, gradient_penalty=form, gradient_penalty_weight=weight)
    stage = stage_of(1, gan)
    plain = deepcopy(stage)
    trainer = trainer_of(stage, gan)
    batch, noise = batch_of(stage, gan), noise_of(trainer.noise_dim)
    told = trainer.step(batch, noise)

    # D's gradient written out; G's update left it as it was.
    d = plain.discriminator
    fakes = plain.generate(batch.text_embedding, noise)
    assert fakes.mu is not None
    text, wrong_text = batch.text_embedding, batch.wrong_text_embedding
    if group == "published_pytorch":
        text, wrong_text = fakes.mu.detach(), fakes.mu.detach().roll(-1, dims=0)
    d_loss = bce(d(batch.real, text), 1) + 0.5 * (
        bce(d(batch.real, wrong_text), 0) + bce(d(fakes.images.detach(), text), 0)
    )
    inputs = [batch.real.clone().requires_grad_(), text.clone().requires_grad_()]
    slopes = torch.autograd.grad(d(*inputs).sum(), inputs, create_graph=True)
    of_images, of_text = (slope.flatten(1).norm(dim=1) for slope in slopes)
    penalty = (of_images**2).mean() / 2 if form == "r1" else ((of_images**2 + of_text**2).sqrt() ** 6).mean()
    assert told[0].item() == pytest.approx(d_loss.item(), rel=1e-9)  # what is told is the loss alone
    alone = torch.autograd.grad(d_loss, list(d.parameters()), retain_graph=True)
    expected = torch.autograd.grad(d_loss + weight * penalty, list(d.parameters()))
    ours = [parameter.grad for parameter in stage.discriminator.parameters()]
    torch.testing.assert_close(ours, list(expected), rtol=1e-8, atol=1e-12)
    assert max((a - b).abs().max().item() for a, b in zip(alone, expected, strict=True)) > 1e-8


@both_stages
@pytest.mark.parametrize("form", PENALTIES)
def test_a_penalty_under_bfloat16_stays_finite(form: Any, number: int) -> None:
    gan = narrow("published_pytorch", gradient_penalty=form, gradient_penalty_weight=10.0, spectral_normalisation=True)
    stage = stage_of(number, gan, torch.float32)
    trainer = trainer_of(stage, gan, autocast=torch.bfloat16)
    for step in range(2):
        batch = batch_of(stage, gan, step, torch.float32)
        told = trainer.step(batch, noise_of(trainer.noise_dim, step, torch.float32))
        assert torch.isfinite(told).all()
    for network in (stage.generator, stage.discriminator):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.dtype == torch.float32
            assert torch.isfinite(parameter.grad).all() and torch.isfinite(parameter).all(), name


def test_spectral_normalisation_changes_d_and_moves_its_directions() -> None:
    gan = narrow("paper", spectral_normalisation=True)
    stage = stage_of(1, gan)
    before = copied(stage.discriminator)
    normalised, plain = train(stage, gan), train(stage_of(1, narrow("paper")), narrow("paper"))
    assert (normalised.losses - plain.losses).abs().max() > 1e-3
    after = stage.discriminator.state_dict()
    directions = [name for name in after if name.endswith(".u")]
    assert len(directions) == 10
    for name in directions:
        assert len(before[name]) == 1 or not torch.equal(before[name], after[name]), name
        assert after[name].norm().item() == pytest.approx(1)


# The state to resume from.

RESUMED: dict[str, tuple[int, str, dict[str, Any]]] = {
    **{f"stage{number}_{group}": (number, group, {}) for group in PRESETS for number in (1, 2)},
    "averaged": (2, "published_tf", {"ema_decay": 0.9}),
    "spectral": (1, "paper", {"spectral_normalisation": True}),
    "spectral_penalised": (
        2,
        "published_pytorch",
        {"spectral_normalisation": True, "gradient_penalty": "r1", "gradient_penalty_weight": 1.0},
    ),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_fresh_trainer_goes_on_bit_for_bit(name: str) -> None:
    """In float32, with every speed-up, through the bytes of a checkpoint."""
    number, group, changes = RESUMED[name]
    gan = narrow(group, **changes)
    stages = [stage_of(number, gan, torch.float32) for _ in range(2)]
    trainers = [trainer_of(stage, gan) for stage in stages]

    def step(which: int, index: int) -> Tensor:
        noise = noise_of(trainers[which].noise_dim, index, torch.float32)
        return trainers[which].step(batch_of(stages[which], gan, index, torch.float32), noise)

    step(0, 0), step(0, 1)
    step(1, 7)  # whatever the other one holds is to be replaced
    written = save({key: value.detach().contiguous() for key, value in trainers[0].tensors().items()})
    trainers[1].load_tensors(load(written))
    trainers[1].set_learning_rate(LEARNING_RATE)
    resumed = trainers[1].tensors()
    assert resumed.keys() == trainers[0].tensors().keys()
    assert all(torch.equal(value, resumed[key]) for key, value in trainers[0].tensors().items())
    for index in (2, 3):
        assert torch.equal(step(0, index), step(1, index))
    resumed = trainers[1].tensors()
    for key, value in trainers[0].tensors().items():
        assert torch.equal(value, resumed[key]), key


# On a GPU.


WITHOUT_GRAPH = tuple(speedup for speedup in SPEEDUPS if speedup != "cuda_graph")
PENALISED = {"spectral_normalisation": True, "gradient_penalty": "r1", "gradient_penalty_weight": 1.0}
ON_GPU: dict[str, tuple[int, str, dict[str, Any], dict[str, Any]]] = {
    **{f"stage{number}_{group}": (number, group, {}, {}) for number, group in SPED_UP},
    "averaged": (2, "paper", {"ema_decay": 0.9}, {}),
    "augmented": (1, "published_tf", {}, {"augment": True}),
    "between": (1, "paper", {"interpolation_weight": 0.5}, {}),
    "penalised": (1, "paper", PENALISED, {}),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_GPU)
def test_a_gpu_computes_what_a_processor_computes_replayed_or_not(name: str) -> None:
    number, group, changes, options = ON_GPU[name]
    gan = narrow(group, **changes)
    outcomes: list[Outcome] = []
    num_passes: list[int] = []
    for device, speedups in (("cpu", SPEEDUPS), ("cuda", SPEEDUPS), ("cuda", WITHOUT_GRAPH)):
        stage = stage_of(number, gan)
        passes: list[int] = []
        stage.discriminator.downsample.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        outcomes.append(train(stage, gan, 4, device=device, speedups=speedups, **options))
        num_passes.append(len(passes))
    on_processor, replayed, plain = outcomes
    assert_the_same(replayed, on_processor)
    assert_the_same(plain, on_processor)
    # Of four steps the first is computed and the second recorded, which is replayed from then on.
    assert num_passes == [num_passes[0], num_passes[0] // 2, num_passes[0]]


@pytest.mark.gpu
def test_a_step_is_recorded_anew_for_another_learning_rate_or_state() -> None:
    gan = narrow("paper")
    outcomes: list[Outcome] = []
    for speedups in (SPEEDUPS, WITHOUT_GRAPH):
        stage = stage_of(1, gan)
        for network in stage.modules():
            network.cuda()
        trainer = trainer_of(stage, gan, speedups=speedups)
        early: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        for step in range(8):
            if step == 1:
                early = {key: value.clone() for key, value in trainer.tensors().items()}
            if step == 4:
                trainer.set_learning_rate(LEARNING_RATE / 2)
            if step == 6:
                trainer.load_tensors(early)
            batch, noise = batch_of(stage, gan, step), noise_of(trainer.noise_dim, step)
            losses.append(trainer.step(share_of(batch, device="cuda"), noise.cuda()))
        outcomes.append(outcome_of(stage, losses))
    assert_the_same(*outcomes)


@pytest.mark.gpu
def test_a_step_is_replayed_only_where_a_graph_can_hold_it() -> None:
    gan = narrow("paper")
    stage = stage_of(1, gan)
    assert trainer_of(stage, gan)._replay is None
    for network in stage.modules():
        network.cuda()
    assert trainer_of(stage, gan)._replay is not None
    assert trainer_of(stage, gan, speedups=("cuda_graph",))._replay is None
    assert trainer_of(stage, gan, speedups=WITHOUT_GRAPH)._replay is None
