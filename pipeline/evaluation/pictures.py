"""The pictures that are scored and shown: each method's out of samples/, and the real ones, with their captions."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data.shards import LOAD_SIZES, Images, read_shard
from pipeline.data.tables import read_images, read_table

REAL = "real_test"  # the method of real pictures
REAL_CROP_SIZE = 256  # what the GANs see of a stored picture
REAL_LOAD_SIZE = LOAD_SIZES[REAL_CROP_SIZE]


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionedPictures:
    """Captions and the picture of each; several captions of a real picture share it."""

    rows: list[dict[str, Any]]  # N, with sample_id, image_id, class_id, caption_id and caption
    places: npt.NDArray[np.int64]  # (N,) which of the pictures belongs to each row
    image_size: int
    parts: tuple[Images, ...]  # (n, S, S, 3) uint8 each, memory-mapped

    def batches(self, batch_size: int) -> Iterator[Images]:
        """Copy all pictures out of their maps, at most `batch_size` at a time."""
        for part in self.parts:
            for start in range(0, len(part), batch_size):
                yield part[start : start + batch_size].copy()

    def picture_of(self, row: int) -> Images:
        """Copy the picture of a row out of its map: (S, S, 3) uint8."""
        place = int(self.places[row])
        for part in self.parts:
            if place < len(part):
                return part[place].copy()
            place -= len(part)
        raise AssertionError(f"row {row} has place {self.places[row]}")


def read_samples(samples_dir: Path) -> dict[str, CaptionedPictures]:
    """Read samples.parquet and map the shards of each of its methods.

    Raises:
        ValueError: shards are missing or torn, or hold other pictures than samples.parquet says.
    """
    by_method: dict[str, list[dict[str, Any]]] = {}
    for row in read_table(samples_dir / "samples.parquet", "samples/v1").to_pylist():
        by_method.setdefault(row["method"], []).append(row)
    return {method: _mapped(samples_dir / method, rows) for method, rows in by_method.items()}


def real_counterparts(crops_dir: Path, samples: Iterable[CaptionedPictures]) -> CaptionedPictures:
    """Return the real picture, its central 256 of 304 pixels, of every caption that pictures were made for.

    So the real ones are as many as a method's, and go with the same captions: scores that depend on either compare.

    Raises:
        ValueError: shards are missing, or are not those of images.parquet, or do not hold a sample's picture.
    """
    image_ids, parts = _read_shards(crops_dir / "test", REAL_LOAD_SIZE)
    if image_ids != [image["image_id"] for image in read_images(crops_dir, "test")]:
        raise ValueError(f"{crops_dir / 'test'} does not hold the pictures of images.parquet; rerun `dvc repro`")
    place_of = {image_id: place for place, image_id in enumerate(image_ids)}
    captioned = {(row["image_id"], row["caption_id"]): row for pictures in samples for row in pictures.rows}
    rows: list[dict[str, Any]] = [
        {**row, "sample_id": index, "method": REAL} for index, row in enumerate(captioned.values())
    ]
    strangers = [row["image_id"] for row in rows if row["image_id"] not in place_of]
    if strangers:
        raise ValueError(f"samples were made for picture {strangers[0]}, which the test split lacks; rerun `dvc repro`")
    margin = (REAL_LOAD_SIZE - REAL_CROP_SIZE) // 2
    central = slice(margin, margin + REAL_CROP_SIZE)
    return CaptionedPictures(
        rows=rows,
        places=np.array([place_of[row["image_id"]] for row in rows], np.int64),
        image_size=REAL_CROP_SIZE,
        parts=tuple(part[:, central, central] for part in parts),
    )


def _mapped(folder: Path, rows: list[dict[str, Any]]) -> CaptionedPictures:
    sample_ids, parts = _read_shards(folder, None)
    if sample_ids != [row["sample_id"] for row in rows]:
        raise ValueError(
            f"{folder} holds {len(sample_ids)} pictures that are not the {len(rows)} of samples.parquet; "
            "rerun `dvc repro generate_samples`"
        )
    places = np.arange(len(rows), dtype=np.int64)
    return CaptionedPictures(rows=rows, places=places, image_size=parts[0].shape[1], parts=parts)


def _read_shards(folder: Path, image_size: int | None) -> tuple[list[int], tuple[Images, ...]]:
    """Map a folder's shards: their ids and their pictures of this size, or of the only size that they hold."""
    paths = sorted(folder.glob("shard_*.arrow"))
    if not paths:
        raise ValueError(f"{folder} holds no shard_*.arrow; run `dvc repro`")
    shards = [read_shard(path, image_size or _only_size(path)) for path in paths]
    sizes = {shard.pixels.shape[1] for shard in shards}
    if len(sizes) > 1:
        raise ValueError(f"{folder} holds pictures of several sizes, {sorted(sizes)}; rerun `dvc repro`")
    image_ids = [image_id for shard in shards for image_id in shard.image_ids]
    return image_ids, tuple(shard.pixels for shard in shards)


def _only_size(path: Path) -> int:
    try:
        names = pa.ipc.open_file(pa.memory_map(str(path))).schema.names
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a whole Arrow file: {error}; rerun `dvc repro`") from error
    sizes = [int(name.removeprefix("image_")) for name in names if name.removeprefix("image_").isdecimal()]
    if len(sizes) != 1:
        raise ValueError(f"{path} holds pictures of sizes {sizes}; one size was expected; rerun `dvc repro`")
    return sizes[0]
