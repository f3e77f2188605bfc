"""The training loop of both stages: plain torch, no Ray, no MLflow.

Runs alone in one process, or in each of several with torch.distributed between them. All state is in the checkpoints,
and order, noise and augmentation are functions of (seed, step): a training that was killed goes on as if it never was.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from pipeline.data.batches import BatchSource, load_training_set
from pipeline.data.files import write_json
from pipeline.data.tables import read_embedding_dim, read_embeddings, read_encoder
from pipeline.data.transforms import PictureTransform
from pipeline.gan.checkpoints import Checkpoint, latest_checkpoint, save_checkpoint
from pipeline.gan.sampling import captioned_grid, paint
from pipeline.gan.stages import NetworkDims, Stage, new_stage
from pipeline.gan.trainer import LOSSES, Trainer, autocast_dtype
from pipeline.gan.workers import averaged, num_workers, rank, values_of_all
from pipeline.params import GanParams, HardwareParams, TrainParams

logger = logging.getLogger(__name__)

GRID_CAPTIONS = 6
GRID_NOISES = 4


class Progress(Protocol):
    """Where a training tells how it goes (see pipeline.tracking)."""

    def log_history(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Take the whole history so far; rows already known are not logged again."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Keep a file that a person opens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """One training: what it reads, its numbers, and where its checkpoints are."""

    stage_number: Literal[1, 2]
    crops_dir: Path
    embeddings_dir: Path
    stage1_dir: Path | None  # Stage-II: the snapshots of the frozen Stage-I
    storage_dir: Path
    gan: GanParams
    train: TrainParams
    hardware: HardwareParams


def train(job: TrainingJob, progress_for: Callable[[int], Progress]) -> None:
    """Train in this process, as one of the workers of torch.distributed where that is set up.

    Args:
        job: the same in every worker.
        progress_for: called with this worker's rank.

    Raises:
        ValueError: inputs or numbers do not fit together.
        FloatingPointError: a loss is no longer finite.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if job.hardware.use_gpu else torch.device("cpu")
    progress = progress_for(rank())

    # Set up data, networks and optimisers.
    stage = new_stage_for(job)
    source = BatchSource(
        load_training_set(job.crops_dir, job.embeddings_dir / "train.parquet", "train", stage.load_size),
        image_size=stage.image_size,
        batch_size=job.train.batch_size,
        captions_averaged=job.gan.captions_averaged,
        seed=job.train.seed,
        rank=rank(),
        num_workers=num_workers(),
        device=device,
        device_data_bytes=job.hardware.device_data_mb * 2**20,
        transform=PictureTransform(job.train.transform) if job.train.transform else None,
    )
    for module in stage.modules():
        module.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - untyped overload
    trainer = new_trainer(job, stage, autocast_dtype(job.hardware.precision, device))

    # Go on from the newest whole checkpoint, the same in every worker.
    step, history = _resume(trainer, job.storage_dir)
    num_steps = job.train.num_epochs * source.steps_per_epoch
    progress.log_history(history)
    if rank() == 0:
        logger.info(
            "stage%d: %d epochs of %d steps, batch %d on %d workers (%s), %s",
            job.stage_number, job.train.num_epochs, source.steps_per_epoch, job.train.batch_size, num_workers(),
            device.type, f"continuing after step {step}" if step else "from the start",
        )  # fmt: skip

    while step < num_steps:
        # Train one epoch.
        epoch = step // source.steps_per_epoch
        trainer.set_learning_rate(job.train.learning_rate * 0.5 ** (epoch // job.train.lr_halving_epochs))
        started, sums = time.perf_counter(), torch.zeros(len(LOSSES), device=device)
        while step < (epoch + 1) * source.steps_per_epoch:
            sums += trainer.step(source.batch(step), source.noise(step, stage.noise_dim))
            step += 1

        # Note how it went; the one moment of an epoch that waits for the device.
        row = _epoch_row(step, epoch + 1, sums / source.steps_per_epoch, trainer.learning_rate)
        images_per_sec = source.steps_per_epoch * job.train.batch_size / (time.perf_counter() - started)
        history.append({**row, "images_per_sec": round(images_per_sec, 2)})
        _require_finite(row, job.storage_dir)
        is_last = step == num_steps
        if rank() != 0:
            continue

        # Keep what a crash must not lose, then tell about it.
        if is_last or (epoch + 1) % job.train.checkpoint_every_epochs == 0:
            checkpoint = Checkpoint(step=step, tensors=trainer.tensors(), history=history)
            save_checkpoint(job.storage_dir, checkpoint, _notes(job))
            progress.log_history(history)
        if is_last or (epoch + 1) % job.train.sample_every_epochs == 0:
            progress.log_artifact(_write_grid(job, stage, epoch + 1), "grids")
        _say(job, history[-1], started)


def export(job: TrainingJob, models_dir: Path, report_path: Path, history_path: Path) -> None:
    """Write the snapshots, the report and the curves of a finished training out of its last checkpoint."""
    stage = new_stage_for(job)
    trainer = new_trainer(job, stage, None)
    checkpoint = latest_checkpoint(job.storage_dir)
    if checkpoint is None:
        raise ValueError(f"{job.storage_dir} holds no whole checkpoint; rerun the training")
    trainer.load_tensors(checkpoint.tensors)
    stage.save(models_dir)
    columns = ["step", "epoch", *LOSSES, "learning_rate"]
    lines = [",".join(columns), *(",".join(f"{row[name]:.6g}" for name in columns) for row in checkpoint.history)]
    history_path.parent.mkdir(parents=True, exist_ok=True)
    history_path.write_text("\n".join(lines) + "\n")
    report = {
        "stage": job.stage_number,
        "num_steps": checkpoint.step,
        "images_seen": checkpoint.step * job.train.batch_size,
        "num_parameters": {
            "generator": sum(parameter.numel() for parameter in stage.generator.parameters()),
            "discriminator": sum(parameter.numel() for parameter in stage.discriminator.parameters()),
        },
        "last_epoch": {name: round(checkpoint.history[-1][name], 6) for name in LOSSES},
    }
    write_json(report_path, report)


def new_trainer(job: TrainingJob, stage: Stage, autocast: torch.dtype | None) -> Trainer:
    """Set up a job's optimisers around its networks."""
    return Trainer(stage, kl_weight=job.gan.kl_weight, augment=job.train.differentiable_augmentation, autocast=autocast)


def new_stage_for(job: TrainingJob) -> Stage:
    """Make the networks of a job; the embeddings' metadata says how long an embedding is, and what made it."""
    embeddings_path = job.embeddings_dir / "train.parquet"
    dims = NetworkDims(
        embedding_dim=read_embedding_dim(embeddings_path),
        condition_dim=job.gan.condition_dim,
        z_dim=job.gan.z_dim,
        gf_dim=job.gan.generator_dim,
        df_dim=job.gan.discriminator_dim,
        num_residual_blocks=job.gan.num_residual_blocks,
        conditioning_augmentation=job.gan.conditioning_augmentation,
    )
    return new_stage(
        job.stage_number,
        dims,
        seed=job.train.seed,
        stage1_dir=job.stage1_dir,
        encoder=read_encoder(embeddings_path),
    )


def _resume(trainer: Trainer, storage_dir: Path) -> tuple[int, list[dict[str, float]]]:
    """Load the newest whole checkpoint into every worker; return its step and history, or 0 and none."""
    checkpoint = latest_checkpoint(storage_dir)
    step = checkpoint.step if checkpoint else 0
    steps = values_of_all(step)
    if len(steps) > 1:
        raise ValueError(f"{storage_dir}: the workers see checkpoints of steps {sorted(steps)}; is it a shared folder?")
    if checkpoint is None:
        return 0, []
    trainer.load_tensors(checkpoint.tensors)
    if rank() == 0:
        logger.info("continuing from the checkpoint of step %d in %s", step, storage_dir)
    return step, checkpoint.history


def _epoch_row(step: int, epoch: int, means: Tensor, learning_rate: float) -> dict[str, float]:
    """Return the epoch's row of the history, averaged over the workers."""
    values = dict(zip(LOSSES, averaged(means).tolist(), strict=True))
    return {"step": step, "epoch": epoch, **values, "learning_rate": learning_rate}


def _require_finite(row: Mapping[str, float], storage_dir: Path) -> None:
    for key, value in row.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{key} is {value} in epoch {row['epoch']:.0f}; the checkpoints before it are in {storage_dir}. "
                "Lower the learning rate, or set hardware.precision to float32"
            )


def _notes(job: TrainingJob) -> dict[str, object]:
    return {
        "gan": asdict(job.gan),
        "train": asdict(job.train),
        "num_workers": num_workers(),
        "torch": torch.__version__,
    }


def _write_grid(job: TrainingJob, stage: Stage, epoch: int) -> Path:
    """Paint the first captions of test pictures spread over the split, several noises each, the same in every grid."""
    embeddings = read_embeddings(job.embeddings_dir / "test.parquet")
    num_images = len(embeddings.image_ids)
    num_captions = min(GRID_CAPTIONS, num_images)
    chosen = [index * num_images // num_captions for index in range(num_captions)]
    captions = [embeddings.captions[index][0] for index in chosen]
    texts = torch.tensor(embeddings.vectors[chosen, 0]).repeat_interleave(GRID_NOISES, dim=0)
    images = paint(stage, texts, seeds=[noise for _ in chosen for noise in range(GRID_NOISES)])
    path = job.storage_dir / "grids" / f"epoch_{epoch:05d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    captioned_grid(images.reshape(num_captions, GRID_NOISES, *images.shape[1:]), captions).save(path)
    return path


def _say(job: TrainingJob, row: Mapping[str, float], started: float) -> None:
    """Print one line of progress."""
    left = (job.train.num_epochs - row["epoch"]) * (time.perf_counter() - started)
    logger.info(
        "stage%d epoch %d/%d  d_loss %.3f  g_loss %.3f  kl %.3f  %.1f images/s  %d:%02d left",
        job.stage_number, row["epoch"], job.train.num_epochs, row["d_loss"], row["g_loss"], row["kl"],
        row["images_per_sec"], left // 60, left % 60,
    )  # fmt: skip
