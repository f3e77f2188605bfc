"""What the networks that judge say of pictures, part by part: the work that is shared out among workers.

A part is judged alone, in batches of its own, so what is said of a picture does not depend on how many workers there
are or on which of them saw it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pipeline.allocation import keep_freed_memory
from pipeline.data.shards import Images
from pipeline.evaluation.classifier import load_classifier
from pipeline.evaluation.pictures import Part, PictureSet, batches
from pipeline.text.image_encoders import FeatureProjection, encode_images, load_image_encoder

SMALL_SIZE = 64  # what the image encoder sees and distances are measured on


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeJob:
    """One part's work."""

    part: Part
    classifier_dir: Path
    text_encoder_dir: Path
    batch_size: int
    device: str
    writes: tuple[Path, ...] = ()

    @property
    def reads(self) -> list[Path]:
        """List the pictures' shard and the networks' snapshots."""
        return [*self.part.reads, self.classifier_dir, self.text_encoder_dir]


class Judged(NamedTuple):
    """What is known of n pictures."""

    log_probabilities: npt.NDArray[np.float64]  # (n, num_classes)
    features: npt.NDArray[np.float32]  # (n, D) of the classifier
    encodings: npt.NDArray[np.float32]  # (n, embedding_dim) of the image encoder
    small_images: Images  # (n, SMALL_SIZE, SMALL_SIZE, 3)


MapJobs = Callable[[Callable[[JudgeJob], Judged], Sequence[JudgeJob]], Sequence[Judged]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Judges:
    """The networks' folders, and how they are run."""

    classifier_dir: Path
    text_encoder_dir: Path
    batch_size: int
    device: str
    map_jobs: MapJobs

    def judge(self, pictures: PictureSet) -> Judged:
        """Judge all pictures of a set, each once, in the order of its parts."""
        jobs = [
            JudgeJob(
                part=part,
                classifier_dir=self.classifier_dir,
                text_encoder_dir=self.text_encoder_dir,
                batch_size=self.batch_size,
                device=self.device,
            )
            for part in pictures.parts
        ]
        parts = self.map_jobs(judge_part, jobs)
        return Judged(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def judge_part(job: JudgeJob) -> Judged:
    """Judge the pictures of a part.

    Raises:
        ValueError: a snapshot or shard is missing or altered, or pictures are no multiple of SMALL_SIZE.
    """
    if job.device == "cpu":
        keep_freed_memory()
    classifier = load_classifier(job.classifier_dir, job.device)
    image_encoder = load_image_encoder(job.text_encoder_dir, job.device, classifier)
    parts: list[Judged] = []
    for images in batches(job.part.load(), job.batch_size):
        log_probabilities, features = classifier.judge(images, job.batch_size)
        small_images = area_reduced(images, SMALL_SIZE)
        if isinstance(image_encoder, FeatureProjection):
            with torch.inference_mode():
                encodings = image_encoder(features.to(job.device)).cpu()
        else:
            encodings = encode_images(image_encoder, small_images, job.batch_size)
        parts.append(Judged(log_probabilities.numpy(), features.numpy(), encodings.numpy(), small_images))
    return Judged(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def area_reduced(images: Images, size: int) -> Images:
    """Average blocks of (N, S, S, 3) uint8 pictures to (N, size, size, 3) uint8, rounded to the nearest.

    Raises:
        ValueError: S is no multiple of `size`.
    """
    factor, rest = divmod(images.shape[1], size)
    if rest or not factor:
        raise ValueError(f"pictures of {images.shape[1]}x{images.shape[2]}; the scores need a multiple of {size}")
    sums = images.reshape(-1, size, factor, size, factor, 3).sum(axis=(2, 4), dtype=np.uint32)
    return ((sums + factor**2 // 2) // factor**2).astype(np.uint8)
