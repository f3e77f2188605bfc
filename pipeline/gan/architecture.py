"""What the networks are built from: sizes, widths, and each layer in which the paper and the published codes differ."""

from dataclasses import dataclass, fields
from typing import Literal

from pipeline.data.boxes import BOX_DIM
from pipeline.params import GanParams


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """The numbers of the networks; a snapshot carries them. Those of GanParams are explained there."""

    embedding_dim: int  # of the text embeddings
    stage1_size: int
    stage2_size: int | Literal["none"]
    generator_dim: int
    discriminator_dim: int
    z_dim: int
    condition_dim: int
    conditioning_augmentation: bool
    condition_spread: Literal["log_variance", "log_sigma"]
    condition_activation: Literal["none", "leaky_relu", "relu"]
    truncated_noise: bool
    text_twice: bool
    num_residual_blocks: int
    bottleneck_residuals: bool
    upsampling: Literal["nearest", "deconvolution"]
    sketch_layer: bool
    joint_kernel: Literal[1, 3]
    third_activation: bool
    discriminator_text: Literal["own", "own_normalised", "mu"]
    unconditional_head: bool
    logit_bias: bool
    truncated_weights: bool
    spectral_normalisation: bool
    box_conditioned: bool

    @property
    def text_dim(self) -> int:
        """Return the length of what the networks are told of a picture: its text's embedding, and its box behind it."""
        return self.embedding_dim + (BOX_DIM if self.box_conditioned else 0)


# What a Stage-II asks of the Stage-I that it refines.
STAGE1_FIELDS = (
    "embedding_dim",
    "stage1_size",
    "generator_dim",
    "z_dim",
    "condition_dim",
    "conditioning_augmentation",
    "condition_spread",
    "condition_activation",
    "truncated_noise",
    "bottleneck_residuals",
    "upsampling",
    "sketch_layer",
    "box_conditioned",
)


def architecture_of(gan: GanParams, embedding_dim: int) -> Architecture:
    """Return the networks' part of section `gan`, for embeddings of a length."""
    names = {field.name for field in fields(Architecture)} - {"embedding_dim"}
    return Architecture(embedding_dim=embedding_dim, **{name: getattr(gan, name) for name in names})
