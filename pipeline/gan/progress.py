"""How a training tells how it goes: lines with speed and time left, and grids of pictures."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from pipeline.data.tables import read_embeddings, read_images
from pipeline.gan.guards import sample_distance
from pipeline.gan.job import TrainingJob
from pipeline.gan.sampling import captioned_grid, paint
from pipeline.gan.stages import Stage

logger = logging.getLogger(__name__)

GRID_CAPTIONS = 6
GRID_NOISES = 4
SEC_BETWEEN_LINES = 30.0  # within an epoch


class Progress(Protocol):
    """Where a training tells how it goes (see pipeline.tracking)."""

    def log_history(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Take the whole history so far; rows already known are not logged again."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Keep a file that a person opens."""


class EpochClock:
    """Times one epoch, and says within it how far it is where it is long."""

    def __init__(self, job: TrainingJob, epoch: int, steps_per_epoch: int):
        """Start the clock; `epoch` counts from 1."""
        self._job = job
        self._epoch = epoch
        self._steps_per_epoch = steps_per_epoch
        self._started = self._told = time.perf_counter()

    def images_per_sec(self) -> float:
        """Return the speed of the whole epoch, which has just ended."""
        num_images = self._steps_per_epoch * self._job.train.batch_size
        return round(num_images / (time.perf_counter() - self._started), 2)

    def tick(self, steps_done: int) -> None:
        """Note a step; print a line if the last one was long ago and the epoch goes on."""
        now = time.perf_counter()
        if now - self._told < SEC_BETWEEN_LINES or steps_done == self._steps_per_epoch:
            return
        self._told = now
        sec_per_step = (now - self._started) / steps_done
        steps_left = (self._job.train.num_epochs - self._epoch + 1) * self._steps_per_epoch - steps_done
        logger.info(
            "stage%d epoch %d/%d  step %d/%d  %.1f images/s  %s left",
            self._job.stage_number, self._epoch, self._job.train.num_epochs, steps_done, self._steps_per_epoch,
            self._job.train.batch_size / sec_per_step, _clock(steps_left * sec_per_step),
        )  # fmt: skip

    def end(self, row: Mapping[str, float]) -> None:
        """Print the epoch's line."""
        sec_left = (self._job.train.num_epochs - self._epoch) * (time.perf_counter() - self._started)
        logger.info(
            "stage%d epoch %d/%d  d_loss %.3f  g_loss %.3f  kl %.3f  %.1f images/s  %s left",
            self._job.stage_number, self._epoch, self._job.train.num_epochs, row["d_loss"], row["g_loss"], row["kl"],
            row["images_per_sec"], _clock(sec_left),
        )  # fmt: skip


def paint_grid(job: TrainingJob, stage: Stage, epoch: int) -> tuple[Path, float]:
    """Paint the first captions of test pictures spread over the split, several noises each, the same in every grid.

    Returns:
        The grid's path, and how far the pictures of one caption are from each other (see guards.sample_distance).
    """
    embeddings = read_embeddings(job.embeddings_dir / "test.parquet")
    num_images = len(embeddings.image_ids)
    num_captions = min(GRID_CAPTIONS, num_images)
    chosen = [index * num_images // num_captions for index in range(num_captions)]
    captions = [embeddings.captions[index][0] for index in chosen]
    texts = torch.tensor(embeddings.vectors[chosen, 0])
    if stage.architecture.box_conditioned:
        images = read_images(job.crops_dir, "test")
        texts = stage.texts_of(texts, [images[index] for index in chosen])
    texts = texts.repeat_interleave(GRID_NOISES, dim=0)
    images = paint(stage, texts, seeds=[noise for _ in chosen for noise in range(GRID_NOISES)])
    images = images.reshape(num_captions, GRID_NOISES, *images.shape[1:])
    path = job.storage_dir / "grids" / f"epoch_{epoch:05d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    captioned_grid(images, captions).save(path)
    return path, round(sample_distance(images), 6)


def _clock(sec: float) -> str:
    minutes, seconds = divmod(round(sec), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
