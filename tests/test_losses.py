"""The losses against their written-out formulas, in float64."""

import math
from typing import Any

import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_kl
from torch.nn import functional as F

from pipeline.gan.losses import Logits, discriminator_loss, generator_loss, gradient_penalty, kl_divergence

every_form = pytest.mark.parametrize("form", ["bce", "hinge"])
every_penalty = pytest.mark.parametrize("form", ["r1", "matching_aware"])


def random_double(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, dtype=torch.float64, generator=generator)).requires_grad_()


def random_logits(count: int = 50, num_heads: int = 5) -> Logits:
    return Logits(*(random_double(count, seed=seed, scale=3) for seed in range(num_heads)))


def accept(logits: torch.Tensor, form: str) -> torch.Tensor:
    """Written out: what it costs not to take these for real."""
    if form == "bce":
        return -torch.log(torch.sigmoid(logits)).mean()
    return torch.where(logits < 1, 1 - logits, 0).mean()


def refuse(logits: torch.Tensor, form: str) -> torch.Tensor:
    if form == "bce":
        return -torch.log(1 - torch.sigmoid(logits)).mean()
    return torch.where(logits > -1, 1 + logits, 0).mean()


@every_form
def test_discriminator_loss_is_its_formula(form: Any) -> None:
    logits = random_logits(num_heads=3)
    expected = accept(logits.real, form) + 0.5 * refuse(logits.wrong, form) + 0.5 * refuse(logits.fake, form)
    torch.testing.assert_close(discriminator_loss(logits, form), expected, rtol=1e-12, atol=0)


@every_form
def test_discriminator_loss_with_an_unconditional_head_is_that_of_the_pytorch_release(form: Any) -> None:
    logits = random_logits()
    assert logits.real_alone is not None and logits.fake_alone is not None
    real, alone = accept(logits.real, form), accept(logits.real_alone, form)
    refused = refuse(logits.fake, form) + refuse(logits.wrong, form) + refuse(logits.fake_alone, form)
    torch.testing.assert_close(discriminator_loss(logits, form), (real + alone) / 2 + refused / 3, rtol=1e-12, atol=0)


def test_the_forms_are_bce_and_mean_where_none_is_named() -> None:
    logits = random_logits()
    assert torch.equal(discriminator_loss(logits), discriminator_loss(logits, "bce"))
    assert torch.equal(generator_loss(logits.fake), generator_loss(logits.fake, form="bce"))
    mu, logvar = random_double(6, 9, seed=0), random_double(6, 9, seed=1)
    assert torch.equal(kl_divergence(mu, logvar), kl_divergence(mu, logvar, "mean"))


def test_discriminator_loss_has_the_closed_form_gradient() -> None:
    logits = random_logits(5, num_heads=3)
    grads = torch.autograd.grad(discriminator_loss(logits), logits[:3])
    real, wrong, fake = (torch.sigmoid(each) for each in logits[:3])
    torch.testing.assert_close(grads, ((real - 1) / 5, wrong / 10, fake / 10), rtol=1e-12, atol=0)


def test_hinge_has_no_gradient_beyond_the_margin() -> None:
    logits = Logits(*(torch.tensor([-3.0, 0.5, 2.0], requires_grad=True) for _ in range(3)))
    real, wrong, fake = torch.autograd.grad(discriminator_loss(logits, "hinge"), logits[:3])
    torch.testing.assert_close(real, torch.tensor([-1.0, -1.0, 0.0]) / 3)
    torch.testing.assert_close(wrong, torch.tensor([0.0, 1.0, 1.0]) / 6)
    assert torch.equal(wrong, fake)


def test_generator_loss_is_its_formula_and_the_library_bce() -> None:
    fake = random_double(50, seed=0, scale=3)
    loss = generator_loss(fake)
    torch.testing.assert_close(loss, accept(fake, "bce"), rtol=1e-12, atol=0)
    reference = F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))
    torch.testing.assert_close(loss, reference, rtol=1e-12, atol=0)


def test_generator_hinge_loss_is_minus_the_mean_logit() -> None:
    fake = random_double(50, seed=0, scale=3)
    torch.testing.assert_close(generator_loss(fake, form="hinge"), -fake.mean(), rtol=1e-12, atol=0)


@every_form
def test_generator_loss_of_two_heads_is_their_sum(form: Any) -> None:
    fake, alone = random_double(50, seed=0), random_double(50, seed=1)
    expected = generator_loss(fake, form=form) + generator_loss(alone, form=form)
    torch.testing.assert_close(generator_loss(fake, alone, form), expected, rtol=1e-12, atol=0)


def test_generator_loss_keeps_its_gradient_where_the_discriminator_is_sure() -> None:
    fake = torch.full((1,), -50.0, requires_grad=True)
    (grad,) = torch.autograd.grad(generator_loss(fake), fake)
    assert grad.item() == pytest.approx(-1)


def test_an_undecided_discriminator_costs_two_log_two() -> None:
    zeros = torch.zeros(3)
    assert discriminator_loss(Logits(zeros, zeros, zeros)).item() == pytest.approx(2 * math.log(2))
    assert discriminator_loss(Logits(*[zeros] * 5)).item() == pytest.approx(2 * math.log(2))
    assert discriminator_loss(Logits(zeros, zeros, zeros), "hinge").item() == 2
    assert generator_loss(zeros).item() == pytest.approx(math.log(2))


def test_losses_are_finite_and_exact_at_extreme_logits() -> None:
    far = torch.tensor([1e4])
    assert discriminator_loss(Logits(-far, far, far)).item() == 2e4
    assert discriminator_loss(Logits(far, -far, -far)).item() == 0
    assert generator_loss(-far).item() == 1e4


@every_form
@pytest.mark.parametrize("kl_form", ["mean", "sum"])
@pytest.mark.parametrize("num_heads", [3, 5])
@pytest.mark.parametrize("num_shares", [2, 4])
def test_losses_of_equal_shares_average_to_the_loss_of_the_batch(
    num_shares: int, num_heads: int, kl_form: Any, form: Any
) -> None:
    logits = random_logits(8, num_heads)
    mu, logvar = random_double(8, 5, seed=5), random_double(8, 5, seed=6)

    def told(logits: Logits, mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
        of_g = generator_loss(logits.fake, logits.fake_alone, form)
        return torch.stack((discriminator_loss(logits, form), of_g, kl_divergence(mu, logvar, kl_form)))

    heads = [head for head in logits if head is not None]
    shares = zip(*(tensor.chunk(num_shares) for tensor in (*heads, mu, logvar)), strict=True)
    averages = torch.stack([told(Logits(*share[:-2]), *share[-2:]) for share in shares]).mean(0)
    torch.testing.assert_close(averages, told(logits, mu, logvar), rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", ["mean", "sum"])
def test_kl_is_its_formula_and_that_of_torch_distributions(form: Any) -> None:
    mu, logvar = random_double(6, 9, seed=0), random_double(6, 9, seed=1)
    kl = kl_divergence(mu, logvar, form)
    num_dims = 1 if form == "mean" else 9
    formula = 0.5 * (mu**2 + torch.exp(logvar) - 1 - logvar).mean() * num_dims
    reference = reference_kl(Normal(mu, torch.exp(logvar / 2)), Normal(0.0, 1.0)).mean() * num_dims
    torch.testing.assert_close(kl, formula, rtol=1e-12, atol=0)
    torch.testing.assert_close(kl, reference, rtol=1e-12, atol=0)


def test_kl_is_zero_at_the_standard_normal_and_nowhere_less() -> None:
    zeros = torch.zeros(3, 4)
    assert kl_divergence(zeros, zeros).item() == kl_divergence(zeros, zeros, "sum").item() == 0
    for seed in range(20):
        assert kl_divergence(random_double(2, 3, seed=seed), random_double(2, 3, seed=seed + 100)).item() > 0


def test_weight_two_on_the_mean_is_two_over_the_width_on_the_papers_sum() -> None:
    mu, logvar = random_double(6, 128, seed=0), random_double(6, 128, seed=1)
    torch.testing.assert_close(2.0 * kl_divergence(mu, logvar), 2 / 128 * kl_divergence(mu, logvar, "sum"))


@every_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, form: Any) -> None:
    half = random_double(64, seed=0).detach().to(dtype)
    wide = half.float()
    for num_heads in (3, 5):
        loss = discriminator_loss(Logits(*[half] * num_heads), form)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, discriminator_loss(Logits(*[wide] * num_heads), form))
    assert torch.equal(generator_loss(half, half, form), generator_loss(wide, wide, form))
    half, wide = half.view(8, 8), wide.view(8, 8)
    for kl_form in ("mean", "sum"):
        assert torch.equal(kl_divergence(half, half, kl_form), kl_divergence(wide, wide, kl_form))


# The gradient penalties. A linear judge a.x + b.t has the gradients a and b wherever it looks.


def test_penalty_of_a_linear_judge_is_that_of_its_weights() -> None:
    a, b = random_double(3, 4, 4, seed=0, scale=0.3), random_double(6, seed=1, scale=0.3)

    def judge(images: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return (images * a).sum((1, 2, 3)) + text @ b

    images, text = random_double(5, 3, 4, 4, seed=2), random_double(5, 6, seed=3)
    over_images, over_both = a.square().sum(), a.square().sum() + b.square().sum()
    r1 = gradient_penalty(judge, images, text, "r1")
    matching_aware = gradient_penalty(judge, images, text, "matching_aware")
    torch.testing.assert_close(r1, over_images / 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(matching_aware, over_both**3, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(r1, a), (a,), rtol=1e-12, atol=0)
    expected = (6 * over_both**2 * a, 6 * over_both**2 * b)
    torch.testing.assert_close(torch.autograd.grad(matching_aware, (a, b)), expected, rtol=1e-12, atol=0)


def test_penalty_is_the_mean_over_the_batch_of_each_images_own() -> None:
    """Of the judge |x|^2 / 2 + |t|^2 / 2, whose gradients are x and t themselves."""
    images, text = random_double(4, 3, 2, 2, seed=0), random_double(4, 6, seed=1)

    def judge(images: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return images.square().sum((1, 2, 3)) / 2 + text.square().sum(1) / 2

    of_images, of_text = images.square().sum((1, 2, 3)), text.square().sum(1)
    expected = {"r1": of_images.mean() / 2, "matching_aware": ((of_images + of_text) ** 3).mean()}
    for form, value in expected.items():
        torch.testing.assert_close(gradient_penalty(judge, images, text, form), value, rtol=1e-12, atol=0)


def curved_judge(
    images: torch.Tensor, text: torch.Tensor, filters: torch.Tensor, reading: torch.Tensor
) -> torch.Tensor:
    maps = F.softplus(F.conv2d(images, filters, padding=1))
    return (maps.mean((2, 3)) * (text @ reading).tanh()).sum(1)


@every_penalty
def test_penalty_is_that_of_finite_differences(form: Any) -> None:
    filters, reading = random_double(2, 3, 3, 3, seed=0), random_double(4, 2, seed=1)
    images, text = (tensor.detach() for tensor in (random_double(2, 3, 3, 3, seed=2), random_double(2, 4, seed=3)))
    step = 1e-5

    def slopes(which: int) -> torch.Tensor:
        """(N, D): how much each number of a sample moves its own logit."""
        columns: list[torch.Tensor] = []
        for index in range((images, text)[which][0].numel()):
            moved: list[torch.Tensor] = []
            for sign in (1, -1):
                inputs = [images.clone(), text.clone()]
                inputs[which].flatten(1)[:, index] += sign * step
                moved.append(curved_judge(*inputs, filters, reading))
            columns.append((moved[0] - moved[1]) / (2 * step))
        return torch.stack(columns, dim=1)

    squared = slopes(0).square().sum(1)
    expected = squared.mean() / 2 if form == "r1" else (squared + slopes(1).square().sum(1)).pow(3).mean()
    penalty = gradient_penalty(lambda x, t: curved_judge(x, t, filters, reading), images, text, form)
    torch.testing.assert_close(penalty, expected, rtol=1e-6, atol=0)


@every_penalty
def test_penalty_has_the_gradient_of_finite_differences_in_the_judges_weights(form: Any) -> None:
    images, text = random_double(2, 3, 3, 3, seed=2), random_double(2, 4, seed=3)

    def penalty(filters: torch.Tensor, reading: torch.Tensor) -> torch.Tensor:
        return gradient_penalty(lambda x, t: curved_judge(x, t, filters, reading), images, text, form)

    weights = (random_double(2, 3, 3, 3, seed=0), random_double(4, 2, seed=1))
    assert torch.autograd.gradcheck(penalty, weights, rtol=1e-5, atol=1e-8)


@every_penalty
def test_penalty_leaves_its_inputs_as_they_were(form: Any) -> None:
    images, text = random_double(2, 3, 3, 3, seed=0).detach(), random_double(2, 4, seed=1)
    filters, reading = random_double(2, 3, 3, 3, seed=2), random_double(4, 2, seed=3)
    gradient_penalty(lambda x, t: curved_judge(x, t, filters, reading), images, text, form).backward()
    assert not images.requires_grad and images.grad is None and text.grad is None
    assert filters.grad is not None


def test_r1_does_not_look_at_the_text() -> None:
    images, text = random_double(2, 3, seed=0), random_double(2, 3, seed=1)

    def judge(images: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return images.sum(1) + 100 * text.sum(1)

    assert gradient_penalty(judge, images, text, "r1").item() == pytest.approx(1.5)
    assert gradient_penalty(judge, images, text, "matching_aware").item() == pytest.approx(30003.0**3)
