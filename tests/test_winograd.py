"""Winograd's forms: the function that torch computes, forward and backward, and where they are taken."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.gan.architecture import architecture_of
from pipeline.gan.layers import Conv, UpsampleConv, upsample_conv_plain
from pipeline.gan.networks import Discriminator, Stage1Generator
from pipeline.gan.winograd import CONV_3X3, CONV_4X4_STRIDE_2, UPSAMPLE, Algorithm, conv_winograd, pays
from tests.gan_presets import preset


class Form(NamedTuple):
    algorithm: Algorithm
    kernel_size: int
    plain: Callable[[Tensor, Tensor], Tensor]


FORMS = {
    "upsample": Form(UPSAMPLE, 3, upsample_conv_plain),
    "3x3": Form(CONV_3X3, 3, lambda x, weight: F.conv2d(x, weight, padding=1)),
    "4x4_stride_2": Form(CONV_4X4_STRIDE_2, 4, lambda x, weight: F.conv2d(x, weight, stride=2, padding=1)),
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


@every_form
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("size", [(4, 4), (8, 4), (4, 16)])
@pytest.mark.parametrize(("in_dim", "out_dim"), [(1, 1), (5, 3), (4, 7)])
def test_value_and_gradients_are_those_of_the_plain_form(
    in_dim: int, out_dim: int, size: tuple[int, int], layout: torch.memory_format, form: Form
) -> None:
    x = draw(3, in_dim, *size).contiguous(memory_format=layout).requires_grad_()
    weight = draw(out_dim, in_dim, form.kernel_size, form.kernel_size, seed=1).contiguous(memory_format=layout)
    plain, ours = form.plain(x, weight.requires_grad_()), conv_winograd(x, weight, form.algorithm)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    gradient = draw(*plain.shape, seed=2)
    for one, other in zip(
        torch.autograd.grad(ours, (x, weight), gradient), torch.autograd.grad(plain, (x, weight), gradient), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@every_form
@pytest.mark.parametrize("needed", [(True, False), (False, True)], ids=["picture", "weight"])
def test_many_tiles_are_worked_on_in_parts_and_only_for_the_gradients_asked_for(
    needed: tuple[bool, bool], form: Form
) -> None:
    side = 12 * form.algorithm.stride
    x = draw(31, 2, side, side).requires_grad_(needed[0])  # 144 tiles each: 14, 14 and 3 pictures at once
    weight = draw(3, 2, form.kernel_size, form.kernel_size, seed=1).requires_grad_(needed[1])
    wanted = [each for each, is_needed in zip((x, weight), needed, strict=True) if is_needed]
    plain, ours = form.plain(x, weight), conv_winograd(x, weight, form.algorithm)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(ours.sin().sum(), wanted), torch.autograd.grad(plain.sin().sum(), wanted), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@every_form
def test_float32_is_as_exact_as_torchs(form: Form) -> None:
    x, weight = draw(4, 256, 8, 8), draw(128, 256, form.kernel_size, form.kernel_size, seed=1)
    exact = form.plain(x, weight)
    x, weight = x.float(), weight.float()
    theirs = (form.plain(x, weight) - exact).square().mean().sqrt()
    ours = (conv_winograd(x, weight, form.algorithm) - exact).square().mean().sqrt()
    assert ours < 3 * theirs
    assert ours < 1e-6 * exact.std()


def test_a_second_derivative_is_refused_not_wrong() -> None:
    x, weight = draw(1, 2, 4, 4).requires_grad_(), draw(2, 2, 3, 3)
    (slope,) = torch.autograd.grad(conv_winograd(x, weight, CONV_3X3).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_it_pays_for_wide_layers_many_tiles_and_full_precision() -> None:
    x, weight = torch.zeros(4, 128, 8, 8), torch.zeros(128, 128, 3, 3)
    assert pays(x, weight, CONV_3X3)
    assert pays(x, weight, UPSAMPLE)
    assert not pays(x[:, :127], weight[:, :127], CONV_3X3)
    assert not pays(x, weight[:127], CONV_3X3)
    assert not pays(x[:3], weight, CONV_3X3)  # 48 tiles
    assert not pays(x, weight, CONV_4X4_STRIDE_2)  # 16 tiles
    assert not pays(torch.zeros(4, 128, 9, 8), weight, CONV_3X3)
    assert not pays(torch.zeros(64, 128, 6, 8), weight, CONV_4X4_STRIDE_2)
    assert not pays(x.to("meta"), weight.to("meta"), CONV_3X3)
    assert not pays(x.bfloat16(), weight.bfloat16(), CONV_3X3)
    with torch.autocast("cpu", torch.bfloat16):
        assert not pays(x, weight, CONV_3X3)


@pytest.mark.parametrize("layer", [UpsampleConv(128, 128), Conv(128, 128, 3), Conv(128, 128, 4, stride=2)])
def test_a_layer_computes_the_same_with_the_switch_on(layer: Conv, monkeypatch: pytest.MonkeyPatch) -> None:
    x = draw(16, 128, 8, 8)
    layer = layer.double()
    off = layer(x)
    layer.winograd = True
    algorithms: list[Algorithm] = []

    def told(x: Tensor, weight: Tensor, algorithm: Algorithm) -> Tensor:
        algorithms.append(algorithm)
        return conv_winograd(x, weight, algorithm)

    monkeypatch.setattr("pipeline.gan.layers.conv_winograd", told)
    torch.testing.assert_close(layer(x), off, rtol=0, atol=1e-12)
    assert algorithms == [layer.algorithm]
    layer(x[:1, :, :4, :4])  # too few tiles
    assert len(algorithms) == 1


def test_a_1x1_convolution_has_no_such_form() -> None:
    layer = Conv(128, 128, 1)
    layer.winograd = True
    x = draw(16, 128, 8, 8, dtype=torch.float32)
    assert torch.equal(layer(x), F.conv2d(x, layer.weight))


def test_it_is_taken_by_the_wide_layers_of_the_papers_stage_1() -> None:
    architecture = architecture_of(preset("paper"), 1024)
    generator, discriminator = Stage1Generator(architecture), Discriminator(architecture, 64)
    taken: list[tuple[int, int]] = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, Conv)
        if layer.algorithm is not None and pays(inputs[0], layer.weight, layer.algorithm):
            taken.append((layer.in_channels, layer.out_channels))

    for network in (generator, discriminator):
        for layer in network.modules():
            if isinstance(layer, Conv):
                layer.register_forward_pre_hook(look)
    with torch.no_grad():
        images = generator(draw(32, 1024).float(), draw(32, 100).float(), draw(32, 128).float()).images
        discriminator(images, draw(32, 1024).float())
    assert taken == [
        *[(256, 256), (256, 1024), (1024, 512), (128, 128), (128, 512), (512, 256), (256, 128)],
        *[(128, 256), (256, 512), (128, 128), (128, 512)],
    ]
