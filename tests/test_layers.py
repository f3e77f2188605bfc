"""The shared layers: the fast form of up-sampling, conditioning augmentation, weight initialisation."""

import math

import pytest
import torch
from torch import nn

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
