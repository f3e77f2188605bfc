"""The losses against their written-out formulas, in float64."""

import math

import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_kl
from torch.nn import functional as F

from pipeline.gan import losses


def random_double(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, dtype=torch.float64, generator=generator)).requires_grad_()


def test_discriminator_loss_is_its_formula() -> None:
    real, wrong, fake = (random_double(50, seed=seed, scale=3) for seed in range(3))
    expected = -torch.log(torch.sigmoid(real)).mean()
    expected = expected - 0.5 * torch.log(1 - torch.sigmoid(wrong)).mean()
    expected = expected - 0.5 * torch.log(1 - torch.sigmoid(fake)).mean()
    torch.testing.assert_close(losses.discriminator_loss(real, wrong, fake), expected, rtol=1e-12, atol=0)


def test_discriminator_loss_has_the_closed_form_gradient() -> None:
    real, wrong, fake = (random_double(5, seed=seed) for seed in range(3))
    grads = torch.autograd.grad(losses.discriminator_loss(real, wrong, fake), (real, wrong, fake))
    expected = ((torch.sigmoid(real) - 1) / 5, torch.sigmoid(wrong) / 10, torch.sigmoid(fake) / 10)
    torch.testing.assert_close(grads, expected, rtol=1e-12, atol=0)


def test_generator_loss_is_its_formula_and_the_library_bce() -> None:
    fake = random_double(50, seed=0, scale=3)
    loss = losses.generator_loss(fake)
    torch.testing.assert_close(loss, -torch.log(torch.sigmoid(fake)).mean(), rtol=1e-12, atol=0)
    reference = F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))
    torch.testing.assert_close(loss, reference, rtol=1e-12, atol=0)


def test_generator_loss_keeps_its_gradient_where_the_discriminator_is_sure() -> None:
    fake = torch.full((1,), -50.0, requires_grad=True)
    (grad,) = torch.autograd.grad(losses.generator_loss(fake), fake)
    assert grad.item() == pytest.approx(-1)


def test_an_undecided_discriminator_costs_two_log_two() -> None:
    zeros = torch.zeros(3)
    assert losses.discriminator_loss(zeros, zeros, zeros).item() == pytest.approx(2 * math.log(2))
    assert losses.generator_loss(zeros).item() == pytest.approx(math.log(2))


def test_losses_are_finite_and_exact_at_extreme_logits() -> None:
    far = torch.tensor([1e4])
    assert losses.discriminator_loss(-far, far, far).item() == 2e4
    assert losses.discriminator_loss(far, -far, -far).item() == 0
    assert losses.generator_loss(-far).item() == 1e4


@pytest.mark.parametrize("num_shares", [2, 4])
def test_losses_of_equal_shares_average_to_the_loss_of_the_batch(num_shares: int) -> None:
    logits = [random_double(8, seed=seed) for seed in range(3)]
    mu, logvar = random_double(8, 5, seed=3), random_double(8, 5, seed=4)
    shares = zip(*(tensor.chunk(num_shares) for tensor in (*logits, mu, logvar)), strict=True)
    averages = torch.stack(
        [
            torch.stack((losses.discriminator_loss(r, w, f), losses.generator_loss(f), losses.kl_divergence(m, v)))
            for r, w, f, m, v in shares
        ]
    ).mean(0)
    whole = losses.discriminator_loss(*logits), losses.generator_loss(logits[2]), losses.kl_divergence(mu, logvar)
    torch.testing.assert_close(averages, torch.stack(whole))


def test_kl_is_its_formula_and_that_of_torch_distributions() -> None:
    mu, logvar = random_double(6, 9, seed=0), random_double(6, 9, seed=1)
    kl = losses.kl_divergence(mu, logvar)
    formula = 0.5 * (mu**2 + torch.exp(logvar) - 1 - logvar).mean()
    reference = reference_kl(Normal(mu, torch.exp(logvar / 2)), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(kl, formula, rtol=1e-12, atol=0)
    torch.testing.assert_close(kl, reference, rtol=1e-12, atol=0)


def test_kl_is_zero_at_the_standard_normal_and_nowhere_less() -> None:
    zeros = torch.zeros(3, 4)
    assert losses.kl_divergence(zeros, zeros).item() == 0
    for seed in range(20):
        assert losses.kl_divergence(random_double(2, 3, seed=seed), random_double(2, 3, seed=seed + 100)).item() > 0


def test_weight_two_on_the_mean_is_two_over_the_width_on_the_papers_sum() -> None:
    mu, logvar = random_double(6, 128, seed=0), random_double(6, 128, seed=1)
    summed = reference_kl(Normal(mu, torch.exp(logvar / 2)), Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(2.0 * losses.kl_divergence(mu, logvar), 2 / 128 * summed)


def test_bfloat16_input_is_computed_in_float32() -> None:
    half = random_double(64, seed=0).detach().bfloat16()
    wide = half.float()
    assert losses.discriminator_loss(half, half, half).dtype == torch.float32
    assert torch.equal(losses.discriminator_loss(half, half, half), losses.discriminator_loss(wide, wide, wide))
    assert torch.equal(losses.generator_loss(half), losses.generator_loss(wide))
    assert torch.equal(losses.kl_divergence(half, half), losses.kl_divergence(wide, wide))
