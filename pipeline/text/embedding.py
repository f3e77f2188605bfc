"""The two text stages on the files of the pipeline: crops -> a text encoder, captions -> embeddings."""

import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from pipeline.data.files import replaced_folder, write_json
from pipeline.data.shards import LOAD_SIZES, ImageShards
from pipeline.data.tables import embeddings_schema, read_images, write_table
from pipeline.params import FitTextEncoderParams
from pipeline.text.encoders import encode_images, load_text_encoder, save_text_encoder
from pipeline.text.fitting import FittedEncoders, fit_text_encoder
from pipeline.text.retrieval import class_retrieval

logger = logging.getLogger(__name__)

LOAD_SIZE = LOAD_SIZES[64]


def fit_on_crops(
    crops_dir: Path, encoder_dir: Path, report_path: Path, params: FitTextEncoderParams, device: str
) -> None:
    """Train the text encoder on the train classes; write its snapshot, and how well it finds unseen test classes.

    Args:
        crops_dir: shards and images.parquet.
        encoder_dir: for the snapshots `text_encoder` and `image_encoder`.
        report_path: JSON.
        params: of the network and its training.
        device: torch device to train on.

    Raises:
        ValueError: crops are missing, or a caption cannot be encoded.
    """
    rows = read_images(crops_dir, "train")
    fitted = fit_text_encoder(
        ImageShards(crops_dir / "train", LOAD_SIZE).all(),
        np.array([row["class_id"] for row in rows], np.int64),
        [row["captions"] for row in rows],
        on_step=lambda step, loss, accuracy: _say(step, params.num_steps, loss, accuracy),
        device=device,
        **asdict(params),
    )
    with replaced_folder(encoder_dir) as partial_dir:
        save_text_encoder(partial_dir, fitted.text_encoder, fitted.image_encoder)
    last = fitted.history[-max(1, params.num_steps // 10) :]
    write_json(
        report_path,
        {
            "num_steps": params.num_steps,
            "train_loss": round(float(np.mean([step.loss for step in last])), 6),
            "train_accuracy": round(float(np.mean([step.accuracy for step in last])), 4),
            "num_parameters": sum(parameter.numel() for parameter in fitted.text_encoder.parameters()),
            "zero_shot": _zero_shot(crops_dir, encoder_dir, fitted),
        },
    )


def embed_captions(
    crops_dir: Path, encoder_dir: Path, out_dir: Path, report_path: Path, *, batch_size: int, device: str
) -> None:
    """Embed every caption of both splits into <out_dir>/{train,test}.parquet.

    Args:
        crops_dir: with images.parquet.
        encoder_dir: the text encoder's snapshot.
        out_dir: replaced whole.
        report_path: JSON.
        batch_size: captions a forward pass; changes only the speed.
        device: torch device to encode on.

    Raises:
        ValueError: the encoder is missing, or a caption cannot be encoded.
    """
    encoder = load_text_encoder(encoder_dir, device)
    schema = embeddings_schema(encoder.embedding_dim, {"name": encoder.name, "sha256": encoder.sha256})
    num_captions: dict[str, int] = {}
    with replaced_folder(out_dir) as partial_dir:
        for split in ("train", "test"):
            pairs = [(row["image_id"], row["captions"]) for row in read_images(crops_dir, split)]
            image_ids = [image_id for image_id, captions in pairs for _ in captions]
            caption_ids = [caption_id for _, captions in pairs for caption_id in range(len(captions))]
            captions = [caption for _, image_captions in pairs for caption in image_captions]
            embeddings = encoder.encode(captions, batch_size).numpy()
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), encoder.embedding_dim)
            columns = [pa.array(image_ids, pa.int64()), pa.array(caption_ids, pa.int32()), pa.array(captions), vectors]
            write_table(partial_dir / f"{split}.parquet", pa.Table.from_arrays(columns, schema=schema))
            num_captions[split] = len(captions)
    write_json(
        report_path,
        {
            "encoder": encoder.name,
            "encoder_sha256": encoder.sha256,
            "embedding_dim": encoder.embedding_dim,
            "num_captions": num_captions,
        },
    )


def _zero_shot(crops_dir: Path, encoder_dir: Path, fitted: FittedEncoders) -> dict[str, float]:
    """Find the test classes, none of them trained on, by the mean embedding of their captions (Reed et al. 2016)."""
    rows = read_images(crops_dir, "test")
    captions = [caption for row in rows for caption in row["captions"]]
    scores = class_retrieval(
        encode_images(fitted.image_encoder, ImageShards(crops_dir / "test", LOAD_SIZE).all()),
        torch.tensor([row["class_id"] for row in rows]),
        load_text_encoder(encoder_dir).encode(captions),
        torch.tensor([row["class_id"] for row in rows for _ in row["captions"]]),
    )
    return {key: round(float(value), 4) for key, value in scores._asdict().items()}


def _say(step: int, num_steps: int, loss: float, accuracy: float) -> None:
    if step == 1 or step % 50 == 0 or step == num_steps:
        logger.info("text encoder step %d/%d  loss %.4f  own caption first %.2f", step, num_steps, loss, accuracy)
