"""What differs between Stage-I and Stage-II, in one place: which networks, what noise, which size, which snapshots.

models/stage1/ holds `generator` and `discriminator`; models/stage2/ holds these of Stage-II and a copy of the frozen
`stage1_generator`, so that either folder alone can paint. Each snapshot names the text encoder of its embeddings.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.data.shards import LOAD_SIZES
from pipeline.data.snapshots import Snapshot, load_snapshot, save_snapshot
from pipeline.data.tables import EncoderId
from pipeline.gan.layers import initialise
from pipeline.gan.networks import (
    GeneratorOutput,
    Stage1Discriminator,
    Stage1Generator,
    Stage2Discriminator,
    Stage2Generator,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkDims:
    """The widths both stages are built with."""

    embedding_dim: int
    condition_dim: int
    z_dim: int
    gf_dim: int
    df_dim: int
    num_residual_blocks: int
    conditioning_augmentation: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """The networks of one stage. For Stage-II, `stage1_generator` is frozen, in evaluation mode."""

    dims: NetworkDims
    generator: Stage1Generator | Stage2Generator
    discriminator: Stage1Discriminator | Stage2Discriminator
    stage1_generator: Stage1Generator | None
    encoder: EncoderId | None = None  # of the embeddings it is trained on; None: not trained, or not known

    @property
    def image_size(self) -> int:
        """Return the side of the pictures, 64 or 256."""
        return 64 if self.stage1_generator is None else 256

    @property
    def load_size(self) -> int:
        """Return the side of the pictures that random crops are taken from."""
        return LOAD_SIZES[self.image_size]

    @property
    def noise_dim(self) -> int:
        """Return how many normal numbers a picture takes: z and eps, and for Stage-II an eps of its own."""
        num_codes = 1 if self.stage1_generator is None else 2
        return self.dims.z_dim + num_codes * self.dims.condition_dim

    def generate(self, text_embedding: Tensor, noise: Tensor) -> GeneratorOutput:
        """Paint.

        Args:
            text_embedding: (N, embedding_dim).
            noise: (N, noise_dim) standard normal.
        """
        z, eps, eps2 = noise.tensor_split((self.dims.z_dim, self.dims.z_dim + self.dims.condition_dim), dim=1)
        if isinstance(self.generator, Stage1Generator):
            return self.generator(text_embedding, z, eps)
        assert self.stage1_generator is not None
        with torch.no_grad():
            sketches = self.stage1_generator(text_embedding, z, eps).images
        return self.generator(sketches, text_embedding, eps2)

    def modules(self) -> list[nn.Module]:
        """List every network."""
        frozen = [] if self.stage1_generator is None else [self.stage1_generator]
        return [self.generator, self.discriminator, *frozen]

    def save(self, models_dir: Path) -> None:
        """Write the snapshots of every network to `models_dir`."""
        config = {**asdict(self.dims), "encoder": self.encoder and self.encoder._asdict()}
        if self.stage1_generator is not None:
            save_snapshot(models_dir, "stage1_generator", self.stage1_generator, config)
        save_snapshot(models_dir, "discriminator", self.discriminator, config)
        save_snapshot(models_dir, "generator", self.generator, config)


def new_stage(
    number: int, dims: NetworkDims, *, seed: int, stage1_dir: Path | None = None, encoder: EncoderId | None = None
) -> Stage:
    """Make a stage's networks, initialised from the seed.

    Args:
        number: 1 or 2.
        dims: widths.
        seed: of the initial weights.
        stage1_dir: for Stage-II, the folder with Stage-I's snapshots; None makes an untrained Stage-I.
        encoder: of the embeddings it will be trained on.

    Raises:
        ValueError: the Stage-I snapshot has other widths.
    """
    generator = torch.Generator().manual_seed(seed)
    stage1 = _stage1_generator(dims)
    initialise(stage1, generator)
    if number == 1:
        stage = Stage(
            dims=dims,
            generator=stage1,
            discriminator=Stage1Discriminator(dims.embedding_dim, dims.condition_dim, dims.df_dim),
            stage1_generator=None,
            encoder=encoder,
        )
    else:
        if stage1_dir is not None:
            _load_frozen(stage1, dims, stage1_dir)
        stage1.eval().requires_grad_(False)
        stage = Stage(
            dims=dims,
            generator=_stage2_generator(dims),
            discriminator=Stage2Discriminator(dims.embedding_dim, dims.condition_dim, dims.df_dim),
            stage1_generator=stage1,
            encoder=encoder,
        )
        initialise(stage.generator, generator)
    initialise(stage.discriminator, generator)
    return stage


def load_stage(models_dir: Path) -> tuple[Stage, str]:
    """Load a stage's generators for sampling, in evaluation mode, and the sha256 of its generator's weights.

    Raises:
        ValueError: a snapshot is missing or altered.
    """
    snapshot = load_snapshot(models_dir, "generator")
    has_stage1 = (models_dir / "stage1_generator.json").is_file()
    stage = _load_generator(2 if has_stage1 else 1, snapshot)
    if stage.stage1_generator is not None:
        stage.stage1_generator.load_state_dict(load_snapshot(models_dir, "stage1_generator").state)
    return stage, snapshot.sha256


def load_stage1_within(stage2_dir: Path) -> tuple[Stage, str]:
    """Load the Stage-I that Stage-II was trained on out of Stage-II's folder, as `load_stage` does."""
    snapshot = load_snapshot(stage2_dir, "stage1_generator")
    return _load_generator(1, snapshot), snapshot.sha256


def _load_generator(number: int, snapshot: Snapshot) -> Stage:
    dims, encoder = _read_config(snapshot.config)
    stage = new_stage(number, dims, seed=0, encoder=encoder)
    stage.generator.load_state_dict(snapshot.state)
    for module in stage.modules():
        module.eval().requires_grad_(False)
    return stage


def _read_config(config: dict[str, Any]) -> tuple[NetworkDims, EncoderId | None]:
    widths = {key: value for key, value in config.items() if key != "encoder"}
    encoder = config.get("encoder")
    return NetworkDims(**widths), encoder and EncoderId(**encoder)


def _stage1_generator(dims: NetworkDims) -> Stage1Generator:
    return Stage1Generator(
        dims.embedding_dim,
        dims.condition_dim,
        dims.z_dim,
        dims.gf_dim,
        conditioning_augmentation=dims.conditioning_augmentation,
    )


def _stage2_generator(dims: NetworkDims) -> Stage2Generator:
    return Stage2Generator(
        dims.embedding_dim,
        dims.condition_dim,
        dims.gf_dim,
        dims.num_residual_blocks,
        conditioning_augmentation=dims.conditioning_augmentation,
    )


def _load_frozen(stage1: Stage1Generator, dims: NetworkDims, stage1_dir: Path) -> None:
    snapshot = load_snapshot(stage1_dir, "generator")
    found, _ = _read_config(snapshot.config)
    for key in ("embedding_dim", "condition_dim", "z_dim", "gf_dim", "conditioning_augmentation"):
        if getattr(found, key) != getattr(dims, key):
            raise ValueError(
                f"{stage1_dir}: Stage-I was trained with {key} = {getattr(found, key)}, Stage-II asks for "
                f"{getattr(dims, key)}; rerun train_stage1 or set the gan section back"
            )
    stage1.load_state_dict(snapshot.state)
