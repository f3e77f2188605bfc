"""What differs between Stage-I and Stage-II, in one place: which networks, what noise, which size, which snapshots.

models/stage1/ holds `generator` and `discriminator`; models/stage2/ holds these of Stage-II and a copy of the frozen
`stage1_generator`, so that either folder alone can paint. Each snapshot names the text encoder of its embeddings. Where
a moving average of the generator was kept, it is there as `generator_average`, and pictures are painted with it.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.data.boxes import boxes_in_centres, boxes_of
from pipeline.data.snapshots import Snapshot, load_snapshot, save_snapshot
from pipeline.data.tables import EncoderId
from pipeline.gan.architecture import STAGE1_FIELDS, Architecture
from pipeline.gan.gawwn import BoxDiscriminator, BoxGenerator
from pipeline.gan.layers import initialise, normalise_spectrally
from pipeline.gan.networks import Discriminator, GeneratorOutput, Stage1Generator, Stage2Generator

Generator = Stage1Generator | Stage2Generator | BoxGenerator


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """The networks of one stage. For Stage-II, `stage1_generator` is frozen, in evaluation mode."""

    architecture: Architecture
    generator: Generator
    discriminator: Discriminator | BoxDiscriminator
    stage1_generator: Stage1Generator | None
    average: Generator | None = None  # moving average of the generator
    encoder: EncoderId | None = None  # of the embeddings it is trained on; None: not trained, or not known

    @property
    def image_size(self) -> int:
        """Return the side of the pictures."""
        architecture = self.architecture
        if self.stage1_generator is None:
            return architecture.stage1_size
        assert architecture.stage2_size != "none"
        return architecture.stage2_size

    @property
    def noise_dim(self) -> int:
        """Return how many normal numbers a picture takes: z and eps, and for Stage-II an eps of its own."""
        num_codes = 1 if self.stage1_generator is None else 2
        return self.architecture.z_dim + num_codes * self.architecture.condition_dim

    def generate(self, text_embedding: Tensor, noise: Tensor) -> GeneratorOutput:
        """Paint.

        Args:
            text_embedding: (N, text_dim) (see `Architecture.text_dim`).
            noise: (N, noise_dim) standard normal.
        """
        z_dim = self.architecture.z_dim
        z, eps, eps2 = noise.tensor_split((z_dim, z_dim + self.architecture.condition_dim), dim=1)
        if self.stage1_generator is None:
            return self.generator(text_embedding, z, eps)
        with torch.no_grad():
            sketches = self.stage1_generator(text_embedding, z, eps).images
        return self.generator(sketches, text_embedding, eps2)

    def texts_of(self, embeddings: Tensor, rows: Sequence[dict[str, Any]]) -> Tensor:
        """Return what the networks are told of pictures: their texts, and their boxes where these count.

        Args:
            embeddings: (N, embedding_dim).
            rows: N rows of images.parquet.

        Returns:
            (N, text_dim).
        """
        if not self.architecture.box_conditioned:
            return embeddings
        return torch.cat((embeddings, boxes_in_centres(boxes_of(rows))), dim=1)

    def text_for_discriminator(self, text_embedding: Tensor) -> Tensor:
        """Return what D is told of a text: the embedding, or G's mu of it, (N, condition_dim)."""
        if self.architecture.discriminator_text != "mu":
            return text_embedding
        assert self.generator.conditioning is not None
        return self.generator.conditioning.mean(text_embedding).detach()

    def painting(self) -> "Stage":
        """Return the stage that pictures are painted with: with the moving average where there is one."""
        return replace(self, generator=self.average or self.generator, average=None)

    def modules(self) -> list[nn.Module]:
        """List every network."""
        others = [self.stage1_generator, self.average]
        return [self.generator, self.discriminator, *(module for module in others if module is not None)]

    def save(self, models_dir: Path) -> None:
        """Write the snapshots of every network to `models_dir`."""
        config = {**asdict(self.architecture), "encoder": self.encoder and self.encoder._asdict()}
        if self.stage1_generator is not None:
            save_snapshot(models_dir, "stage1_generator", self.stage1_generator, config)
        if self.average is not None:
            save_snapshot(models_dir, "generator_average", self.average, config)
        save_snapshot(models_dir, "discriminator", self.discriminator, config)
        save_snapshot(models_dir, "generator", self.generator, config)


def new_stage(
    number: int,
    architecture: Architecture,
    *,
    seed: int,
    stage1_dir: Path | None = None,
    averaged: bool = False,
    encoder: EncoderId | None = None,
) -> Stage:
    """Make a stage's networks, initialised from the seed.

    Args:
        number: 1 or 2.
        architecture: of all networks.
        seed: of the initial weights.
        stage1_dir: for Stage-II, the folder with Stage-I's snapshots; None makes an untrained Stage-I.
        averaged: keep a moving average of the generator.
        encoder: of the embeddings it will be trained on.

    Raises:
        ValueError: the Stage-I snapshot is of another architecture.
    """
    random = torch.Generator().manual_seed(seed)
    if architecture.box_conditioned:
        stage1, generator = None, BoxGenerator(architecture)
    else:
        generator = stage1 = Stage1Generator(architecture)
    initialise(generator, random, truncated=architecture.truncated_weights)
    if number == 2:
        assert stage1 is not None, "a box-conditioned GAN has one stage (GanParams)"
        if stage1_dir is not None:
            _load_frozen(stage1, architecture, stage1_dir)
        stage1.eval().requires_grad_(False)
        generator = Stage2Generator(architecture)
        initialise(generator, random, truncated=architecture.truncated_weights)
    return Stage(
        architecture=architecture,
        generator=generator,
        discriminator=_new_discriminator(number, architecture, random),
        stage1_generator=stage1 if number == 2 else None,
        average=deepcopy(generator).requires_grad_(False) if averaged else None,
        encoder=encoder,
    )


def _new_discriminator(
    number: int, architecture: Architecture, random: torch.Generator
) -> Discriminator | BoxDiscriminator:
    size = architecture.stage1_size if number == 1 else architecture.stage2_size
    assert size != "none"
    if architecture.box_conditioned:
        discriminator = BoxDiscriminator(architecture)
    else:
        alone = number == 2 and architecture.unconditional_head
        discriminator = Discriminator(architecture, size, unconditional_head=alone)
    initialise(discriminator, random, truncated=architecture.truncated_weights)
    if architecture.spectral_normalisation:
        normalise_spectrally(discriminator, random)
    return discriminator


def load_stage(models_dir: Path) -> tuple[Stage, str]:
    """Load a stage's generators for sampling, in evaluation mode, and the sha256 of its generator's weights.

    Raises:
        ValueError: a snapshot is missing or altered.
    """
    has_stage1 = (models_dir / "stage1_generator.json").is_file()
    snapshot = _load_painter(models_dir)
    stage = _load_generator(2 if has_stage1 else 1, snapshot)
    if stage.stage1_generator is not None:
        stage.stage1_generator.load_state_dict(load_snapshot(models_dir, "stage1_generator").state)
    return stage, snapshot.sha256


def load_stage1_within(stage2_dir: Path) -> tuple[Stage, str]:
    """Load the Stage-I that Stage-II was trained on out of Stage-II's folder, as `load_stage` does."""
    snapshot = load_snapshot(stage2_dir, "stage1_generator")
    return _load_generator(1, snapshot), snapshot.sha256


def _load_painter(models_dir: Path) -> Snapshot:
    """Load the weights that pictures are painted with."""
    averaged = (models_dir / "generator_average.json").is_file()
    return load_snapshot(models_dir, "generator_average" if averaged else "generator")


def _load_generator(number: int, snapshot: Snapshot) -> Stage:
    architecture, encoder = _read_config(snapshot.config)
    stage = new_stage(number, architecture, seed=0, encoder=encoder)
    stage.generator.load_state_dict(snapshot.state)
    for module in stage.modules():
        module.eval().requires_grad_(False)
    return stage


def _read_config(config: dict[str, Any]) -> tuple[Architecture, EncoderId | None]:
    encoder = config.get("encoder")
    try:
        architecture = Architecture(**{key: value for key, value in config.items() if key != "encoder"})
    except TypeError as error:
        raise ValueError(f"a snapshot is of another version of this code ({error}); rerun `dvc repro`") from None
    return architecture, encoder and EncoderId(**encoder)


def _load_frozen(stage1: Stage1Generator, architecture: Architecture, stage1_dir: Path) -> None:
    snapshot = _load_painter(stage1_dir)
    found, _ = _read_config(snapshot.config)
    for key in STAGE1_FIELDS:
        if getattr(found, key) != getattr(architecture, key):
            raise ValueError(
                f"{stage1_dir}: Stage-I was trained with {key} = {getattr(found, key)}, Stage-II asks for "
                f"{getattr(architecture, key)}; rerun train_stage1 or set the gan section back"
            )
    stage1.load_state_dict(snapshot.state)
