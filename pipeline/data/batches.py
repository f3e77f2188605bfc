"""The batches that feed a training: a pure function of (seed, step), whatever the number of workers.

Every random choice is drawn for the global batch, from a generator seeded with (seed, what it is for, epoch or step),
and each worker takes its rows of it. So nothing has to be remembered to resume, and nothing changes with the workers.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.boxes import boxes_in_windows, boxes_of
from pipeline.data.random_crops import crop_offsets, is_mirrored, random_crops
from pipeline.data.shards import LOAD_SIZES, Images, ImageShards
from pipeline.data.tables import read_embeddings, read_images
from pipeline.data.transforms import MAX_SEED, PictureTransform

Indices = npt.NDArray[np.int64]


class Purpose(IntEnum):
    """What a generator is for: part of its seed, so that no two uses share a stream."""

    ORDER = 0
    CAPTIONS = 1
    WRONG_PICTURE = 2
    WRONG_CAPTIONS = 3
    AUGMENTATION = 4
    NOISE = 5
    D_AUGMENTATION = 6
    TRANSFORM = 7
    WRONG_AUGMENTATION = 8
    WRONG_TRANSFORM = 9


def generator_for(seed: int, purpose: int, counter: int) -> np.random.Generator:
    """Return the generator of one purpose at one step or epoch."""
    return np.random.default_rng([seed, purpose, counter])


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSet:
    """One split in memory: pictures, their classes and their captions' embeddings, in the order of images.parquet."""

    shards: ImageShards
    class_ids: Indices  # (N,)
    embeddings: Tensor  # (N, captions_per_image, embedding_dim) float32
    boxes: Tensor  # (N, 4) float32, see pipeline.data.boxes


def crop_size_for(image_size: int) -> int:
    """Return the side of the random crops that become pictures of `image_size`: 64, or 256 (for 128 it is halved)."""
    return min(size for size in LOAD_SIZES if size >= image_size)


def load_training_set(crops_dir: Path, embeddings_path: Path, split: str, image_size: int) -> TrainingSet:
    """Map a split's shards and read its classes and embeddings.

    Raises:
        ValueError: the files are missing or do not belong together.
    """
    rows = read_images(crops_dir, split)
    shards = ImageShards(crops_dir / split, LOAD_SIZES[crop_size_for(image_size)])
    embeddings = read_embeddings(embeddings_path)
    if not shards.image_ids == [row["image_id"] for row in rows] == embeddings.image_ids:
        raise ValueError(
            f"{crops_dir / split} and {embeddings_path} do not hold the pictures of images.parquet; rerun `dvc repro`"
        )
    class_ids = np.array([row["class_id"] for row in rows], np.int64)
    vectors = torch.tensor(embeddings.vectors)
    return TrainingSet(shards=shards, class_ids=class_ids, embeddings=vectors, boxes=boxes_of(rows))


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One worker's share of a global batch."""

    real: Tensor  # (n, 3, S, S) float32 in [-1, 1], channels_last
    # (n, embedding_dim) float32 of the real pictures' captions; with boxes (n, embedding_dim + 4), these behind it.
    text_embedding: Tensor
    wrong: Tensor | None  # (n, 3, S, S): the wrong pairs' pictures; None where these are the real ones
    wrong_text_embedding: Tensor  # likewise: the wrong pairs' texts, with the real pictures' boxes
    augmentation_draws: Tensor  # (3, n, 4) in [0, 1): D's augmentation of real, fake and wrong pictures

    def parts(self, count: int) -> list["Batch"]:
        """Cut the share into equal parts, in its order."""
        return [
            Batch(
                real=self.real.chunk(count)[index],
                text_embedding=self.text_embedding.chunk(count)[index],
                wrong=None if self.wrong is None else self.wrong.chunk(count)[index],
                wrong_text_embedding=self.wrong_text_embedding.chunk(count)[index],
                augmentation_draws=self.augmentation_draws.chunk(count, dim=1)[index],
            )
            for index in range(count)
        ]


class BatchSource:
    """Makes the batch of any step."""

    def __init__(
        self,
        training_set: TrainingSet,
        *,
        image_size: int,
        batch_size: int,
        captions_averaged: int,
        wrong_pairs: Literal["other_text", "other_image", "next_text"] = "other_text",
        with_boxes: bool = False,
        seed: int,
        rank: int,
        num_workers: int,
        device: torch.device,
        device_data_bytes: int = 0,
        transform: PictureTransform | None = None,
    ):
        """Set up one worker's source.

        Args:
            training_set: the pictures, of the load size of `image_size`.
            image_size: S, 64, 128 or 256.
            batch_size: global.
            captions_averaged: embeddings of so many different random captions are averaged for a pair.
            wrong_pairs: a real picture with the text of a picture of another class (the paper's words), a picture of
                another class with the real one's text (the TensorFlow release), or a real picture with the text of the
                next one of the global batch, whatever its class (the PyTorch release, which leaves out the last).
            with_boxes: put each picture's box behind its texts, the wrong one too.
            seed: of every choice.
            rank: of this worker.
            num_workers: that share a batch equally.
            device: where the batches are made.
            device_data_bytes: the device keeps all pictures if they take no more; else they are read from the shards,
                for a GPU a step ahead.
            transform: of each picture before its crop; it works on the processor.

        Raises:
            ValueError: the numbers do not fit together or to the data.
        """
        num_images, captions_per_image = training_set.embeddings.shape[:2]
        if batch_size % num_workers:
            raise ValueError(f"batch_size {batch_size} cannot be shared equally among {num_workers} workers")
        if batch_size > num_images:
            raise ValueError(f"batch_size {batch_size} is larger than the {num_images} training pictures")
        if captions_averaged > captions_per_image:
            raise ValueError(
                f"gan.captions_averaged {captions_averaged} exceeds {captions_per_image} captions a picture"
            )
        self.steps_per_epoch = num_images // batch_size
        self._set = training_set
        self._image_size = image_size
        self._crop_size = crop_size_for(image_size)
        self._wrong_pairs = wrong_pairs
        self._batch_size = batch_size
        self._captions_averaged = captions_averaged
        self._boxes = training_set.boxes.to(device) if with_boxes else None
        self._seed = seed
        per_worker = batch_size // num_workers
        self._rows = slice(rank * per_worker, (rank + 1) * per_worker)
        self._device = device
        self._classes = _ClassIndex(training_set.class_ids)
        self._embeddings = training_set.embeddings.to(device)
        self._order: tuple[int, Indices] = (-1, np.empty(0, np.int64))
        self._transform = transform
        self._resident: Tensor | None = None  # (N, L, L, 3) uint8 on the device
        # A processor reads a batch in a fraction of a millisecond, and a second thread would take its time from it.
        self._reads_ahead = device.type != "cpu"
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        self._ahead: dict[int, Future[Tensor]] = {}  # step -> its pictures, being read
        if transform is None and training_set.shards.num_bytes <= device_data_bytes:
            self._resident = torch.from_numpy(training_set.shards.all()).to(device)

    def batch(self, step: int) -> Batch:
        """Return this worker's share of the batch of `step` (from 0)."""
        chosen = self._chosen(step)
        text = self._texts(chosen, Purpose.CAPTIONS, step)
        wrong, wrong_text = self._wrong_pair(chosen, text, step)
        return Batch(
            real=self._cropped(self._pixels(chosen, step), Purpose.AUGMENTATION, step),
            text_embedding=self._with_boxes(text, chosen, step),
            wrong=wrong,
            wrong_text_embedding=self._with_boxes(wrong_text, chosen, step),
            augmentation_draws=self._augmentation_draws(step),
        )

    def _wrong_pair(self, chosen: Indices, text: Tensor, step: int) -> tuple[Tensor | None, Tensor]:
        """Return the wrong pairs' pictures, None for the real ones, and their texts."""
        if self._wrong_pairs == "next_text":
            return None, self._texts(chosen, Purpose.CAPTIONS, step, moved_by=1)
        others = self._classes.of_other_classes(chosen, generator_for(self._seed, Purpose.WRONG_PICTURE, step))
        if self._wrong_pairs == "other_image":
            return self._cropped(self._wrong_pixels(others, step), Purpose.WRONG_AUGMENTATION, step), text
        return None, self._texts(others, Purpose.WRONG_CAPTIONS, step)

    def noise(self, step: int, dim: int) -> Tensor:
        """Return this worker's rows of the step's standard normal noise, (n, dim) float32."""
        draws = generator_for(self._seed, Purpose.NOISE, step).standard_normal((self._batch_size, dim), np.float32)
        return self._sent(draws[self._rows])

    def _chosen(self, step: int) -> Indices:
        """Return the pictures of the step's global batch."""
        epoch, position = divmod(step, self.steps_per_epoch)
        known_epoch, order = self._order  # read once: the read-ahead thread may be an epoch further
        if known_epoch != epoch:
            order = generator_for(self._seed, Purpose.ORDER, epoch).permutation(len(self._set.shards)).astype(np.int64)
            self._order = (epoch, order)
        return order[position * self._batch_size : (position + 1) * self._batch_size]

    def _texts(self, chosen: Indices, purpose: Purpose, step: int, moved_by: int = 0) -> Tensor:
        """Average the embeddings of `captions_averaged` different random captions of each picture.

        Args:
            chosen: pictures of the global batch.
            purpose: of the draws.
            step: from 0.
            moved_by: each row gets the text of the row so many after it, the last ones those of the first.
        """
        captions_per_image = self._embeddings.shape[1]
        draws = generator_for(self._seed, purpose, step).random((len(chosen), captions_per_image))
        captions = np.roll(np.argsort(draws, axis=1), -moved_by, axis=0)[self._rows, : self._captions_averaged]
        images = self._sent(np.roll(chosen, -moved_by)[self._rows])
        return self._embeddings[images[:, None], self._sent(captions)].mean(dim=1)

    def _augmentation_draws(self, step: int) -> Tensor:
        draws = generator_for(self._seed, Purpose.D_AUGMENTATION, step).random((3, self._batch_size, 4), np.float32)
        return self._sent(draws[:, self._rows])

    def _cropped(self, pixels: Tensor, purpose: Purpose, step: int) -> Tensor:
        """(n, L, L, 3) uint8 -> (n, 3, S, S) float32, each cut and mirrored at random."""
        crops = random_crops(pixels, self._crop_draws(purpose, step), self._crop_size)
        scale = self._crop_size // self._image_size
        return crops if scale == 1 else F.avg_pool2d(crops, scale)

    def _crop_draws(self, purpose: Purpose, step: int) -> Tensor:
        draws = generator_for(self._seed, purpose, step).random((self._batch_size, 3))
        return self._sent(draws[self._rows])

    def _with_boxes(self, texts: Tensor, chosen: Indices, step: int) -> Tensor:
        """Put the boxes of the real pictures, as these are cropped and mirrored, behind texts where they are wanted."""
        if self._boxes is None:
            return texts
        boxes = self._boxes[self._sent(chosen[self._rows])]
        draws, load_size = self._crop_draws(Purpose.AUGMENTATION, step), LOAD_SIZES[self._crop_size]
        corners = (crop_offsets(draws, load_size, self._crop_size) / load_size).float()
        inside = boxes_in_windows(boxes, corners, is_mirrored(draws), self._crop_size / load_size)
        return torch.cat((texts, inside), dim=1)

    def _pixels(self, chosen: Indices, step: int) -> Tensor:
        """Return this worker's pictures on the device, (n, L, L, 3) uint8; for a GPU it reads a step ahead."""
        if self._resident is not None:
            return self._resident[self._sent(chosen[self._rows])]
        if not self._reads_ahead:
            return self._read(step)
        reading = self._ahead.pop(step, None) or self._reader.submit(self._read, step)
        self._ahead = {step + 1: self._reader.submit(self._read, step + 1)}
        return reading.result().to(self._device, non_blocking=True)

    def _wrong_pixels(self, others: Indices, step: int) -> Tensor:
        """Return this worker's pictures of other classes, (n, L, L, 3) uint8 on the device."""
        if self._resident is not None:
            return self._resident[self._sent(others[self._rows])]
        return self._sent(self._gathered(others, Purpose.WRONG_TRANSFORM, step))

    def _read(self, step: int) -> Tensor:
        return self._ready_to_send(self._gathered(self._chosen(step), Purpose.TRANSFORM, step))

    def _gathered(self, chosen: Indices, purpose: Purpose, step: int) -> Images:
        pixels = self._set.shards.gather(chosen[self._rows])
        if self._transform:
            seeds = generator_for(self._seed, purpose, step).integers(MAX_SEED, size=self._batch_size)
            pixels = self._transform(pixels, seeds[self._rows])
        return pixels

    def _sent(self, values: npt.NDArray[Any]) -> Tensor:
        """Return numbers on the device, without waiting for what a GPU is at."""
        return self._ready_to_send(values).to(self._device, non_blocking=True)

    def _ready_to_send(self, values: npt.NDArray[Any]) -> Tensor:
        """Return numbers where a GPU can fetch them by itself; from elsewhere, sending them waits for it."""
        tensor = torch.from_numpy(values)
        return tensor.pin_memory() if self._device.type == "cuda" else tensor


class _ClassIndex:
    """Draws pictures of another class, each with the same probability."""

    def __init__(self, class_ids: Indices):
        self._by_class = np.argsort(class_ids, kind="stable")
        classes, first, counts = np.unique(class_ids[self._by_class], return_index=True, return_counts=True)
        if len(classes) < 2:
            raise ValueError("a training needs pictures of two classes or more: its wrong pairs are of another class")
        own = np.searchsorted(classes, class_ids)
        self._first, self._count = first[own], counts[own]

    def of_other_classes(self, chosen: Indices, generator: np.random.Generator) -> Indices:
        num_images = len(self._by_class)
        place = generator.integers(0, num_images - self._count[chosen])
        # Places at or after the own class's block in the sorted order move on by its length.
        place = place + np.where(place >= self._first[chosen], self._count[chosen], 0)
        return self._by_class[place]
