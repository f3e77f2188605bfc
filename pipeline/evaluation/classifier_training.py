"""Trains the classifier that scores this data set, and measures it on pictures that it has not seen.

It sees what the GANs see, random crops (64 of 76 or 256 of 304 pixels) and flips, resized as generated pictures are.
"""

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.random_crops import random_crops
from pipeline.data.shards import Images, ImageShards
from pipeline.data.snapshots import save_snapshot
from pipeline.data.tables import read_images
from pipeline.evaluation.classifier import (
    GEOMETRIES,
    IMAGENET_CLASSES,
    SNAPSHOT,
    Classes,
    Geometry,
    NetworkName,
    imagenet_network,
    log_probabilities,
    pretrained_network,
    resized,
    without_auxiliary_head,
)

logger = logging.getLogger(__name__)

Precision = Literal["float32", "bfloat16"]
Indices = npt.NDArray[np.int64]

AUXILIARY_WEIGHT = 0.4  # of the loss of Inception-v3's auxiliary head, as in its published training
WEIGHT_DECAY = 0.05
WARM_UP_SHARE = 0.15


class _Purpose(IntEnum):
    """What a generator is for: part of its seed."""

    HELD_OUT = 0
    ORDER = 1
    AUGMENTATION = 2


def train_classifier(
    *,
    crops_dir: Path,
    models_dir: Path,
    network: NetworkName,
    weights: str,
    classes: Classes,
    held_out_share: float,
    num_epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    precision: Precision = "float32",
    device: str = "cpu",
    on_epoch: Callable[[int, float], None] | None = None,
) -> dict[str, object]:
    """Train a classifier, measure it on held-out pictures and write it as snapshot `classifier` into `models_dir`.

    Args:
        crops_dir: images.parquet and the splits' shards.
        models_dir: where the snapshot goes.
        network: `inception_v3` sees 299x299 pixels, `resnet18` 64x64.
        weights: `none`, `imagenet` (torchvision's download) or a .safetensors file of torchvision's state_dict.
        classes: those of the test split, as for the published score, of both splits, or of the train split, as for
            features that must know nothing of the test classes; `imagenet` trains nothing and keeps the weights as
            they are, as for the published score on COCO.
        held_out_share: of each class's pictures; at least one is held out, and at least one is not.
        num_epochs: passes over the rest.
        batch_size: pictures an update; a remainder is shared out among the updates of its epoch.
        learning_rate: AdamW's, the peak of a one-cycle schedule.
        seed: of new weights, held-out pictures, order, crops and flips.
        precision: `bfloat16` trains under autocast; the accuracy is measured in float32, as scores are.
        device: torch device.
        on_epoch: called after each epoch with its number from 1 and its mean loss.

    Returns:
        JSON-ready: counts, held-out accuracy, chance, network, weights and where these come from.

    Raises:
        ValueError: inputs are missing or do not fit together, or the weights cannot be had.
        FloatingPointError: the loss is no longer finite.
    """
    if classes == "imagenet":
        return _keep_imagenet_network(models_dir, network, weights)
    pictures = _read_pictures(crops_dir, GEOMETRIES[network], classes)
    rows, held_out = held_out_rows(pictures.labels, held_out_share, seed)
    if min(batch_size, len(rows)) < 2:
        raise ValueError(f"train_classifier.batch_size {batch_size}, {len(rows)} pictures: BatchNorm needs 2 or more")

    # Dropout draws from torch's global generator: it is seeded here and put back, so that nothing outside notices.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = pretrained_network(network, weights, len(pictures.class_ids), seed)
        module.to(device).to(memory_format=torch.channels_last).train()
        updates = _Updates(module, num_epochs * max(1, len(rows) // batch_size), learning_rate, precision)
        for epoch in range(num_epochs):
            losses = [
                updates.update(images, labels) for images, labels in pictures.batches(rows, batch_size, seed, epoch)
            ]
            loss = float(np.mean(losses))
            if not np.isfinite(loss):
                raise FloatingPointError(f"loss is {loss} in epoch {epoch + 1}: lower train_classifier.learning_rate")
            logger.info("train_classifier: epoch %d of %d, loss %.3f", epoch + 1, num_epochs, loss)
            if on_epoch is not None:
                on_epoch(epoch + 1, loss)

    without_auxiliary_head(module).eval()
    report: dict[str, object] = {
        "network": network,
        "weights": _name_of(weights),
        "classes": classes,
        "num_classes": len(pictures.class_ids),
        "num_train_images": len(rows),
        "num_held_out": len(held_out),
        "held_out_accuracy": round(pictures.accuracy(module, held_out, batch_size), 6),
        "chance": round(1 / len(pictures.class_ids), 6),
        "note": _note(network, weights, classes),
    }
    config = {**report, "class_ids": pictures.class_ids.tolist(), "input_size": GEOMETRIES[network].input_size}
    save_snapshot(models_dir, SNAPSHOT, module, config)
    return report


def _keep_imagenet_network(models_dir: Path, network: NetworkName, weights: str) -> dict[str, object]:
    """Write a network as it comes, and return its report."""
    module = without_auxiliary_head(imagenet_network(network, weights)).eval()
    report: dict[str, object] = {
        "network": network,
        "weights": _name_of(weights),
        "classes": "imagenet",
        "num_classes": IMAGENET_CLASSES,
        "held_out_accuracy": None,
        "note": f"{network} as it was trained on ImageNet, whose classes it knows and no other.",
    }
    config = {**report, "class_ids": [], "input_size": GEOMETRIES[network].input_size}
    save_snapshot(models_dir, SNAPSHOT, module, config)
    return report


def _name_of(weights: str) -> str:
    """Return what a report calls the weights: a file's path is one machine's own."""
    return weights if weights in ("none", "imagenet") else Path(weights).name


def held_out_rows(labels: Indices, share: float, seed: int) -> tuple[Indices, Indices]:
    """Split the rows of every class in two: to train on, and held out (none of a class with a single picture)."""
    generator = np.random.default_rng([seed, _Purpose.HELD_OUT])
    is_held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        is_held_out[rows[: min(max(round(share * len(rows)), 1), len(rows) - 1)]] = True
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pictures:
    """The pictures of one or two splits, numbered through, with their classes numbered from 0."""

    shards: tuple[ImageShards, ...]
    labels: Indices  # (N,) places in class_ids
    class_ids: Indices  # (num_classes,) ascending
    geometry: Geometry

    def gather(self, rows: Indices) -> Images:
        """Copy pictures out of the shards: (n, L, L, 3) uint8."""
        side = self.geometry.load_size
        images = np.empty((len(rows), side, side, 3), np.uint8)
        start = 0
        for shards in self.shards:
            here = (rows >= start) & (rows < start + len(shards))
            images[here] = shards.gather(rows[here] - start)
            start += len(shards)
        return images

    def batches(self, rows: Indices, batch_size: int, seed: int, epoch: int) -> Generator[tuple[Tensor, Tensor]]:
        """Yield one epoch: (n, 3, input_size, input_size) float32 in [-1, 1], cropped and flipped, and (n,) labels."""
        order = np.random.default_rng([seed, _Purpose.ORDER, epoch]).permutation(rows)
        draws = np.random.default_rng([seed, _Purpose.AUGMENTATION, epoch]).random((len(rows), 3))
        num_batches = max(1, len(rows) // batch_size)
        for chosen, drawn in zip(np.array_split(order, num_batches), np.array_split(draws, num_batches), strict=True):
            pixels, places = torch.from_numpy(self.gather(chosen)), torch.from_numpy(drawn)
            crops = random_crops(pixels, places, self.geometry.crop_size)
            yield resized(crops, self.geometry.input_size), torch.from_numpy(self.labels[chosen])

    def accuracy(self, network: nn.Module, rows: Indices, batch_size: int) -> float:
        """Return the share of `rows` whose central crop is given its own class; 0 of no rows."""
        margin = (self.geometry.load_size - self.geometry.crop_size) // 2
        central = slice(margin, margin + self.geometry.crop_size)
        num_right = 0
        for chosen in np.array_split(rows, -(-len(rows) // batch_size)) if len(rows) else []:
            images = self.gather(chosen)[:, central, central]
            log_p = log_probabilities(network, images, input_size=self.geometry.input_size, batch_size=batch_size)
            num_right += int((log_p.argmax(dim=1).numpy() == self.labels[chosen]).sum())
        return num_right / max(len(rows), 1)


def _read_pictures(crops_dir: Path, geometry: Geometry, classes: Classes) -> _Pictures:
    shards: list[ImageShards] = []
    picture_classes: list[int] = []
    for split in ("train", "test") if classes == "all" else (classes,):
        images = read_images(crops_dir, split)
        shards.append(ImageShards(crops_dir / split, geometry.load_size))
        if shards[-1].image_ids != [image["image_id"] for image in images]:
            raise ValueError(f"{crops_dir / split} does not hold the pictures of images.parquet; rerun `dvc repro`")
        picture_classes += [image["class_id"] for image in images]
    class_ids, labels = np.unique(np.array(picture_classes, np.int64), return_inverse=True)
    if len(class_ids) < 2:
        raise ValueError(f"{crops_dir}: {len(class_ids)} class to tell apart; the classifier needs two or more")
    return _Pictures(shards=tuple(shards), labels=labels, class_ids=class_ids, geometry=geometry)


class _Updates:
    """AdamW under a one-cycle schedule."""

    def __init__(self, network: nn.Module, num_steps: int, learning_rate: float, precision: Precision):
        self._network = network
        self._precision = precision
        matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in network.parameters() if parameter.ndim <= 1]  # biases and BatchNorm
        self._optimiser = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}],
            lr=learning_rate,
            fused=True,
        )
        # One step more than is taken: the schedule is asked for a rate after the last one, too.
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimiser, max_lr=learning_rate, total_steps=num_steps + 1, pct_start=WARM_UP_SHARE
        )

    def update(self, images: Tensor, labels: Tensor) -> float:
        """Take one step and return the loss before it."""
        device = next(self._network.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self._precision == "bfloat16"):
            outputs: Tensor | tuple[Tensor, Tensor] = self._network(images.to(device))
        # In training, Inception-v3 returns its logits and those of its auxiliary head.
        logits = outputs if isinstance(outputs, tuple) else (outputs,)
        losses = [F.cross_entropy(each.float(), labels.to(device)) for each in logits]
        loss = losses[0] if len(losses) == 1 else losses[0] + AUXILIARY_WEIGHT * losses[1]
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._optimiser.step()
        self._schedule.step()
        return loss.item()


def _note(network: NetworkName, weights: str, classes: Literal["train", "test", "all"]) -> str:
    origin = {
        "none": "trained from scratch, so its scores cannot be compared with those of an ImageNet network",
        "imagenet": "fine-tuned from torchvision's ImageNet weights",
    }.get(weights, f"fine-tuned from the weights of {Path(weights).name}")
    known = {
        "train": "the train classes, so it cannot name those of the pictures that it scores",
        "test": "the test classes, also from real test pictures, which it therefore finds easy",
        "all": "the classes of both splits, also from real test pictures, which it therefore finds easy",
    }[classes]
    return f"{network}, {origin}; it knows {known}."
