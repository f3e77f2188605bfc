"""The four networks of StackGAN: generator and discriminator of Stage-I (64x64) and of Stage-II (256x256).

Zhang et al., ICCV 2017, sections 3.3 and 3.4. Layers and widths are those of the TensorFlow release, which made the
paper's CUB and Oxford-102 figures, with its known mistakes mended: D's third convolution has the activation that was
forgotten, the heads of conditioning augmentation are linear, its noise is not truncated, D returns logits.

Noise is an argument of every forward. Images are (N, 3, H, W) in [-1, 1]; text embeddings (N, embedding_dim).
"""

from typing import NamedTuple

import torch
from torch import nn

from pipeline.gan.layers import (
    BottleneckResidualBlock,
    ConditioningAugmentation,
    ResidualBlock,
    TextMatch,
    UpsampleConv,
    concat_code,
    conv,
    conv_bn,
    leaky_relu,
    relu,
    upsample_conv_bn,
)


class GeneratorOutput(NamedTuple):
    """What a generator returns.

    Attributes:
        images: (N, 3, H, W) in [-1, 1].
        mu: (N, condition_dim) mean of the conditioning code.
        logvar: (N, condition_dim) log of its variance, None where conditioning augmentation is off.
    """

    images: torch.Tensor
    mu: torch.Tensor
    logvar: torch.Tensor | None


class Stage1Generator(nn.Module):
    """Text and noise to a 64x64 sketch; paper section 3.3."""

    def __init__(
        self,
        embedding_dim: int = 1024,
        condition_dim: int = 128,
        z_dim: int = 100,
        gf_dim: int = 128,
        *,
        conditioning_augmentation: bool = True,
    ) -> None:
        """Make the network; 14,264,192 parameters at the defaults.

        Args:
            embedding_dim: width of the text embedding.
            condition_dim: width of the conditioning code c, N_g in the paper.
            z_dim: width of the noise z.
            gf_dim: channels at 32x32; 8 times as many at 4x4.
            conditioning_augmentation: False feeds mu itself, without noise.
        """
        super().__init__()
        self.seed_dim = 8 * gf_dim
        self.conditioning = ConditioningAugmentation(embedding_dim, condition_dim, augment=conditioning_augmentation)
        # BatchNorm over each of the 16 * seed_dim features, not over channels, and no activation: as published.
        self.project = nn.Sequential(
            nn.Linear(condition_dim + z_dim, 16 * self.seed_dim), nn.BatchNorm1d(16 * self.seed_dim)
        )
        self.upsample = nn.Sequential(
            BottleneckResidualBlock(8 * gf_dim, relu),
            upsample_conv_bn(8 * gf_dim, 4 * gf_dim),  # (N, 4 gf, 8, 8)
            BottleneckResidualBlock(4 * gf_dim, relu),
            upsample_conv_bn(4 * gf_dim, 2 * gf_dim),  # (N, 2 gf, 16, 16)
            relu(),
            upsample_conv_bn(2 * gf_dim, gf_dim),  # (N, gf, 32, 32)
            relu(),
        )
        self.to_image = nn.Sequential(UpsampleConv(gf_dim, 3), nn.Tanh())

    def forward(self, text_embedding: torch.Tensor, z: torch.Tensor, eps: torch.Tensor) -> GeneratorOutput:
        """Generate 64x64 images.

        Args:
            text_embedding: (N, embedding_dim).
            z: (N, z_dim) from N(0, I).
            eps: (N, condition_dim) from N(0, I), the noise of conditioning augmentation.
        """
        code = self.conditioning(text_embedding, eps)
        seed = self.project(torch.cat((code.c, z), dim=1))  # (N, 16 * 8 gf)
        # Read as height, width, channel, which is channels_last already and copies nothing.
        seed = seed.view(-1, 4, 4, self.seed_dim).permute(0, 3, 1, 2)  # (N, 8 gf, 4, 4)
        images = self.to_image(self.upsample(seed))  # (N, 3, 64, 64)
        return GeneratorOutput(images, code.mu, code.logvar)


class Stage2Generator(nn.Module):
    """A Stage-I image and the text again to 256x256; paper section 3.4. It takes no z: the noise is in the sketch."""

    def __init__(
        self,
        embedding_dim: int = 1024,
        condition_dim: int = 128,
        gf_dim: int = 128,
        num_residual_blocks: int = 4,
        *,
        conditioning_augmentation: bool = True,
    ) -> None:
        """Make the network; 26,290,080 parameters at the defaults.

        Args:
            embedding_dim: width of the text embedding.
            condition_dim: width of the conditioning code c.
            gf_dim: channels of the encoder at 64x64, a multiple of 4; 4 times as many in the residual blocks.
            num_residual_blocks: at 16x16.
            conditioning_augmentation: False feeds mu itself, without noise.

        Raises:
            ValueError: gf_dim is not a multiple of 4.
        """
        super().__init__()
        if gf_dim % 4:
            raise ValueError(f"gf_dim is {gf_dim}; Stage-II ends at gf_dim / 4 channels, so take a multiple of 4")
        self.conditioning = ConditioningAugmentation(embedding_dim, condition_dim, augment=conditioning_augmentation)
        self.encode = nn.Sequential(
            conv(3, gf_dim, 3),  # (N, gf, 64, 64)
            relu(),
            conv_bn(gf_dim, 2 * gf_dim, 4, stride=2),  # (N, 2 gf, 32, 32)
            relu(),
            conv_bn(2 * gf_dim, 4 * gf_dim, 4, stride=2),  # (N, 4 gf, 16, 16)
            relu(),
        )
        self.join = nn.Sequential(conv_bn(4 * gf_dim + condition_dim, 4 * gf_dim, 3), relu())
        self.residual = nn.Sequential(*(ResidualBlock(4 * gf_dim) for _ in range(num_residual_blocks)))
        self.upsample = nn.Sequential(
            upsample_conv_bn(4 * gf_dim, 2 * gf_dim),  # (N, 2 gf, 32, 32)
            relu(),
            upsample_conv_bn(2 * gf_dim, gf_dim),  # (N, gf, 64, 64)
            relu(),
            upsample_conv_bn(gf_dim, gf_dim // 2),  # (N, gf / 2, 128, 128)
            relu(),
            upsample_conv_bn(gf_dim // 2, gf_dim // 4),  # (N, gf / 4, 256, 256)
            relu(),
        )
        self.to_image = nn.Sequential(conv(gf_dim // 4, 3, 3), nn.Tanh())

    def forward(self, stage1_images: torch.Tensor, text_embedding: torch.Tensor, eps: torch.Tensor) -> GeneratorOutput:
        """Generate 256x256 images.

        Args:
            stage1_images: (N, 3, 64, 64) in [-1, 1], generated by Stage-I from the same text.
            text_embedding: (N, embedding_dim).
            eps: (N, condition_dim) from N(0, I), drawn apart from Stage-I's.
        """
        code = self.conditioning(text_embedding, eps)
        joint = self.join(concat_code(self.encode(stage1_images), code.c))  # (N, 4 gf, 16, 16)
        images = self.to_image(self.upsample(self.residual(joint)))  # (N, 3, 256, 256)
        return GeneratorOutput(images, code.mu, code.logvar)


class Stage1Discriminator(nn.Module):
    """Does a 64x64 image look real and match its text; paper section 3.3."""

    def __init__(self, embedding_dim: int = 1024, condition_dim: int = 128, df_dim: int = 64) -> None:
        """Make the network; 4,029,824 parameters at the defaults.

        Args:
            embedding_dim: width of the text embedding.
            condition_dim: width the text is compressed to, N_d in the paper.
            df_dim: channels at 32x32; 8 times as many at 4x4.
        """
        super().__init__()
        self.downsample = nn.Sequential(
            conv(3, df_dim, 4, stride=2),  # (N, df, 32, 32)
            leaky_relu(),
            conv_bn(df_dim, 2 * df_dim, 4, stride=2),  # (N, 2 df, 16, 16)
            leaky_relu(),
            conv_bn(2 * df_dim, 4 * df_dim, 4, stride=2),  # (N, 4 df, 8, 8)
            leaky_relu(),
            conv_bn(4 * df_dim, 8 * df_dim, 4, stride=2),  # (N, 8 df, 4, 4)
            BottleneckResidualBlock(8 * df_dim, leaky_relu),
        )
        self.match = TextMatch(8 * df_dim, embedding_dim, condition_dim)

    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, 64, 64) in [-1, 1] -> (N, 8 df, 4, 4), free of the text: one pass serves real and wrong pairs."""
        return self.downsample(images)

    def logits(self, features: torch.Tensor, text_embedding: torch.Tensor) -> torch.Tensor:
        """(N, 8 df, 4, 4), (N, embedding_dim) -> (N,): above 0 where D takes the pair for real and matching."""
        return self.match(features, text_embedding)

    def forward(self, images: torch.Tensor, text_embedding: torch.Tensor) -> torch.Tensor:
        """(N, 3, 64, 64) in [-1, 1], (N, embedding_dim) -> logits (N,)."""
        return self.logits(self.image_features(images), text_embedding)


class Stage2Discriminator(nn.Module):
    """Does a 256x256 image look real and match its text; paper section 3.4."""

    def __init__(self, embedding_dim: int = 1024, condition_dim: int = 128, df_dim: int = 64) -> None:
        """Make the network; 48,603,520 parameters at the defaults.

        Args:
            embedding_dim: width of the text embedding.
            condition_dim: width the text is compressed to, N_d in the paper.
            df_dim: channels at 128x128; 32 times as many at 4x4 before they are reduced to 8 times.
        """
        super().__init__()
        self.downsample = nn.Sequential(
            conv(3, df_dim, 4, stride=2),  # (N, df, 128, 128)
            leaky_relu(),
            conv_bn(df_dim, 2 * df_dim, 4, stride=2),  # (N, 2 df, 64, 64)
            leaky_relu(),
            conv_bn(2 * df_dim, 4 * df_dim, 4, stride=2),  # (N, 4 df, 32, 32)
            leaky_relu(),
            conv_bn(4 * df_dim, 8 * df_dim, 4, stride=2),  # (N, 8 df, 16, 16)
            leaky_relu(),
            conv_bn(8 * df_dim, 16 * df_dim, 4, stride=2),  # (N, 16 df, 8, 8)
            leaky_relu(),
            conv_bn(16 * df_dim, 32 * df_dim, 4, stride=2),  # (N, 32 df, 4, 4)
            leaky_relu(),
            conv_bn(32 * df_dim, 16 * df_dim, 1),  # (N, 16 df, 4, 4)
            leaky_relu(),
            conv_bn(16 * df_dim, 8 * df_dim, 1),  # (N, 8 df, 4, 4)
            BottleneckResidualBlock(8 * df_dim, leaky_relu),
        )
        self.match = TextMatch(8 * df_dim, embedding_dim, condition_dim)

    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, 256, 256) in [-1, 1] -> (N, 8 df, 4, 4), free of the text: one pass serves real and wrong pairs."""
        return self.downsample(images)

    def logits(self, features: torch.Tensor, text_embedding: torch.Tensor) -> torch.Tensor:
        """(N, 8 df, 4, 4), (N, embedding_dim) -> (N,): above 0 where D takes the pair for real and matching."""
        return self.match(features, text_embedding)

    def forward(self, images: torch.Tensor, text_embedding: torch.Tensor) -> torch.Tensor:
        """(N, 3, 256, 256) in [-1, 1], (N, embedding_dim) -> logits (N,)."""
        return self.logits(self.image_features(images), text_embedding)
