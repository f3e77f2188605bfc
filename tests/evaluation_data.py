"""Small crops, samples and encoders on the disk, as the stages before would write them, for the tests of evaluation.

A class is a colour: its pictures are that colour with some noise, its captions name it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipeline.data.shards import shard_path, write_shard
from pipeline.data.tables import IMAGES, SAMPLES, write_table
from pipeline.text.char_cnn_rnn import CharCnnRnn
from pipeline.text.encoders import save_text_encoder
from pipeline.text.image_encoders import ImageEncoder

Images = npt.NDArray[np.uint8]

COLOURS = {
    "red": (200, 30, 40),
    "blue": (30, 60, 210),
    "green": (40, 160, 60),
    "yellow": (240, 210, 40),
    "black": (25, 25, 30),
    "white": (235, 235, 230),
}
TEST_COLOURS = ("green", "yellow", "white")
CAPTIONS_PER_IMAGE = 3


def coloured(colour: str, size: int, rng: np.random.Generator) -> Images:
    """One (size, size, 3) picture of a colour on grey, with noise."""
    image = np.full((size, size, 3), 128.0)
    image[size // 5 : -size // 5, size // 5 : -size // 5] = COLOURS[colour]
    return np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8)


def write_crops(crops_dir: Path, images_per_class: int = 5, images_per_shard: int = 4) -> None:
    """Write images.parquet and the shards of three train and three test classes, ids 1 to 6."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for split in ("train", "test"):
        colours = [colour for colour in COLOURS if (colour in TEST_COLOURS) == (split == "test")]
        records = [
            _image_row(len(rows) + index, colour, split) for index, colour in enumerate(colours * images_per_class)
        ]
        rows += records
        for index, start in enumerate(range(0, len(records), images_per_shard)):
            part = records[start : start + images_per_shard]
            images = {size: np.stack([coloured(row["class_name"], size, rng) for row in part]) for size in (76, 304)}
            write_shard(shard_path(crops_dir / split, index), [row["image_id"] for row in part], images)
    write_table(crops_dir / "images.parquet", pa.Table.from_pylist(rows, schema=IMAGES))


def _image_row(image_id: int, colour: str, split: str) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "class_id": 1 + list(COLOURS).index(colour),
        "class_name": colour,
        "split": split,
        "file_name": f"{colour}/{image_id}.jpg",
        "width": 400,
        "height": 300,
        "bbox": [10.0, 10.0, 50.0, 40.0],
        "crop_box": [10, 10, 60, 50],
        "object_area_ratio_before": 0.02,
        "object_area_ratio": 0.8,
        "captions": [f"a {colour} bird number {image_id}, view {caption}" for caption in range(CAPTIONS_PER_IMAGE)],
    }


Painter = Callable[[dict[str, Any]], Images]


def write_samples(
    samples_dir: Path, images: Sequence[dict[str, Any]], methods: dict[str, Painter], copies: int = 1
) -> None:
    """Write samples.parquet and shards: `copies` pictures of the first caption of each row of images.parquet."""
    records: list[dict[str, Any]] = []
    for method, paint in methods.items():
        rows = [
            {
                "sample_id": len(records) + index,
                "method": method,
                "image_id": image["image_id"],
                "class_id": image["class_id"],
                "caption_id": 0,
                "caption": image["captions"][0],
                "seed": index,
            }
            for index, image in enumerate([image for image in images for _ in range(copies)])
        ]
        records += rows
        pictures = np.stack([paint(row) for row in rows])
        half = len(rows) // 2
        for index, part in enumerate((slice(0, half), slice(half, None))):
            ids = [row["sample_id"] for row in rows[part]]
            write_shard(shard_path(samples_dir / method, index), ids, {pictures.shape[1]: pictures[part]})
    write_table(samples_dir / "samples.parquet", pa.Table.from_pylist(records, schema=SAMPLES))


def colour_of(class_id: int) -> str:
    return list(COLOURS)[class_id - 1]


def paint_truth(size: int) -> Painter:
    """A generator that paints what the caption says."""
    return lambda row: coloured(colour_of(row["class_id"]), size, np.random.default_rng(row["seed"]))


def paint_noise(size: int) -> Painter:
    """A generator that has learnt nothing."""
    return lambda row: np.random.default_rng(row["seed"]).integers(0, 256, (size, size, 3), dtype=np.uint8)


def write_encoders(folder: Path, embedding_dim: int = 8) -> None:
    """Write untrained text and image encoders, of weights so large that captions are not all alike to them."""
    generator = torch.Generator().manual_seed(0)
    text_encoder = CharCnnRnn(conv_dims=(8, 8, 8), embedding_dim=embedding_dim)
    image_encoder = ImageEncoder(embedding_dim=embedding_dim, conv_dims=(4, 8))
    for network in (text_encoder, image_encoder):
        network.initialise(generator)
        for parameter in network.parameters():
            parameter.data *= 4
    save_text_encoder(folder, text_encoder, image_encoder)
