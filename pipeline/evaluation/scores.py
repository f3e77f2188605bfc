"""Scores of the generated pictures in samples/, method by method, beside the same scores of real test pictures.

Every score carries its protocol: one set of bird pictures scores quite differently with another classifier, count of
pictures, shuffle or resizer. The wrong captions that a picture's own one competes with depend on the seed and on that
caption only, so all methods meet the same ones.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.shards import Images
from pipeline.data.tables import read_images
from pipeline.evaluation.classifier import Classifier, load_classifier
from pipeline.evaluation.inception_score import inception_score
from pipeline.evaluation.pictures import REAL, CaptionedPictures, read_samples, real_counterparts
from pipeline.text.encoders import load_text_encoder
from pipeline.text.image_encoders import ImageEncoder, encode_images, load_image_encoder
from pipeline.text.retrieval import r_precision

logger = logging.getLogger(__name__)

Scores = dict[str, Any]

SMALL_SIZE = 64  # what the image encoder sees and distances are measured on
# Rows whose wrong captions' embeddings are in memory at once: 40 MB with 99 captions of 1024 numbers.
RETRIEVAL_ROWS = 100


def evaluate_samples(
    *,
    samples_dir: Path,
    crops_dir: Path,
    classifier_dir: Path,
    text_encoder_dir: Path,
    num_splits: int,
    num_wrong_captions: int,
    batch_size: int,
    seed: int,
    device: str = "cpu",
) -> dict[str, Any]:
    """Score every method of samples/ and, as a bound, the real test pictures.

    Args:
        samples_dir: samples.parquet and a folder of shards for each method.
        crops_dir: the test split gives the real pictures and the wrong captions.
        classifier_dir: the classifier's snapshot.
        text_encoder_dir: snapshots of the text encoder and of the image encoder trained with it.
        num_splits: of the Inception score.
        num_wrong_captions: of other test classes, for the R-precision.
        batch_size: pictures a forward pass; changes only the speed.
        seed: of shuffles and wrong captions.
        device: torch device.

    Returns:
        JSON-ready {"methods": {method: scores}}, floats rounded to 6 digits.

    Raises:
        ValueError: files are missing or do not fit together, or there are too few pictures or captions.
    """
    samples = read_samples(samples_dir)
    methods = {REAL: real_counterparts(crops_dir, samples.values()), **samples}
    classifier = load_classifier(classifier_dir, device)
    captions = [row["caption"] for row in methods[REAL].rows]
    retrieval = _Retrieval(
        crops_dir, text_encoder_dir, classifier, captions, num_wrong_captions, batch_size, seed, device
    )
    results: dict[str, Scores] = {}
    for method, pictures in methods.items():
        try:
            results[method] = _scores_of(pictures, classifier, retrieval, num_splits, batch_size, seed)
        except ValueError as error:
            raise ValueError(f"{method}: {error}") from error
        logger.info("%s: %s", method, {key: results[method][key] for key in ("inception_score", "r_precision")})
    return {"methods": results}


def _scores_of(
    pictures: CaptionedPictures,
    classifier: Classifier,
    retrieval: "_Retrieval",
    num_splits: int,
    batch_size: int,
    seed: int,
) -> Scores:
    """Score one method."""
    unknown = {row["class_id"] for row in pictures.rows} - set(classifier.class_ids)
    if unknown and classifier.classes != "train":
        raise ValueError(f"the classifier does not know class {min(unknown)}: rerun train_classifier on this data set")
    # One pass over the pictures, for they may be more than fit in memory.
    log_probabilities: list[Tensor] = []
    small: list[Images] = []
    features: list[Tensor] = []
    for images in pictures.batches(batch_size):
        log_probabilities.append(classifier.log_probabilities(images, batch_size))
        small.append(area_reduced(images, SMALL_SIZE))
        features.append(retrieval.features_of(images, small[-1]))
    log_p = torch.cat(log_probabilities)[torch.from_numpy(pictures.places)]
    small_images = np.concatenate(small)[pictures.places]
    sample_ids = [row["sample_id"] for row in pictures.rows]
    inception = inception_score(log_p, num_splits=num_splits, seed=seed, sample_ids=sample_ids)
    num_images = len(pictures.rows)
    agreement = None  # of a classifier that knows other classes
    if not unknown:
        guesses = np.array(classifier.class_ids)[log_p.argmax(dim=1).numpy()]
        share = float(np.mean(guesses == [row["class_id"] for row in pictures.rows]))
        agreement = _share(share, num_images, 1 / len(classifier.class_ids))
    retrieved = retrieval.r_precision(pictures.rows, torch.cat(features)[torch.from_numpy(pictures.places)])
    return {
        "image_size": pictures.image_size,
        "inception_score": {"mean": round(inception.mean, 6), "std": round(inception.std, 6)},
        "r_precision": _share(retrieved, num_images, retrieval.chance),
        "class_agreement": agreement,
        "within_caption_distance": within_caption_distance(pictures.rows, small_images),
        "protocol": {
            "num_images": num_images,
            "num_splits": num_splits,
            "seed": seed,
            "resizer": f"antialiased bilinear to {classifier.input_size} (classifier), {retrieval.resizer} (encoder)",
            "classifier": classifier.network_name,
            "classifier_num_classes": len(classifier.class_ids),
            "classifier_held_out_accuracy": classifier.held_out_accuracy,
            "classifier_sha256": classifier.sha256,
            **retrieval.protocol,
        },
    }


def _share(value: float, num_images: int, chance: float) -> Scores:
    """Describe a share of pictures, with the standard error of so many independent ones."""
    standard_error = math.sqrt(value * (1 - value) / num_images)
    return {"value": round(value, 6), "standard_error": round(standard_error, 6), "chance": round(chance, 6)}


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


def within_caption_distance(rows: Sequence[dict[str, Any]], images: Images) -> Scores | None:
    """Average over all pairs of pictures of one caption the root mean square difference of their pixels.

    0 is a generator that paints one picture a caption, however it is seeded.

    Args:
        rows: N, with image_id and caption_id.
        images: (N, S, S, 3) uint8; a pixel counts from 0 to 1.

    Returns:
        None where no caption has two pictures.
    """
    by_caption: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        by_caption[row["image_id"], row["caption_id"]].append(index)
    pairs = [pair for indices in by_caption.values() for pair in combinations(indices, 2)]
    if not pairs:
        return None
    squares = [np.square(images[one] / 255 - images[other] / 255).mean() for one, other in pairs]
    return {"mean": round(float(np.mean(np.sqrt(squares))), 6), "num_pairs": len(pairs)}


class _Retrieval:
    """Finds the caption of a picture among captions of other test classes, by the text and image encoders."""

    def __init__(
        self,
        crops_dir: Path,
        text_encoder_dir: Path,
        classifier: Classifier,
        captions: Sequence[str],
        num_wrong_captions: int,
        batch_size: int,
        seed: int,
        device: str,
    ):
        self._image_encoder = load_image_encoder(text_encoder_dir, device, classifier)
        self._sees_small = isinstance(self._image_encoder, ImageEncoder)
        text_encoder = load_text_encoder(text_encoder_dir, device)
        images = read_images(crops_dir, "test")
        test_captions = [caption for image in images for caption in image["captions"]]
        texts = sorted({*captions, *test_captions})
        self._place = {text: place for place, text in enumerate(texts)}
        self._embeddings = text_encoder.encode(texts, batch_size)
        self._places = np.array([self._place[caption] for caption in test_captions])
        self._class_ids = np.array([image["class_id"] for image in images for _ in image["captions"]])
        self._num_wrong = num_wrong_captions
        self._batch_size = batch_size
        self._seed = seed
        self.chance = 1 / (num_wrong_captions + 1)
        self.resizer = f"area to {SMALL_SIZE}" if self._sees_small else "the classifier's"
        self.protocol = {
            "num_wrong_captions": num_wrong_captions,
            "text_encoder": text_encoder.name,
            "text_encoder_sha256": text_encoder.sha256,
        }

    def features_of(self, images: Images, small_images: Images) -> Tensor:
        """Encode N pictures, given at their own size and at SMALL_SIZE: (N, embedding_dim) float32."""
        return encode_images(self._image_encoder, small_images if self._sees_small else images, self._batch_size)

    def r_precision(self, rows: Sequence[dict[str, Any]], features: Tensor) -> float:
        """Return the share of pictures whose own caption comes first (see pipeline.text.retrieval).

        Args:
            rows: N rows of samples.parquet.
            features: (N, embedding_dim) of their pictures.
        """
        others = {class_id: self._captions_of_others(class_id) for class_id in {row["class_id"] for row in rows}}
        num_first = 0.0
        for start in range(0, len(rows), RETRIEVAL_ROWS):
            slab = rows[start : start + RETRIEVAL_ROWS]
            true = self._embeddings[[self._place[row["caption"]] for row in slab]]
            wrong = self._embeddings[torch.from_numpy(np.stack([self._wrong(row, others) for row in slab]))]
            num_first += r_precision(features[start : start + len(slab)], true, wrong) * len(slab)
        return num_first / len(rows)

    def _captions_of_others(self, class_id: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        places = self._places[self._class_ids != class_id]
        if len(places) < self._num_wrong:
            raise ValueError(
                f"evaluate_inception.num_wrong_captions is {self._num_wrong}, but the test classes other than "
                f"{class_id} have {len(places)} captions: lower it"
            )
        return places

    def _wrong(self, row: dict[str, Any], others: dict[int, Any]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        generator = np.random.default_rng([self._seed, row["image_id"], row["caption_id"]])
        return generator.choice(others[row["class_id"]], self._num_wrong, replace=False)
