"""DVC stage fit_text_encoder on the files of the pipeline: crops -> a text encoder and the image encoder beside it."""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline.data.files import replaced_folder, write_json
from pipeline.data.shards import LOAD_SIZES, ImageShards
from pipeline.data.tables import read_images
from pipeline.params import FitTextEncoderParams
from pipeline.text.encoders import TextEncoder, load_text_encoder, save_text_encoder
from pipeline.text.fitting import fit_text_encoder
from pipeline.text.freezing import freeze_pretrained
from pipeline.text.image_encoders import (
    IMAGE_SIZE,
    AnyImageEncoder,
    ImageFeatures,
    Images,
    central_crop,
    encode_images,
    save_image_encoder,
)
from pipeline.text.retrieval import class_retrieval

logger = logging.getLogger(__name__)


def fit_on_crops(
    crops_dir: Path,
    encoder_dir: Path,
    report_path: Path,
    params: FitTextEncoderParams,
    device: str,
    features: ImageFeatures | None = None,
) -> None:
    """Make the text encoder and its image encoder; write their snapshots, and how well they find unseen test classes.

    Args:
        crops_dir: shards and images.parquet.
        encoder_dir: for the snapshots `text_encoder` and `image_encoder`; replaced whole.
        report_path: JSON.
        params: of the networks and their training. With encoder: pretrained, the text encoder is taken as it is, and
            rnn, conv_dims and embedding_dim say nothing.
        device: torch device to train on.
        features: the frozen network that image_features: models/classifier asks for.

    Raises:
        ValueError: inputs are missing, a caption cannot be encoded, or the frozen network knows a test class.
    """
    assert (features is not None) == (params.image_features == "models/classifier"), params.image_features
    if features is not None:
        _refuse_known_classes(features, crops_dir)
    crop_size = features.crop_size if features else IMAGE_SIZE
    train = _read_split(crops_dir, "train", crop_size)
    with replaced_folder(encoder_dir) as partial_dir:
        embeddings = None
        if params.encoder == "pretrained":
            freeze_pretrained(params.pretrained_model, partial_dir)
            # All captions are embedded once, by what is frozen and not by what it was made from.
            embeddings = load_text_encoder(partial_dir, device).encode(train.flat_captions)
        conv1_dim, conv2_dim, hidden_dim = params.conv_dims
        fitted = fit_text_encoder(
            train.images,
            np.array(train.class_ids, np.int64),
            train.captions,
            rnn=params.rnn,
            conv_dims=(conv1_dim, conv2_dim, hidden_dim),
            embedding_dim=params.embedding_dim,
            num_steps=params.num_steps,
            batch_size=params.batch_size,
            learning_rate=params.learning_rate,
            lr_decay=params.lr_decay,
            seed=params.seed,
            device=device,
            embeddings=embeddings,
            features=features,
            on_step=lambda step, loss, accuracy: _say(step, params.num_steps, loss, accuracy),
        )
        if fitted.text_encoder is not None:
            save_text_encoder(partial_dir, fitted.text_encoder)
        save_image_encoder(partial_dir, fitted.image_encoder)
    text_encoder = load_text_encoder(encoder_dir, device)
    last = fitted.history[-max(1, params.num_steps // 10) :]
    write_json(
        report_path,
        {
            "encoder": text_encoder.name,
            "encoder_sha256": text_encoder.sha256,
            "embedding_dim": text_encoder.embedding_dim,
            "num_parameters": sum(parameter.numel() for parameter in text_encoder.network.parameters()),
            "image_features": params.image_features,
            "num_steps": params.num_steps,
            "train_loss": round(float(np.mean([step.loss for step in last])), 6),
            "train_accuracy": round(float(np.mean([step.accuracy for step in last])), 4),
            "zero_shot": _zero_shot(crops_dir, text_encoder, fitted.image_encoder, crop_size),
        },
    )


class _Split(NamedTuple):
    """The pictures of a split at the load size of one crop size, with their classes and captions."""

    images: Images
    class_ids: list[int]
    captions: list[list[str]]

    @property
    def flat_captions(self) -> list[str]:
        """Return the captions of all pictures, in their order."""
        return [caption for of_image in self.captions for caption in of_image]


def _read_split(crops_dir: Path, split: str, crop_size: int) -> _Split:
    rows = read_images(crops_dir, split)
    images = ImageShards(crops_dir / split, LOAD_SIZES[crop_size]).all()
    return _Split(images, [row["class_id"] for row in rows], [row["captions"] for row in rows])


def _refuse_known_classes(features: ImageFeatures, crops_dir: Path) -> None:
    """Refuse a network trained on test classes: it would leak them into the scores of classes never seen."""
    known = sorted({row["class_id"] for row in read_images(crops_dir, "test")} & set(features.class_ids))
    if known:
        raise ValueError(
            f"fit_text_encoder.image_features is models/classifier, which was trained on {len(known)} test "
            f"classes ({known[0]}, ...), which zero-shot scores must not know: set train_classifier.classes: train, or "
            "keep image_features: data/crops/train"
        )


def _zero_shot(
    crops_dir: Path, text_encoder: TextEncoder, image_encoder: AnyImageEncoder, crop_size: int
) -> dict[str, float]:
    """Find the test classes, none of them trained on, by the mean embedding of their captions (Reed et al. 2016)."""
    test = _read_split(crops_dir, "test", crop_size)
    scores = class_retrieval(
        encode_images(image_encoder, central_crop(test.images, crop_size)),
        torch.tensor(test.class_ids),
        text_encoder.encode(test.flat_captions),
        torch.tensor(
            [class_id for class_id, of_image in zip(test.class_ids, test.captions, strict=True) for _ in of_image]
        ),
    )
    return {key: round(float(value), 4) for key, value in scores._asdict().items()}


def _say(step: int, num_steps: int, loss: float, accuracy: float) -> None:
    if step == 1 or step % 50 == 0 or step == num_steps:
        logger.info("text encoder step %d/%d  loss %.4f  own caption first %.2f", step, num_steps, loss, accuracy)
