"""One training as a job: what it reads, its numbers, its networks, and whether it is possible at all."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

import torch

from pipeline.data.batches import Batch
from pipeline.data.tables import read_embedding_dim, read_encoder
from pipeline.data.transforms import PictureTransform
from pipeline.gan.architecture import architecture_of
from pipeline.gan.memory import free_bytes, require_fitting, step_memory
from pipeline.gan.stages import Stage, new_stage
from pipeline.gan.synchronised_norm import synchronise
from pipeline.gan.trainer import Trainer
from pipeline.gan.workers import num_workers
from pipeline.params import GanParams, HardwareParams, TrainParams

# What may differ between a checkpoint and the training that goes on from it: how long, and what is kept on the way.
FREE_PARAMS = ("num_epochs", "checkpoint_every_epochs", "sample_every_epochs")
# Keys of section gan that are Stage-II's alone, with the value that a Stage-I's snapshot and checkpoints hold for them.
# They are no params of train_stage1 in dvc.yaml: systems that differ in these alone share one Stage-I.
STAGE2_KEYS: Mapping[str, Any] = {
    "stage2_size": "none",
    "text_twice": True,
    "num_residual_blocks": 1,
    "unconditional_head": False,
    "stage1_batch_statistics": False,
}


def stage1_part(gan: GanParams) -> GanParams:
    """Return the section without what is Stage-II's own."""
    return replace(gan, **STAGE2_KEYS)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """One training: what it reads, its numbers, and where its checkpoints are."""

    stage_number: Literal[1, 2]
    crops_dir: Path
    embeddings_dir: Path
    stage1_dir: Path | None  # Stage-II: the snapshots of the frozen Stage-I
    storage_dir: Path  # checkpoints and grids
    gan: GanParams
    train: TrainParams
    hardware: HardwareParams
    provenance: Mapping[str, object]  # code version and hashes of what it reads, for the checkpoints' manifests
    bucket: str | None = None  # s3://..., where checkpoints are kept if storage_dir is a machine's own disk

    @property
    def section(self) -> str:
        """Return its section of params.yaml."""
        return f"train_stage{self.stage_number}"

    @property
    def reads(self) -> list[Path]:
        """List the files and folders that a worker reads."""
        own = [self.crops_dir / "images.parquet", self.crops_dir / "train", self.embeddings_dir]
        return own if self.stage1_dir is None else [*own, self.stage1_dir]

    @property
    def has_nothing_to_train(self) -> bool:
        """Return whether this is the Stage-II of a GAN of one stage."""
        return self.stage_number == 2 and self.gan.stage2_size == "none"

    def require_possible(self) -> None:
        """Check what can be checked before anything is read: on the workers, and before there are any.

        Raises:
            ValueError: the batch cannot be shared out, the pictures' transform is none, or the storage folder cannot be
                written.
        """
        if self.has_nothing_to_train:
            return
        batch_size, accumulation = self.train.batch_size, self.train.accumulation
        # A training that may go on with fewer workers must be able to with each number of them, not only today's.
        for workers in sorted({num_workers(), *range(self.hardware.fewest_workers, self.hardware.num_workers + 1)}):
            if batch_size % (workers * accumulation):
                parts = f" x {accumulation} parts ({self.section}.accumulation)" if accumulation > 1 else ""
                raise ValueError(
                    f"{self.section}.batch_size {batch_size} cannot be shared equally among {workers} workers{parts}; "
                    "take a multiple, or set hardware.num_workers and min_workers to numbers that divide it"
                )
            num_at_once = batch_size // (workers * accumulation)
            if self.gan.interpolation_weight and (num_at_once % 2 or num_at_once < 4):
                raise ValueError(
                    f"{self.section}.batch_size {batch_size} gives each of {workers} workers {num_at_once} at a time; "
                    "gan.interpolation_weight takes them in pairs, and BatchNorm two pairs or more: take a larger "
                    "multiple"
                )
        if self.gan.box_conditioned and self.train.transform:
            raise ValueError(
                f"{self.section}.transform moves pictures and not their boxes; leave it empty ({{}}) where "
                "gan.box_conditioned is true"
            )
        transform_of(self)
        try:
            self.storage_dir.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self.storage_dir):
                pass
        except OSError as error:
            raise ValueError(
                f"{self.storage_dir} cannot be written ({error.strerror}); set RUN_STORAGE to a folder that can"
            ) from None


def transform_of(job: TrainingJob) -> PictureTransform | None:
    """Return what changes each picture, None for nothing.

    Raises:
        ValueError: it is no transform; the message names its key.
    """
    try:
        return PictureTransform(job.train.transform) if job.train.transform else None
    except ValueError as error:
        raise ValueError(f"{job.section}.{error}") from None


def new_stage_for(job: TrainingJob) -> Stage:
    """Make the networks of a job; the embeddings' metadata says how long an embedding is, and what made it."""
    embeddings_path = job.embeddings_dir / "train.parquet"
    stage = new_stage(
        job.stage_number,
        architecture_of(job.gan, read_embedding_dim(embeddings_path)),
        seed=job.train.seed,
        stage1_dir=job.stage1_dir,
        averaged=job.gan.ema_decay > 0,
        encoder=read_encoder(embeddings_path),
    )
    if job.train.synchronised_batchnorm and num_workers() > 1:
        for network in stage.modules():
            synchronise(network)
    return stage


def new_trainer(job: TrainingJob, stage: Stage, autocast: torch.dtype | None) -> Trainer:
    """Set up a job's optimisers around its networks."""
    return Trainer(
        stage,
        job.gan,
        augment=job.train.differentiable_augmentation,
        accumulation=job.train.accumulation,
        autocast=autocast,
        speedups=job.hardware.speedups,
    )


def require_memory(job: TrainingJob, device: torch.device, autocast: torch.dtype | None) -> None:
    """Check that a step fits into what is free, before the networks are made.

    Raises:
        ValueError: it does not; the message says how many pictures would.
    """
    # What the speed-ups spare, a processor needs for Winograd's sums; a GPU does not. Fused Adam knows no meta device.
    speedups = () if device.type == "cpu" else tuple(set(job.hardware.speedups) - {"fused_adam"})
    with torch.device("meta"):
        bare = replace(job, stage1_dir=None, hardware=replace(job.hardware, speedups=speedups))  # no weights
        stage = new_stage_for(bare)
        trainer = new_trainer(bare, stage, None)
        frozen = [network for network in (stage.stage1_generator, stage.average) if network is not None]
        need = step_memory(
            (stage.generator, stage.discriminator),
            frozen,
            (partial(_discriminator_phase, stage, trainer), partial(_generator_phase, stage, trainer)),
            batch_bytes_per_image=4 * (3 * stage.image_size**2 + 2 * stage.architecture.text_dim),
            bfloat16=autocast is not None,
        )
    free = free_bytes(device)
    if free is not None and device.type == "cpu":
        free //= int(os.environ.get("LOCAL_WORLD_SIZE", num_workers()))  # Ray Train's: workers on this machine
    num_at_once = job.train.batch_size // (num_workers() * job.train.accumulation)
    require_fitting(need, num_at_once, free, f"{job.section}.batch_size")


def _empty_batch(stage: Stage, num_images: int) -> tuple[Batch, torch.Tensor]:
    texts = torch.empty(num_images, stage.architecture.text_dim)
    batch = Batch(
        real=torch.empty(num_images, 3, stage.image_size, stage.image_size),
        text_embedding=texts,
        wrong=None,
        wrong_text_embedding=texts,
        augmentation_draws=torch.zeros(3, num_images, 4, device="cpu"),
    )
    return batch, torch.empty(num_images, stage.noise_dim)


def _discriminator_phase(stage: Stage, trainer: Trainer, num_images: int) -> torch.Tensor:
    batch, noise = _empty_batch(stage, num_images)
    fakes, _, loss = trainer.discriminator_phase(batch, noise)
    return trainer.penalised(loss, batch) + fakes.images.sum()  # whose graph is held for G's update


def _generator_phase(stage: Stage, trainer: Trainer, num_images: int) -> torch.Tensor:
    batch, noise = _empty_batch(stage, num_images)
    loss, kl = trainer.generator_phase(batch, noise, noise, None)
    return loss + kl


def binding_params(job: TrainingJob) -> dict[str, object]:
    """Return the params that a checkpoint stands for: another value is another training."""
    train = {key: value for key, value in asdict(job.train).items() if key not in FREE_PARAMS}
    return {"gan": asdict(job.gan), job.section: train}
