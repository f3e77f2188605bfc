"""Layers shared by the four StackGAN networks, and how their weights begin.

Zhang et al., "StackGAN: Text to Photo-realistic Image Synthesis with Stacked Generative Adversarial Networks", ICCV
2017, section 3: conditioning augmentation, up-sampling, residual blocks; details after the TensorFlow release.
Convolutions carry no bias, BatchNorm has eps 1e-5 and momentum 0.1 (PyTorch's defaults). Nothing here draws noise or
reads a value back from the device, so a whole step can be captured in a CUDA graph.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from pipeline.gan.winograd import CONV_3X3, CONV_4X4_STRIDE_2, UPSAMPLE, conv_winograd, pays

LEAKY_SLOPE = 0.2
WEIGHT_STD = 0.02


class Conv(nn.Conv2d):
    """Convolution without bias, padded so that H becomes H / stride: kernels 3 and 1 of stride 1, 4 of stride 2.

    With `winograd` set, it takes fewer multiplications where that is faster: the same function up to rounding, which
    can be differentiated once.
    """

    def __init__(self, in_dim: int, out_dim: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(in_dim, out_dim, kernel_size, stride, padding=(kernel_size - 1) // 2, bias=False)
        self.winograd = False
        self.algorithm = {(3, 1): CONV_3X3, (4, 2): CONV_4X4_STRIDE_2}.get((kernel_size, stride))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(N, in_dim, H, W) -> (N, out_dim, H / stride, W / stride)."""
        if self.winograd and self.algorithm is not None and pays(input, self.weight, self.algorithm):
            return conv_winograd(input, self.weight, self.algorithm)
        return self.otherwise(input)

    def otherwise(self, input: torch.Tensor) -> torch.Tensor:
        """Convolve as torch does."""
        return super().forward(input)


class Deconv(nn.ConvTranspose2d):
    """Learned up-sampling: a 4x4 transposed convolution of stride 2, as in DCGAN, GAN-INT-CLS and GAWWN."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim, kernel_size=4, stride=2, padding=1, bias=False)


class UpsampleConv(Conv):
    """Nearest-neighbour x2 up-sampling and a 3x3 convolution, computed as one 4x4 transposed convolution of stride 2.

    Every output pixel of the plain form sees at most 2x2 different input pixels, so 16 instead of 36 multiply-adds for
    each input pixel and channel pair suffice. The weight stays (out_dim, in_dim, 3, 3), so snapshots do not depend on
    the form.
    """

    def __init__(self, in_dim: int, out_dim: int, *, transposed: bool = True) -> None:
        """Make the layer.

        Args:
            in_dim: channels in.
            out_dim: channels out.
            transposed: the fast form; False computes the plain one, the same function up to rounding.
        """
        super().__init__(in_dim, out_dim, kernel_size=3)
        self.transposed = transposed
        self.algorithm = UPSAMPLE

    def otherwise(self, input: torch.Tensor) -> torch.Tensor:
        """(N, in_dim, H, W) -> (N, out_dim, 2H, 2W), in one of the two forms."""
        if self.transposed:
            return upsample_conv_transposed(input, self.weight)
        return upsample_conv_plain(input, self.weight)


def upsample_conv_plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(N, I, H, W), (O, I, 3, 3) -> (N, O, 2H, 2W): up-sample, then convolve, as it is written in the paper."""
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, padding=1)


def upsample_conv_transposed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(N, I, H, W), (O, I, 3, 3) -> (N, O, 2H, 2W): the same function in 4/9 of the multiply-adds."""
    return F.conv_transpose2d(x, transposed_kernel(weight), stride=2, padding=1)


def transposed_kernel(weight: torch.Tensor) -> torch.Tensor:
    """(O, I, 3, 3) -> (I, O, 4, 4): the kernel of the transposed convolution, a fixed linear map of the 3x3 kernel.

    Per axis, output pixel 2i is w0 x[i-1] + (w1 + w2) x[i] and output pixel 2i+1 is (w0 + w1) x[i] + w2 x[i+1]. A
    transposed convolution of stride 2 and padding 1 applies its four taps to x[i+1] (odd outputs), x[i] (even), x[i]
    (odd), x[i-1] (even). The sums are taken in the weight's own precision, before autocast narrows them.
    """
    # (I, 4, 4, O) in memory is this kernel's channels_last layout, the cheapest for conv_transpose2d: at 4x4 and 8x8
    # moving a kernel about in memory costs as much as its multiply-adds.
    rows = _widen_taps(weight.permute(1, 2, 3, 0), dim=1)  # (I, 4, 3, O)
    return _widen_taps(rows, dim=2).permute(0, 3, 1, 2)  # (I, O, 4, 4)


def _widen_taps(taps: torch.Tensor, dim: int) -> torch.Tensor:
    w0, w1, w2 = taps.unbind(dim)
    return torch.stack((w2, w1 + w2, w0 + w1, w0), dim)


def relu() -> nn.Module:
    """The generators' activation."""
    return nn.ReLU(inplace=True)


def leaky_relu() -> nn.Module:
    """The discriminators' activation, slope 0.2."""
    return nn.LeakyReLU(LEAKY_SLOPE, inplace=True)


def conv_bn(in_dim: int, out_dim: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """Convolution and BatchNorm: (N, in_dim, H, W) -> (N, out_dim, H / stride, W / stride)."""
    return nn.Sequential(Conv(in_dim, out_dim, kernel_size, stride), nn.BatchNorm2d(out_dim))


def upsample_conv_bn(in_dim: int, out_dim: int, upsample: type[UpsampleConv | Deconv] = UpsampleConv) -> nn.Sequential:
    """Up-sampling convolution and BatchNorm: (N, in_dim, H, W) -> (N, out_dim, 2H, 2W)."""
    return nn.Sequential(upsample(in_dim, out_dim), nn.BatchNorm2d(out_dim))


class ResidualBlock(nn.Module):
    """Stage-II's residual block: two 3x3 convolutions at full width, added to the input, then ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(conv_bn(channels, channels, 3), relu(), conv_bn(channels, channels, 3))
        self.activation = relu()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W) -> the same shape."""
        return self.activation(x + self.residual(x))


class BottleneckResidualBlock(nn.Module):
    """1x1 and 3x3 convolutions at a quarter of the width, 3x3 back to all of it, added to the input, then activated.

    From Reed et al., "Generative Adversarial Text to Image Synthesis", 2016; kept by StackGAN's TensorFlow release.
    """

    def __init__(self, channels: int, activation: Callable[[], nn.Module]) -> None:
        """Make the block.

        Args:
            channels: width in and out, a multiple of 4.
            activation: makes the activation, `relu` or `leaky_relu`.
        """
        super().__init__()
        narrow_dim = channels // 4
        self.residual = nn.Sequential(
            conv_bn(channels, narrow_dim, 1),
            activation(),
            conv_bn(narrow_dim, narrow_dim, 3),
            activation(),
            conv_bn(narrow_dim, channels, 3),
        )
        self.activation = activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W) -> the same shape."""
        return self.activation(x + self.residual(x))


class ConditioningCode(NamedTuple):
    """What a generator is told of the text, each (N, condition_dim).

    Attributes:
        c: the conditioning code, mu + exp(logvar / 2) * eps.
        mu: its mean.
        logvar: log of its variance; None where augmentation is off, so c is mu and there is no KL term.
    """

    c: torch.Tensor
    mu: torch.Tensor
    logvar: torch.Tensor | None


class ConditioningAugmentation(nn.Module):
    """Draws the conditioning code from N(mu(text), diag sigma(text)^2); paper section 3.2.

    The paper's layer is linear. The published codes put an activation on it, which hinders a small sigma (leaky_relu on
    log sigma) or forbids it (relu on log sigma^2: sigma is never below 1).
    """

    def __init__(
        self,
        embedding_dim: int,
        condition_dim: int,
        *,
        augment: bool = True,
        spread: Literal["log_variance", "log_sigma"] = "log_variance",
        activation: Literal["none", "leaky_relu", "relu"] = "none",
        truncated_noise: bool = False,
    ) -> None:
        """Make the layer.

        Args:
            embedding_dim: width of the text embedding.
            condition_dim: width of the code, N_g in the paper.
            augment: False makes c = mu and drops the second half: the ablation "no CA" of the paper's Table 2.
            spread: what the second half means.
            activation: on both halves.
            truncated_noise: cut the noise at two standard deviations, as TensorFlow's truncated normal.
        """
        super().__init__()
        self.augment = augment
        self.truncated_noise = truncated_noise
        self.logvar_scale = 2.0 if spread == "log_sigma" else 1.0
        self.heads = nn.Linear(embedding_dim, 2 * condition_dim if augment else condition_dim)
        self.activation = {"none": nn.Identity, "leaky_relu": leaky_relu, "relu": relu}[activation]()

    def forward(self, text_embedding: torch.Tensor, eps: torch.Tensor) -> ConditioningCode:
        """Sample the code with the noise given.

        Args:
            text_embedding: (N, embedding_dim).
            eps: (N, condition_dim) from N(0, I). The result has its dtype, so under autocast exp and KL stay float32.
        """
        statistics = self.activation(self.heads(text_embedding)).to(eps.dtype)
        if not self.augment:
            return ConditioningCode(statistics, statistics, None)
        mu, spread = statistics.chunk(2, dim=1)
        logvar = self.logvar_scale * spread
        eps = cut_at_two(eps) if self.truncated_noise else eps
        return ConditioningCode(mu + torch.exp(0.5 * logvar) * eps, mu, logvar)

    def mean(self, text_embedding: torch.Tensor) -> torch.Tensor:
        """(N, embedding_dim) -> (N, condition_dim): mu alone."""
        statistics = self.activation(self.heads(text_embedding))
        return statistics.chunk(2, dim=1)[0] if self.augment else statistics


def cut_at_two(normal: torch.Tensor) -> torch.Tensor:
    """Turn standard normal numbers into numbers of the normal distribution cut at two, keeping their order."""
    root2 = math.sqrt(2)
    return root2 * torch.erfinv(torch.erf(normal / root2) * math.erf(root2))


def compress_text(text_dim: int, condition_dim: int, *, normalise: bool) -> nn.Sequential:
    """The discriminators' own layer on the text: (N, text_dim) -> (N, condition_dim)."""
    layers = [nn.Linear(text_dim, condition_dim), *([nn.BatchNorm1d(condition_dim)] if normalise else [])]
    return nn.Sequential(*layers, leaky_relu())


class TextMatch(nn.Module):
    """The discriminators' head: the text, compressed and repeated over the 4x4 map, meets the image features."""

    def __init__(
        self,
        feature_dim: int,
        text_dim: int,
        condition_dim: int,
        *,
        compress: bool = True,
        normalise: bool = False,
        kernel_size: int = 1,
        logit_bias: bool = False,
    ) -> None:
        """Make the head.

        Args:
            feature_dim: channels of the image features.
            text_dim: width of the text; condition_dim where it comes compressed.
            condition_dim: width of the compressed text, N_d in the paper.
            compress: whether it is compressed here.
            normalise: whether BatchNorm follows that, as in GAN-INT-CLS.
            kernel_size: of the convolution over both, 1 or 3.
            logit_bias: of the last layer.
        """
        super().__init__()
        self.compress = compress_text(text_dim, condition_dim, normalise=normalise) if compress else nn.Identity()
        self.join = nn.Sequential(conv_bn(feature_dim + condition_dim, feature_dim, kernel_size), leaky_relu())
        self.to_logit = nn.Conv2d(feature_dim, 1, kernel_size=4, bias=logit_bias)

    def forward(self, features: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """(N, feature_dim, 4, 4), (N, text_dim) -> (N,)."""
        assert features.shape[2:] == (4, 4), f"features are {tuple(features.shape)}: images of another size than D's?"
        joint = self.join(concat_code(features, self.compress(text)))  # (N, feature_dim, 4, 4)
        return self.to_logit(joint).flatten()  # (N,)


def concat_code(features: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W), (N, D) -> (N, C + D, H, W): the code repeated at every place."""
    # Joined as height, width, channel: torch.cat of the views as they are would fall out of channels_last.
    last = features.permute(0, 2, 3, 1)  # (N, H, W, C)
    tiled = code.to(features.dtype)[:, None, None, :].expand(-1, *last.shape[1:3], -1)  # (N, H, W, D)
    return torch.cat((last, tiled), dim=3).permute(0, 3, 1, 2)  # (N, C + D, H, W)


class SpectralNorm(nn.Module):
    """Divides a weight by its largest singular value (Miyato et al., ICLR 2018), one power iteration a call."""

    u: torch.Tensor

    def __init__(self, weight: torch.Tensor, generator: torch.Generator) -> None:
        """Begin with a random vector on the output side of `weight`."""
        super().__init__()
        self.register_buffer("u", F.normalize(torch.randn(len(weight), generator=generator), dim=0))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """(O, ...) -> the same shape, of spectral norm 1 once the iteration has settled."""
        with torch.autocast("cuda" if weight.is_cuda else "cpu", enabled=False):
            matrix = weight.flatten(1)
            with torch.no_grad():
                v = F.normalize(matrix.T @ self.u, dim=0)
                u = F.normalize(matrix @ v, dim=0)
                if self.training:
                    self.u.copy_(u)
            return weight / (u @ matrix @ v)


def normalise_spectrally(module: nn.Module, generator: torch.Generator) -> None:
    """Put a SpectralNorm on every convolution and linear layer; after `initialise`."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight.detach(), generator))


def initialise(module: nn.Module, generator: torch.Generator, *, truncated: bool = True) -> None:
    """Overwrite every weight as the published code begins, in the order the layers were defined.

    Convolutions: normal of sd 0.02, cut at two sd (TensorFlow's truncated normal; an sd of 0.0176 is left) or not (the
    PyTorch release). Linear: normal of sd 0.02, bias 0. BatchNorm: gamma from N(1, 0.02), beta 0, running statistics 0
    and 1. A convolution's bias: 0.

    Args:
        module: a network on the generator's device, before it is moved or changes its memory format, so that the same
            seed gives the same weights everywhere.
        generator: the only source of randomness.
        truncated: cut the convolutions' distribution.
    """
    cut = 2 * WEIGHT_STD
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            if truncated:
                nn.init.trunc_normal_(layer.weight, 0.0, WEIGHT_STD, -cut, cut, generator=generator)
            else:
                nn.init.normal_(layer.weight, 0.0, WEIGHT_STD, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, WEIGHT_STD, generator=generator)
            if layer.bias is not None:  # pyright: ignore[reportUnnecessaryComparison] - None where there is none
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.reset_running_stats()
            nn.init.normal_(layer.weight, 1.0, WEIGHT_STD, generator=generator)
            nn.init.zeros_(layer.bias)
