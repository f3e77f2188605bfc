"""The networks of StackGAN: a generator for each stage and the discriminator of both.

Zhang et al., ICCV 2017, sections 3.3 and 3.4. At the values of conf/gan/paper.yaml, layers and widths are those of the
TensorFlow release, which made the paper's CUB and Oxford-102 figures, with its known mistakes mended: D's third
convolution has the activation that was forgotten, the layer of conditioning augmentation is linear, its noise is not
cut. Every way in which the two published codes differ is a switch (see pipeline.gan.architecture). D returns logits.

Noise is an argument of every forward. Images are (N, 3, H, W) in [-1, 1]; text embeddings (N, embedding_dim).
"""

from typing import NamedTuple

import torch
from torch import nn

from pipeline.gan.architecture import Architecture
from pipeline.gan.layers import (
    BottleneckResidualBlock,
    ConditioningAugmentation,
    Conv,
    Deconv,
    ResidualBlock,
    TextMatch,
    UpsampleConv,
    concat_code,
    conv_bn,
    leaky_relu,
    relu,
    upsample_conv_bn,
)

UPSAMPLING: dict[str, type[UpsampleConv | Deconv]] = {"nearest": UpsampleConv, "deconvolution": Deconv}


class GeneratorOutput(NamedTuple):
    """What a generator returns.

    Attributes:
        images: (N, 3, H, W) in [-1, 1].
        mu: (N, condition_dim) mean of the conditioning code, None for a Stage-II that is not given the text.
        logvar: (N, condition_dim) log of its variance, None where conditioning augmentation is off.
    """

    images: torch.Tensor
    mu: torch.Tensor | None
    logvar: torch.Tensor | None


class Stage1Generator(nn.Module):
    """Text and noise to a sketch of 64x64, or larger where there is no Stage-II; paper section 3.3."""

    def __init__(self, architecture: Architecture) -> None:
        """Make the network; 14,264,192 parameters at the paper's values."""
        super().__init__()
        self.seed_dim = dim = 8 * architecture.generator_dim
        bottlenecks = architecture.bottleneck_residuals
        upsample = UPSAMPLING[architecture.upsampling]
        self.conditioning = conditioning_of(architecture)
        # BatchNorm over each of the 16 * seed_dim features, not over channels, as published. It takes a bias away
        # again, so where no published code has one there is none.
        self.project = nn.Sequential(
            nn.Linear(architecture.condition_dim + architecture.z_dim, 16 * dim, bias=bottlenecks),
            nn.BatchNorm1d(16 * dim),
        )
        layers: list[nn.Module] = [BottleneckResidualBlock(dim, relu) if bottlenecks else relu()]
        size = 4
        while size < architecture.stage1_size // 2:
            # (N, 4 gf, 8, 8), (N, 2 gf, 16, 16), (N, gf, 32, 32), ...
            layers.append(upsample_conv_bn(dim, dim // 2, upsample))
            dim, size = dim // 2, 2 * size
            layers.append(BottleneckResidualBlock(dim, relu) if bottlenecks and size == 8 else relu())
        self.upsample = nn.Sequential(*layers)
        if architecture.sketch_layer:
            last = upsample_conv_bn(dim, dim // 2, upsample)
            self.to_image = nn.Sequential(last, relu(), Conv(dim // 2, 3, 3), nn.Tanh())
        else:
            self.to_image = nn.Sequential(upsample(dim, 3), nn.Tanh())

    def forward(self, text_embedding: torch.Tensor, z: torch.Tensor, eps: torch.Tensor) -> GeneratorOutput:
        """Generate images.

        Args:
            text_embedding: (N, embedding_dim).
            z: (N, z_dim) from N(0, I).
            eps: (N, condition_dim) from N(0, I), the noise of conditioning augmentation.
        """
        code = self.conditioning(text_embedding, eps)
        seed = self.project(torch.cat((code.c, z), dim=1))  # (N, 16 * 8 gf)
        # Read as height, width, channel, which is channels_last already and copies nothing.
        seed = seed.view(-1, 4, 4, self.seed_dim).permute(0, 3, 1, 2)  # (N, 8 gf, 4, 4)
        images = self.to_image(self.upsample(seed))  # (N, 3, S, S)
        return GeneratorOutput(images, code.mu, code.logvar)


class Stage2Generator(nn.Module):
    """A Stage-I image and the text again to 256x256 or 128x128; paper section 3.4.

    It takes no z: the noise is in the sketch.
    """

    def __init__(self, architecture: Architecture) -> None:
        """Make the network; 26,290,080 parameters at the paper's values."""
        super().__init__()
        assert architecture.stage2_size != "none"
        gf, joint_dim = architecture.generator_dim, 4 * architecture.generator_dim
        self.conditioning = conditioning_of(architecture) if architecture.text_twice else None
        self.encode = nn.Sequential(
            Conv(3, gf, 3),  # (N, gf, 64, 64)
            relu(),
            conv_bn(gf, 2 * gf, 4, stride=2),  # (N, 2 gf, 32, 32)
            relu(),
            conv_bn(2 * gf, joint_dim, 4, stride=2),  # (N, 4 gf, 16, 16)
            relu(),
        )
        code_dim = architecture.condition_dim if architecture.text_twice else 0
        self.join = nn.Sequential(conv_bn(joint_dim + code_dim, joint_dim, 3), relu())
        self.residual = nn.Sequential(*(ResidualBlock(joint_dim) for _ in range(architecture.num_residual_blocks)))
        layers: list[nn.Module] = []
        dim, size = joint_dim, 16
        while size < architecture.stage2_size:
            layers += [upsample_conv_bn(dim, dim // 2), relu()]  # (N, 2 gf, 32, 32) ... (N, gf / 4, 256, 256)
            dim, size = dim // 2, 2 * size
        self.upsample = nn.Sequential(*layers)
        self.to_image = nn.Sequential(Conv(dim, 3, 3), nn.Tanh())

    def forward(self, stage1_images: torch.Tensor, text_embedding: torch.Tensor, eps: torch.Tensor) -> GeneratorOutput:
        """Generate images.

        Args:
            stage1_images: (N, 3, 64, 64) in [-1, 1], generated by Stage-I from the same text.
            text_embedding: (N, embedding_dim).
            eps: (N, condition_dim) from N(0, I), drawn apart from Stage-I's.
        """
        features = self.encode(stage1_images)  # (N, 4 gf, 16, 16)
        mu = logvar = None
        if self.conditioning is not None:
            c, mu, logvar = self.conditioning(text_embedding, eps)
            features = concat_code(features, c)
        images = self.to_image(self.upsample(self.residual(self.join(features))))  # (N, 3, S, S)
        return GeneratorOutput(images, mu, logvar)


class Discriminator(nn.Module):
    """Does an image look real and match its text; paper sections 3.3 and 3.4."""

    def __init__(self, architecture: Architecture, image_size: int, *, unconditional_head: bool = False) -> None:
        """Make the network; at the paper's values 4,029,824 parameters for 64x64 and 48,603,520 for 256x256.

        Args:
            architecture: widths and switches.
            image_size: 64, 128 or 256.
            unconditional_head: a second last layer that judges images without their text.
        """
        super().__init__()
        df, kernel_size = architecture.discriminator_dim, architecture.joint_kernel
        layers: list[nn.Module] = [Conv(3, df, 4, stride=2), leaky_relu()]  # (N, df, S / 2, S / 2)
        dim, size = df, image_size // 2
        while size > 4:  # to (N, 8 df, 4, 4) for 64x64, (N, 32 df, 4, 4) for 256x256
            layers += [conv_bn(dim, 2 * dim, 4, stride=2), leaky_relu()]
            dim, size = 2 * dim, size // 2
        while dim > 8 * df:
            layers += [conv_bn(dim, dim // 2, kernel_size), leaky_relu()]
            dim //= 2
        if architecture.bottleneck_residuals:
            layers[-1] = BottleneckResidualBlock(dim, leaky_relu)
        if image_size == 64 and not architecture.third_activation:
            layers[5] = nn.Identity()
        self.downsample = nn.Sequential(*layers)  # (N, 8 df, 4, 4)
        self.match = TextMatch(
            dim,
            architecture.embedding_dim,
            architecture.condition_dim,
            compress=architecture.discriminator_text != "mu",
            normalise=architecture.discriminator_text == "own_normalised",
            kernel_size=kernel_size,
            logit_bias=architecture.logit_bias,
        )
        self.alone = nn.Conv2d(dim, 1, kernel_size=4, bias=architecture.logit_bias) if unconditional_head else None

    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) in [-1, 1] -> (N, 8 df, 4, 4), free of the text: one pass serves real and wrong pairs."""
        return self.downsample(images)

    def logits(self, features: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """(N, 8 df, 4, 4), (N, embedding_dim) -> (N,): above 0 where D takes the pair for real and matching.

        Where D does not compress the text itself, `text` is G's mu, (N, condition_dim).
        """
        return self.match(features, text)

    def logits_alone(self, features: torch.Tensor) -> torch.Tensor | None:
        """(N, 8 df, 4, 4) -> (N,): above 0 where D takes the image for real; None without an unconditional head."""
        return None if self.alone is None else self.alone(features).flatten()

    def forward(self, images: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) in [-1, 1], text as for `logits` -> logits (N,)."""
        return self.logits(self.image_features(images), text)


def conditioning_of(architecture: Architecture) -> ConditioningAugmentation:
    """Make a generator's layer that turns text into the conditioning code."""
    return ConditioningAugmentation(
        architecture.embedding_dim,
        architecture.condition_dim,
        augment=architecture.conditioning_augmentation,
        spread=architecture.condition_spread,
        activation=architecture.condition_activation,
        truncated_noise=architecture.truncated_noise,
    )
