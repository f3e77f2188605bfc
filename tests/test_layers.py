"""The shared layers: up-sampling's fast form, conditioning augmentation, spectral norm, weight initialisation."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm, truncnorm
from torch import nn
from torch.nn.utils import parametrize

from pipeline.gan import layers


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_double(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=make_generator(seed)).requires_grad_()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (2, 3), (8, 8)])
@pytest.mark.parametrize(("in_dim", "out_dim"), [(1, 1), (5, 3), (4, 7)])
def test_transposed_form_equals_plain_form_forward_and_backward(
    in_dim: int, out_dim: int, height: int, width: int
) -> None:
    x, weight = random_double(3, in_dim, height, width), random_double(out_dim, in_dim, 3, 3, seed=1)
    plain, transposed = layers.upsample_conv_plain(x, weight), layers.upsample_conv_transposed(x, weight)
    assert transposed.shape == (3, out_dim, 2 * height, 2 * width)
    torch.testing.assert_close(transposed, plain, rtol=0, atol=1e-12)
    grad = torch.randn(plain.shape, dtype=torch.float64, generator=make_generator(2))
    for ours, expected in zip(
        torch.autograd.grad(transposed, (x, weight), grad), torch.autograd.grad(plain, (x, weight), grad), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_transposed_form_has_the_second_derivative_of_the_plain_form() -> None:
    weight = random_double(2, 3, 3, 3, seed=1)
    penalties: list[torch.Tensor] = []
    for form in (layers.upsample_conv_plain, layers.upsample_conv_transposed):
        x = random_double(2, 3, 4, 4)
        (slope,) = torch.autograd.grad(form(x, weight).square().sum(), x, create_graph=True)
        penalties.append(torch.autograd.grad(slope.square().sum(), weight)[0])
    torch.testing.assert_close(penalties[1], penalties[0], rtol=1e-12, atol=1e-9)


def test_transposed_kernel_of_a_known_kernel_is_the_outer_product_of_the_four_taps() -> None:
    row, column = torch.tensor([1.0, 10.0, 100.0]), torch.tensor([2.0, 3.0, 5.0])
    kernel = layers.transposed_kernel(torch.outer(row, column)[None, None])
    assert torch.equal(kernel[0, 0], torch.outer(torch.tensor([100.0, 110, 11, 1]), torch.tensor([5.0, 8, 5, 2])))


def test_upsample_conv_switch_changes_neither_state_nor_output() -> None:
    fast, plain = layers.UpsampleConv(4, 3), layers.UpsampleConv(4, 3, transposed=False)
    assert {name: value.shape for name, value in fast.state_dict().items()} == {"weight": (3, 4, 3, 3)}
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(2, 4, 5, 5, generator=make_generator())
    torch.testing.assert_close(fast(x), plain(x))


@pytest.mark.parametrize("layer", [layers.UpsampleConv(8, 4), layers.conv_bn(8, 4, 3), layers.ResidualBlock(8)])
def test_layers_keep_channels_last(layer: nn.Module) -> None:
    layer = layer.to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 4, 4, generator=make_generator()).contiguous(memory_format=torch.channels_last)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)
    code = torch.randn(2, 3, generator=make_generator(1))
    assert layers.concat_code(x, code).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("kernel_size", "stride", "size"), [(1, 1, 8), (3, 1, 8), (4, 2, 4)])
def test_conv_pads_so_that_height_is_divided_by_the_stride(kernel_size: int, stride: int, size: int) -> None:
    assert layers.conv_bn(3, 5, kernel_size, stride)(torch.zeros(2, 3, 8, 8)).shape == (2, 5, size, size)


def test_batchnorm_has_the_papers_eps_and_momentum() -> None:
    for block in (layers.conv_bn(3, 5, 3), layers.upsample_conv_bn(3, 5)):
        assert (block[1].eps, block[1].momentum) == (1e-5, 0.1)


@pytest.mark.parametrize("activation", [layers.relu, layers.leaky_relu])
def test_residual_blocks_whose_last_gamma_is_zero_only_activate(activation: type[nn.Module]) -> None:
    x = torch.randn(2, 8, 4, 4, generator=make_generator())
    bottleneck = layers.BottleneckResidualBlock(8, activation)
    nn.init.zeros_(bottleneck.residual[-1][1].weight)
    assert torch.equal(bottleneck(x.clone()), activation()(x.clone()))
    plain = layers.ResidualBlock(8)
    nn.init.zeros_(plain.residual[-1][1].weight)
    assert torch.equal(plain(x.clone()), x.relu())


def test_bottleneck_narrows_to_a_quarter() -> None:
    block = layers.BottleneckResidualBlock(16, layers.relu)
    shapes = [tuple(module.weight.shape) for module in block.modules() if isinstance(module, nn.Conv2d)]
    assert shapes == [(4, 16, 1, 1), (4, 4, 3, 3), (16, 4, 3, 3)]


def test_concat_code_repeats_the_code_at_every_place() -> None:
    features = torch.randn(2, 3, 4, 5, generator=make_generator())
    code = torch.randn(2, 6, generator=make_generator(1))
    joined = layers.concat_code(features, code)
    assert joined.shape == (2, 9, 4, 5)
    assert torch.equal(joined[:, :3], features)
    assert torch.equal(joined[:, 3:].amax((2, 3)), code)
    assert torch.equal(joined[:, 3:].amin((2, 3)), code)


def test_conditioning_augmentation_is_mu_plus_sigma_eps_with_linear_heads() -> None:
    ca = layers.ConditioningAugmentation(7, 5).double()
    text, eps = random_double(4, 7), random_double(4, 5, seed=1)
    code = ca(text, eps)
    mu, logvar = (text @ ca.heads.weight.T + ca.heads.bias).split(5, dim=1)
    torch.testing.assert_close(code.mu, mu)
    torch.testing.assert_close(code.logvar, logvar)
    torch.testing.assert_close(code.c, mu + logvar.exp().sqrt() * eps)
    assert mu.min() < 0
    assert logvar.min() < 0


def test_conditioning_code_has_the_mean_and_variance_it_reports() -> None:
    ca = layers.ConditioningAugmentation(3, 4)
    text = torch.randn(1, 3, generator=make_generator())
    eps = torch.randn(100_000, 4, generator=make_generator(1))
    code = ca(text.expand(100_000, 3), eps)
    torch.testing.assert_close(code.c.mean(0), code.mu[0], rtol=0, atol=0.02)
    torch.testing.assert_close(code.c.var(0).log(), code.logvar[0], rtol=0, atol=0.03)


def test_conditioning_augmentation_off_returns_mu_whatever_the_noise() -> None:
    ca = layers.ConditioningAugmentation(7, 5, augment=False)
    assert ca.heads.weight.shape == (5, 7)
    text = torch.randn(2, 7, generator=make_generator())
    code, other = ca(text, torch.zeros(2, 5)), ca(text, torch.ones(2, 5))
    assert code.logvar is None
    assert torch.equal(code.c, code.mu)
    assert torch.equal(code.c, other.c)


def test_conditioning_code_is_float32_under_autocast() -> None:
    ca = layers.ConditioningAugmentation(7, 5)
    with torch.autocast("cpu", torch.bfloat16):
        code = ca(torch.randn(2, 7, generator=make_generator()), torch.zeros(2, 5))
    assert [tensor.dtype for tensor in code] == [torch.float32] * 3


SPREADS = ("log_variance", "log_sigma")
ACTIVATIONS = {"none": lambda x: x, "leaky_relu": lambda x: np.where(x > 0, x, 0.2 * x), "relu": lambda x: x.clip(0)}


@pytest.mark.parametrize("truncated_noise", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("spread", SPREADS)
def test_conditioning_augmentation_is_its_formula(spread: Any, activation: Any, truncated_noise: bool) -> None:
    ca = layers.ConditioningAugmentation(
        7, 5, spread=spread, activation=activation, truncated_noise=truncated_noise
    ).double()
    text, eps = random_double(4, 7).detach(), random_double(4, 5, seed=1).detach()
    code = ca(text, eps)
    linear = text.numpy() @ ca.heads.weight.detach().numpy().T + ca.heads.bias.detach().numpy()
    mu, second = np.split(ACTIVATIONS[activation](linear), 2, axis=1)
    sigma = np.exp(second) if spread == "log_sigma" else np.sqrt(np.exp(second))
    noise = truncnorm.ppf(norm.cdf(eps.numpy()), -2, 2) if truncated_noise else eps.numpy()
    expected = (mu + sigma * noise, mu, 2 * np.log(sigma))
    for ours, value in zip(code, expected, strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), value, rtol=1e-9, atol=1e-12)
    assert (linear < 0).any() and (linear > 0).any()  # the activation had something to do


def test_relu_on_log_variance_never_lets_sigma_below_one() -> None:
    """Why the paper's layer is linear here."""
    ca = layers.ConditioningAugmentation(7, 5, activation="relu")
    code = ca(torch.randn(50, 7, generator=make_generator()), torch.ones(50, 5))
    assert code.logvar.min() == 0 and code.mu.min() == 0


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_mean_alone_is_the_mu_of_the_code(activation: Any, augment: bool) -> None:
    ca = layers.ConditioningAugmentation(7, 5, activation=activation, augment=augment)
    text = torch.randn(4, 7, generator=make_generator())
    assert torch.equal(ca.mean(text), ca(text, torch.ones(4, 5)).mu)


def test_noise_cut_at_two_is_scipys_truncated_normal_in_the_same_order() -> None:
    normal = torch.randn(50_000, dtype=torch.float64, generator=make_generator())
    cut = layers.cut_at_two(normal)
    assert kstest(cut.numpy(), truncnorm(-2, 2).cdf).pvalue > 1e-3
    assert torch.equal(cut.argsort(), normal.argsort())
    np.testing.assert_allclose(cut.numpy(), truncnorm.ppf(norm.cdf(normal.numpy()), -2, 2), rtol=1e-8, atol=1e-12)
    assert cut.std().item() == pytest.approx(truncnorm(-2, 2).std(), abs=0.01)


def test_the_farthest_float32_noise_stays_within_two() -> None:
    far = torch.tensor([3.0, 4.0, 5.0, 6.0, 10.0, 1e30, math.inf])
    for cut in (layers.cut_at_two(far), layers.cut_at_two(-far)):
        assert torch.isfinite(cut).all() and cut.abs().max() <= 2
    assert layers.cut_at_two(far)[-1].item() == pytest.approx(2)
    assert layers.cut_at_two(torch.zeros(1)).item() == 0


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("logit_bias", [True, False])
def test_text_match_has_the_parameters_it_is_asked_for(compress: bool, kernel_size: int, logit_bias: bool) -> None:
    match = layers.TextMatch(8, 7, 5, compress=compress, kernel_size=kernel_size, logit_bias=logit_bias)
    count = sum(parameter.numel() for parameter in match.parameters())
    assert count == compress * (7 + 1) * 5 + 13 * 8 * kernel_size**2 + 2 * 8 + 8 * 16 + logit_bias
    text = torch.randn(2, 7 if compress else 5, generator=make_generator())
    assert match(torch.randn(2, 8, 4, 4, generator=make_generator(1)), text).shape == (2,)


def settled(shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, layers.SpectralNorm]:
    """Return a weight in float64 and its SpectralNorm after many calls."""
    weight = random_double(*shape, seed=seed)
    normed = layers.SpectralNorm(weight.detach(), make_generator(seed + 1)).double()
    for _ in range(500):
        normed(weight)
    return weight, normed


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 3, 4, 4), (1, 8, 4, 4), (8, 3, 1, 1)])
def test_spectral_norm_brings_the_largest_singular_value_to_one(shape: tuple[int, ...]) -> None:
    weight, normed = settled(shape)
    effective = normed(weight)
    assert effective.shape == shape
    assert torch.linalg.svdvals(effective.flatten(1))[0].item() == pytest.approx(1, abs=1e-9)
    largest = torch.linalg.svdvals(weight.flatten(1))[0]
    torch.testing.assert_close(effective, weight / largest, rtol=1e-9, atol=1e-12)


def test_spectral_norm_iterates_in_training_alone() -> None:
    weight = random_double(6, 4)
    normed = layers.SpectralNorm(weight.detach(), make_generator(1)).double()
    before = normed.u.clone()
    first = normed.eval()(weight)
    assert torch.equal(normed.u, before)
    assert torch.equal(normed(weight), first)
    normed.train()(weight)
    assert not torch.equal(normed.u, before)
    # One power iteration: u becomes the direction of W W^T u.
    expected = weight @ weight.T @ before
    torch.testing.assert_close(normed.u, (expected / expected.norm()).detach(), rtol=1e-12, atol=1e-14)


def test_gradient_through_spectral_norm_holds_both_directions_fixed() -> None:
    """Of W / sigma with sigma = u^T W v: (G - <G, W / sigma> u v^T) / sigma, Miyato et al., equation 12."""
    weight = random_double(6, 4)
    normed = layers.SpectralNorm(weight.detach(), make_generator(1)).double()
    matrix, v = weight.detach(), weight.detach().T @ normed.u
    v /= v.norm()
    u = matrix @ v
    u /= u.norm()
    sigma = u @ matrix @ v
    upstream = random_double(6, 4, seed=2).detach()
    (ours,) = torch.autograd.grad(normed(weight), weight, upstream)
    expected = (upstream - (upstream * matrix).sum() / sigma * torch.outer(u, v)) / sigma
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


def test_a_settled_spectral_norm_has_the_gradient_of_finite_differences() -> None:
    weight, normed = settled((4, 3, 2, 2))
    assert torch.autograd.gradcheck(normed.eval(), weight, atol=1e-6)


def spectral_block(seed: int = 1) -> nn.Sequential:
    block = nn.Sequential(layers.conv_bn(3, 8, 4, stride=2), layers.leaky_relu(), nn.Flatten(), nn.Linear(128, 5))
    layers.initialise(block, make_generator())
    layers.normalise_spectrally(block, make_generator(seed))
    return block


def test_every_convolution_and_linear_layer_is_normalised_and_nothing_else() -> None:
    block = spectral_block()
    normalised = [layer for layer in block.modules() if parametrize.is_parametrized(layer)]
    assert normalised == [block[0][0], block[3]]
    for _ in range(100):
        block(torch.randn(2, 3, 8, 8, generator=make_generator()))
    for layer in normalised:
        assert torch.linalg.svdvals(layer.weight.flatten(1))[0].item() == pytest.approx(1, abs=1e-3)


def test_spectral_norm_begins_from_its_generator_and_is_part_of_the_state() -> None:
    state, again, other = (spectral_block(seed).state_dict() for seed in (1, 1, 2))
    vectors = [name for name in state if name.endswith(".u")]
    assert len(vectors) == 2
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert not any(torch.equal(state[name], other[name]) for name in vectors)
    assert all(torch.equal(state[name], other[name]) for name in state if name not in vectors)


def test_spectral_norm_is_computed_in_float32_inside_autocast() -> None:
    images = torch.randn(2, 3, 8, 8, generator=make_generator())
    plain, cast = spectral_block(), spectral_block()
    plain(images)
    with torch.autocast("cpu", torch.bfloat16):
        output = cast(images)
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    for ours, expected in zip(cast.state_dict().items(), plain.state_dict().items(), strict=True):
        if ours[0].endswith(".u"):
            assert torch.equal(ours[1], expected[1]), ours[0]
    for name, parameter in cast.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.any(), name


def make_initialised(seed: int) -> nn.Sequential:
    block = nn.Sequential(
        layers.UpsampleConv(64, 64), nn.BatchNorm2d(4096), nn.Flatten(), nn.Linear(256, 256), nn.BatchNorm1d(4096)
    )
    for tensor in (*block.parameters(), *(buffer for buffer in block.buffers() if buffer.is_floating_point())):
        nn.init.constant_(tensor, math.nan)
    layers.initialise(block, make_generator(seed))
    return block


def test_initialise_is_a_function_of_the_generator_and_leaves_nothing_out() -> None:
    state, again, other = (make_initialised(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert all(torch.isfinite(value).all() for value in state.values())
    assert not torch.equal(state["0.weight"], other["0.weight"])


def test_initialise_draws_nothing_from_the_global_generator() -> None:
    layer = nn.Conv2d(3, 3, 3)
    before = torch.get_rng_state()
    layers.initialise(nn.Sequential(layer), make_generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_initialised_weights_have_the_published_distributions() -> None:
    conv, norm, _, linear, norm1d = make_initialised(0)
    # A standard normal cut at two has variance 1 - 4 phi(2) / (2 Phi(2) - 1): sd 0.8796.
    cut_std = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))
    assert conv.weight.abs().max() <= 0.04
    assert conv.weight.abs().max() > 0.039
    assert conv.weight.std().item() == pytest.approx(0.02 * cut_std, rel=0.02)
    assert conv.weight.mean().item() == pytest.approx(0, abs=4e-4)
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert linear.weight.abs().max() > 0.04
    for layer in (norm, norm1d):
        assert layer.weight.mean().item() == pytest.approx(1, abs=2e-3)
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert torch.equal(layer.bias, torch.zeros(4096))
        assert torch.equal(layer.running_mean, torch.zeros(4096))
        assert torch.equal(layer.running_var, torch.ones(4096))
    assert torch.equal(linear.bias, torch.zeros(256))


def test_weights_that_are_not_truncated_are_the_whole_normal_distribution() -> None:
    block = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Linear(8, 8, bias=False))
    layers.initialise(block, make_generator(), truncated=False)
    conv = block[0]
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    assert kstest(conv.weight.detach().flatten().numpy(), norm(0, 0.02).cdf).pvalue > 1e-3
    assert conv.weight.abs().max() > 0.06
    assert not conv.bias.any()
