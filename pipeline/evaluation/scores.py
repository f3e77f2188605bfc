"""Scores of the generated pictures in samples/, method by method, beside the same scores of their bounds.

The bounds are real test pictures (from above), real training pictures and noise (from below). Every score carries its
protocol (see pipeline.evaluation.protocol). The wrong captions that a picture's own one competes with depend on the
seed and on that caption only, so all methods meet the same ones.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.data.choosing import chosen_rows
from pipeline.data.shards import Images
from pipeline.data.tables import read_images
from pipeline.evaluation.classifier import Classifier, load_classifier
from pipeline.evaluation.fidelity import fidelity, nearest
from pipeline.evaluation.inception_score import inception_score
from pipeline.evaluation.judging import SMALL_SIZE, Judged, Judges, MapJobs
from pipeline.evaluation.pictures import (
    NOISE,
    REAL,
    REAL_TRAIN,
    PictureSet,
    noise,
    read_samples,
    real_counterparts,
    real_parts,
    real_train,
)
from pipeline.evaluation.protocol import fingerprint, scoring_code_sha256
from pipeline.text.encoders import load_text_encoder
from pipeline.text.image_encoders import ImageEncoder, load_image_encoder
from pipeline.text.retrieval import r_precision

logger = logging.getLogger(__name__)

Scores = dict[str, Any]

# Rows whose wrong captions' embeddings are in memory at once: 40 MB with 99 captions of 1024 numbers.
RETRIEVAL_ROWS = 100
# Pictures of a method that are shown beside their nearest training pictures, and how many of these, as in the paper.
NUM_NEIGHBOUR_ROWS = 6
NUM_NEIGHBOURS = 5


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
    map_jobs: MapJobs,
    device: str = "cpu",
) -> dict[str, Any]:
    """Score every method of samples/ and its bounds.

    Args:
        samples_dir: samples.parquet and a folder of shards for each method.
        crops_dir: the test split gives the real pictures and the wrong captions.
        classifier_dir: the classifier's snapshot.
        text_encoder_dir: snapshots of the text encoder and of the image encoder trained with it.
        num_splits: of the Inception score.
        num_wrong_captions: of other test classes, for the R-precision.
        batch_size: pictures a forward pass; changes only the speed.
        seed: of shuffles, wrong captions and noise.
        map_jobs: calls a function on every job and returns the results in their order.
        device: torch device.

    Returns:
        JSON-ready {"methods": {method: scores}, "neighbours": {method: rows}}, floats rounded to 6 digits.

    Raises:
        ValueError: files are missing or do not fit together, or there are too few pictures or captions.
    """
    samples = read_samples(samples_dir)
    real = real_counterparts(crops_dir, samples.values())
    count = len(real.rows)
    methods = {
        REAL: real,
        REAL_TRAIN: real_train(crops_dir, count, seed),
        **samples,
        NOISE: noise(count, seed),
    }
    judges = Judges(
        classifier_dir=classifier_dir,
        text_encoder_dir=text_encoder_dir,
        batch_size=batch_size,
        device=device,
        map_jobs=map_jobs,
    )
    classifier = load_classifier(classifier_dir, device)
    retrieval = _Retrieval(
        crops_dir, text_encoder_dir, classifier, real, num_wrong_captions, batch_size, seed, device
    )  # fmt: skip
    judged = {method: judges.judge(methods[method]) for method in (REAL, REAL_TRAIN)}
    scorer = _Scorer(
        classifier,
        retrieval,
        real_features=judged[REAL].features,
        train_features=judged[REAL_TRAIN].features,
        num_splits=num_splits,
        seed=seed,
    )
    train_ids, _ = real_parts(crops_dir, "train")
    results: dict[str, Scores] = {}
    neighbours: dict[str, list[Scores]] = {}
    for method, pictures in methods.items():
        # One method at a time, for what is known of 30,000 pictures takes half a gigabyte.
        of_method = judged.pop(method, None) or judges.judge(pictures)
        try:
            results[method] = scorer.scores_of(method, pictures, of_method)
        except ValueError as error:
            raise ValueError(f"{method}: {error}") from error
        if method in samples:
            neighbours[method] = scorer.neighbours_of(pictures, of_method, train_ids)
        told = ("inception_score", "fid", "r_precision")
        logger.info("%s: %s", method, {key: results[method][key] for key in told})
    return {"methods": results, "neighbours": neighbours}


class _Scorer:
    """Scores sets of pictures against the same real ones."""

    def __init__(
        self,
        classifier: Classifier,
        retrieval: "_Retrieval",
        *,
        real_features: npt.NDArray[np.float32],
        train_features: npt.NDArray[np.float32],
        num_splits: int,
        seed: int,
    ):
        self._classifier = classifier
        self._retrieval = retrieval
        self._real = torch.from_numpy(real_features)
        self._train = torch.from_numpy(train_features)
        self._num_splits = num_splits
        self._seed = seed
        self._code_sha256 = scoring_code_sha256()

    def scores_of(self, method: str, pictures: PictureSet, judged: Judged) -> Scores:
        """Score one method; a score that means nothing for it is None."""
        places = torch.from_numpy(pictures.places)
        log_p = torch.from_numpy(judged.log_probabilities)[places]
        features = torch.from_numpy(judged.features)[places]
        sample_ids = [row["sample_id"] for row in pictures.rows]
        inception = inception_score(log_p, num_splits=self._num_splits, seed=self._seed, sample_ids=sample_ids)
        to_real = None if method == REAL else fidelity(features, self._real, seed=self._seed)._asdict()
        num_images = len(pictures.rows)
        retrieved = diversity = None
        if pictures.has_captions:
            own_caption_first = self._retrieval.r_precision(pictures.rows, torch.from_numpy(judged.encodings)[places])
            retrieved = _share(own_caption_first, num_images, self._retrieval.chance)
            diversity = within_caption_distance(pictures.rows, judged.small_images[pictures.places])
        protocol: dict[str, Any] = {
            "num_images": num_images,
            "num_real_images": len(self._real),
            "num_splits": self._num_splits,
            "seed": self._seed,
            "resizer": f"antialiased bilinear to {self._classifier.input_size} (classifier), "
            f"{self._retrieval.resizer} (encoder)",
            "classifier": self._classifier.network_name,
            "classifier_num_classes": self._classifier.num_classes,
            "classifier_held_out_accuracy": self._classifier.held_out_accuracy,
            "classifier_sha256": self._classifier.sha256,
            **self._retrieval.protocol,
            "scoring_code_sha256": self._code_sha256,
        }
        return {
            "image_size": pictures.image_size,
            "inception_score": {
                "mean": round(inception.mean, 6),
                "std": round(inception.std, 6),
                "sample_std": None if math.isnan(inception.sample_std) else round(inception.sample_std, 6),
                "low": round(inception.interval[0], 6),
                "high": round(inception.interval[1], 6),
            },
            **{key: to_real and round(to_real[key], 6) for key in ("fid", "kid", "precision", "recall")},
            "r_precision": retrieved,
            "class_agreement": self._class_agreement(pictures, log_p) if pictures.has_captions else None,
            "within_caption_distance": diversity,
            "nearest_train_distance": None if method == REAL_TRAIN else self._nearest_train_distance(features),
            "protocol": protocol,
            "fingerprint": fingerprint(protocol),
        }

    def neighbours_of(self, pictures: PictureSet, judged: Judged, train_ids: Sequence[int]) -> list[Scores]:
        """Return some pictures of a method with the training pictures nearest to them in the classifier's features."""
        rows = chosen_rows([row["class_id"] for row in pictures.rows], NUM_NEIGHBOUR_ROWS, self._seed)
        features = torch.from_numpy(judged.features)[torch.from_numpy(pictures.places[rows])]
        distances, places = nearest(features, self._train, min(NUM_NEIGHBOURS, len(self._train)))
        return [
            {
                "sample_id": pictures.rows[row]["sample_id"],
                "image_ids": [train_ids[place] for place in of_row.tolist()],
                "distances": [round(distance, 6) for distance in to_row.tolist()],
            }
            for row, of_row, to_row in zip(rows, places, distances, strict=True)
        ]

    def _class_agreement(self, pictures: PictureSet, log_p: Tensor) -> Scores | None:
        class_ids = self._classifier.class_ids
        unknown = {row["class_id"] for row in pictures.rows} - set(class_ids)
        if self._classifier.classes == "imagenet" or (unknown and self._classifier.classes == "train"):
            return None
        if unknown:
            raise ValueError(
                f"the classifier does not know class {min(unknown)}: rerun train_classifier on this data set"
            )
        guesses = np.array(class_ids)[log_p.argmax(dim=1).numpy()]
        share = float(np.mean(guesses == [row["class_id"] for row in pictures.rows]))
        return _share(share, len(pictures.rows), 1 / len(class_ids))

    def _nearest_train_distance(self, features: Tensor) -> float:
        """Average over pictures the distance to the nearest training picture: near 0 where they are copies."""
        return round(float(nearest(features, self._train, 1)[0].mean()), 6)


def _share(value: float, num_images: int, chance: float) -> Scores:
    """Describe a share of pictures, with the standard error of so many independent ones."""
    standard_error = math.sqrt(value * (1 - value) / num_images)
    return {"value": round(value, 6), "standard_error": round(standard_error, 6), "chance": round(chance, 6)}


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
        real: PictureSet,
        num_wrong_captions: int,
        batch_size: int,
        seed: int,
        device: str,
    ):
        sees_small = isinstance(load_image_encoder(text_encoder_dir, device, classifier), ImageEncoder)
        text_encoder = load_text_encoder(text_encoder_dir, device)
        images = read_images(crops_dir, "test")
        test_captions = [caption for image in images for caption in image["captions"]]
        texts = sorted({*(row["caption"] for row in real.rows), *test_captions})
        self._place = {text: place for place, text in enumerate(texts)}
        self._embeddings = text_encoder.encode(texts, batch_size)
        self._places = np.array([self._place[caption] for caption in test_captions])
        self._class_ids = np.array([image["class_id"] for image in images for _ in image["captions"]])
        self._num_wrong = num_wrong_captions
        self._seed = seed
        self.chance = 1 / (num_wrong_captions + 1)
        self.resizer = f"area to {SMALL_SIZE}" if sees_small else "the classifier's"
        self.protocol = {
            "num_wrong_captions": num_wrong_captions,
            "text_encoder": text_encoder.name,
            "text_encoder_sha256": text_encoder.sha256,
        }

    def r_precision(self, rows: Sequence[dict[str, Any]], features: Tensor) -> float:
        """Return the share of pictures whose own caption comes first (see pipeline.text.retrieval).

        Args:
            rows: N rows of samples.parquet.
            features: (N, embedding_dim) of the image encoder.
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
