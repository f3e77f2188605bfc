"""The training loop of both stages: plain torch, no Ray, no MLflow.

Runs alone in one process, or in each of several with torch.distributed between them. All state is in the checkpoints,
and order, noise and augmentation are functions of (seed, step): a training that was killed goes on as if it never was.
"""

import logging
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pipeline.allocation import keep_freed_memory
from pipeline.data.batches import BatchSource, load_training_set
from pipeline.gan.checkpoints import Checkpoint, CheckpointWriter, latest_checkpoint, newest_whole
from pipeline.gan.guards import all_finite, require_finite, warnings_of
from pipeline.gan.job import (
    TrainingJob,
    binding_params,
    new_stage_for,
    new_trainer,
    require_memory,
    transform_of,
)
from pipeline.gan.mirror import Mirror
from pipeline.gan.progress import EpochClock, Progress, paint_grid
from pipeline.gan.trainer import LOSSES, Trainer, autocast_dtype
from pipeline.gan.workers import averaged, num_workers, rank, values_of_all

logger = logging.getLogger(__name__)

NUM_CHECKPOINTS_KEPT = 2


def train(job: TrainingJob, progress_for: Callable[[int], Progress]) -> None:
    """Train in this process, as one of the workers of torch.distributed where that is set up.

    Args:
        job: the same in every worker.
        progress_for: called with this worker's rank.

    Raises:
        ValueError: inputs or numbers do not fit together, or to this machine.
        OSError: the last checkpoint could not be written.
        FloatingPointError: a loss or weight is no longer finite.
    """
    if job.has_nothing_to_train:
        return
    job.require_possible()
    device = torch.device("cuda", torch.cuda.current_device()) if job.hardware.use_gpu else torch.device("cpu")
    if device.type == "cpu":
        keep_freed_memory()
    else:
        torch.backends.cudnn.deterministic = True  # its sums in no fixed order are hardly faster
    progress = progress_for(rank())

    # Set up data, networks and optimisers.
    autocast = autocast_dtype(job.hardware.precision, device)
    require_memory(job, device, autocast)
    stage = new_stage_for(job)
    source = BatchSource(
        load_training_set(job.crops_dir, job.embeddings_dir / "train.parquet", "train", stage.image_size),
        image_size=stage.image_size,
        batch_size=job.train.batch_size,
        captions_averaged=job.gan.captions_averaged,
        wrong_pairs=job.gan.wrong_pairs,
        with_boxes=job.gan.box_conditioned,
        seed=job.train.seed,
        rank=rank(),
        num_workers=num_workers(),
        device=device,
        device_data_bytes=job.hardware.device_data_mb * 2**20,
        transform=transform_of(job),
    )
    for module in stage.modules():
        module.to(device)
    trainer = new_trainer(job, stage, autocast)

    # Go on from the newest whole checkpoint, the same in every worker.
    step, history = _resume(trainer, job)
    num_steps = job.train.num_epochs * source.steps_per_epoch
    progress.log_history(history)
    if rank() == 0:
        logger.info(
            "stage%d: %d epochs of %d steps, batch %d on %d workers (%s, %s), %s",
            job.stage_number, job.train.num_epochs, source.steps_per_epoch, job.train.batch_size, num_workers(),
            device.type, "float32" if autocast is None else "bfloat16",
            f"continuing after step {step}" if step else "from the start",
        )  # fmt: skip

    publish = partial(Mirror(job.bucket).push, num_kept=NUM_CHECKPOINTS_KEPT) if job.bucket else None
    with CheckpointWriter(
        job.storage_dir, params=binding_params(job), num_kept=NUM_CHECKPOINTS_KEPT, publish=publish
    ) as writer:
        while step < num_steps:
            # Train one epoch.
            epoch = step // source.steps_per_epoch
            trainer.set_learning_rate(job.train.learning_rate * 0.5 ** (epoch // job.train.lr_halving_epochs))
            clock = EpochClock(job, epoch + 1, source.steps_per_epoch)
            sums, images_seen = torch.zeros(len(LOSSES), device=device), 0
            while step < (epoch + 1) * source.steps_per_epoch:
                batch = source.batch(step)
                images_seen += len(batch.real)
                sums += trainer.step(batch, source.noise(step, trainer.noise_dim))
                step += 1
                if rank() == 0:
                    clock.tick(step - epoch * source.steps_per_epoch)
            assert images_seen * num_workers() == source.steps_per_epoch * job.train.batch_size

            # Note how it went; the one moment of an epoch that waits for the device.
            row = _epoch_row(step, epoch + 1, sums / source.steps_per_epoch, trainer.learning_rate)
            if not (all(map(math.isfinite, row.values())) and all_finite(trainer.tensors().values())):
                writer.wait()
                # Where the losses are numbers, the last update was none.
                require_finite({**row, "a weight": math.nan}, newest_whole(job.storage_dir))
            row["images_per_sec"] = clock.images_per_sec()
            is_last = step == num_steps
            if rank() == 0 and (is_last or (epoch + 1) % job.train.sample_every_epochs == 0):
                grid_path, row["sample_distance"] = paint_grid(job, stage, epoch + 1)
                progress.log_artifact(grid_path, "grids")
            history.append(row)
            if rank() != 0:
                continue

            # Keep what a crash must not lose, and tell about it: an epoch that is trained again has the same row.
            if is_last or (epoch + 1) % job.train.checkpoint_every_epochs == 0:
                writer.save(Checkpoint(step=step, tensors=trainer.tensors(), history=history), _notes(job))
                progress.log_history(history)
            clock.end(row)
            for warning in warnings_of(row).values():
                logger.warning("stage%d epoch %d: %s", job.stage_number, epoch + 1, warning)


def _resume(trainer: Trainer, job: TrainingJob) -> tuple[int, list[dict[str, float]]]:
    """Load the newest whole checkpoint into every worker; return its step and history, or 0 and none."""
    if job.bucket:
        Mirror(job.bucket).fetch(job.storage_dir)
    checkpoint = latest_checkpoint(job.storage_dir, binding_params(job))
    step = checkpoint.step if checkpoint else 0
    steps = values_of_all(step)
    if len(steps) > 1:
        raise ValueError(
            f"{job.storage_dir}: the workers see checkpoints of steps {sorted(steps)}; is it a "
            "folder that all machines share? Set RUN_STORAGE to one, or to s3://bucket/prefix"
        )
    if checkpoint is None:
        return 0, []
    trainer.load_tensors(checkpoint.tensors)
    return step, checkpoint.history


def _epoch_row(step: int, epoch: int, means: Tensor, learning_rate: float) -> dict[str, float]:
    """Return the epoch's row of the history, averaged over the workers."""
    values = dict(zip(LOSSES, averaged(means).tolist(), strict=True))
    return {"step": step, "epoch": epoch, **values, "learning_rate": learning_rate}


def _notes(job: TrainingJob) -> dict[str, object]:
    return {**job.provenance, "num_workers": num_workers(), "torch": torch.__version__}
