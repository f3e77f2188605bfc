"""The pictures that are scored and shown: each method's out of samples/, and real ones and noise as their bounds."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data.shards import LOAD_SIZES, Images, read_shard
from pipeline.data.tables import read_images, read_table

FINAL = "stackgan"  # the method of every system's final pictures
REAL = "real_test"  # the method of real pictures
REAL_TRAIN = "real_train"  # real pictures of the classes that generators are trained on
NOISE = "noise"  # every pixel drawn by chance
REAL_CROP_SIZE = 256  # what the GANs see of a stored picture
REAL_LOAD_SIZE = LOAD_SIZES[REAL_CROP_SIZE]
_NOISE_PART = 250  # pictures that are drawn at once


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPart:
    """The pictures of a shard, or their centres: what is read of it is on the disk until touched."""

    path: Path
    count: int
    stored_size: int
    image_size: int

    @property
    def reads(self) -> tuple[Path, ...]:
        """List the shard."""
        return (self.path,)

    def load(self) -> Images:
        """Map the pictures: (count, image_size, image_size, 3) uint8."""
        margin = (self.stored_size - self.image_size) // 2
        central = slice(margin, margin + self.image_size)
        return read_shard(self.path, self.stored_size).pixels[:, central, central]


@dataclass(frozen=True, kw_only=True, slots=True)
class NoisePart:
    """Pictures whose pixels are drawn by chance, each from a seed of its own."""

    start: int  # its pictures are number start, start + 1, ... of their set
    count: int
    image_size: int
    seed: int
    reads: tuple[Path, ...] = ()

    def load(self) -> Images:
        """Draw the pictures: (count, image_size, image_size, 3) uint8."""
        shape = (self.image_size, self.image_size, 3)
        numbers = range(self.start, self.start + self.count)
        return np.stack([np.random.default_rng([self.seed, n]).integers(0, 256, shape, np.uint8) for n in numbers])


Part = ShardPart | NoisePart


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureSet:
    """Pictures to score, in parts; several rows of real ones share a picture."""

    rows: list[dict[str, Any]]  # N, with sample_id; captioned ones also with image_id, class_id, caption_id and caption
    places: npt.NDArray[np.int64]  # (N,) which of the pictures belongs to each row
    parts: tuple[Part, ...]

    @property
    def image_size(self) -> int:
        """Return S, in pixels."""
        return self.parts[0].image_size

    @property
    def has_captions(self) -> bool:
        """Return whether its pictures go with captions."""
        return "caption" in self.rows[0]

    def picture_of(self, row: int) -> Images:
        """Copy the picture of a row: (S, S, 3) uint8."""
        return picture_at(self.parts, int(self.places[row]))


def picture_at(parts: Sequence[Part], place: int) -> Images:
    """Copy a picture by its place among all of the parts: (S, S, 3) uint8."""
    for part in parts:
        if place < part.count:
            return part.load()[place].copy()
        place -= part.count
    raise AssertionError(f"{place} places too far")


def batches(images: Images, batch_size: int) -> Iterator[Images]:
    """Copy pictures out of their map, at most `batch_size` at a time."""
    for start in range(0, len(images), batch_size):
        yield images[start : start + batch_size].copy()


def read_samples(samples_dir: Path) -> dict[str, PictureSet]:
    """Read samples.parquet, and find the shards of each of its methods.

    Raises:
        ValueError: shards are missing or torn, or hold other pictures than samples.parquet says.
    """
    by_method: dict[str, list[dict[str, Any]]] = {}
    for row in read_table(samples_dir / "samples.parquet", "samples/v1").to_pylist():
        by_method.setdefault(row["method"], []).append(row)
    return {method: _of_method(samples_dir / method, rows) for method, rows in by_method.items()}


def real_counterparts(crops_dir: Path, samples: Iterable[PictureSet]) -> PictureSet:
    """Return the real picture, its central 256 of 304 pixels, of every caption that pictures were made for.

    So the real ones are as many as a method's, and go with the same captions: scores that depend on either compare.

    Raises:
        ValueError: shards are missing, or are not those of images.parquet, or do not hold a sample's picture.
    """
    image_ids, parts = real_parts(crops_dir, "test")
    place_of = {image_id: place for place, image_id in enumerate(image_ids)}
    captioned = {(row["image_id"], row["caption_id"]): row for pictures in samples for row in pictures.rows}
    rows: list[dict[str, Any]] = [
        {**row, "sample_id": index, "method": REAL} for index, row in enumerate(captioned.values())
    ]
    strangers = [row["image_id"] for row in rows if row["image_id"] not in place_of]
    if strangers:
        raise ValueError(f"samples were made for picture {strangers[0]}, which the test split lacks; rerun `dvc repro`")
    places = np.array([place_of[row["image_id"]] for row in rows], np.int64)
    return PictureSet(rows=rows, places=places, parts=parts)


def real_train(crops_dir: Path, count: int, seed: int) -> PictureSet:
    """Return `count` rows of real training pictures, each as often as any other, give or take one.

    Their `image_id` says which each is, and all pictures are in the parts, in the order of images.parquet.

    Raises:
        ValueError: shards are missing, or are not those of images.parquet.
    """
    image_ids, parts = real_parts(crops_dir, "train")
    order = np.random.default_rng(seed).permutation(len(image_ids))
    places = np.resize(order, count).astype(np.int64)
    rows = [{"sample_id": index, "image_id": image_ids[place]} for index, place in enumerate(places)]
    return PictureSet(rows=rows, places=places, parts=parts)


def noise(count: int, seed: int) -> PictureSet:
    """Return `count` pictures of the size of real ones, every pixel drawn by chance."""
    parts = [
        NoisePart(start=start, count=min(_NOISE_PART, count - start), image_size=REAL_CROP_SIZE, seed=seed)
        for start in range(0, count, _NOISE_PART)
    ]
    rows: list[dict[str, Any]] = [{"sample_id": index} for index in range(count)]
    return PictureSet(rows=rows, places=np.arange(count, dtype=np.int64), parts=tuple(parts))


def real_parts(crops_dir: Path, split: str) -> tuple[list[int], tuple[ShardPart, ...]]:
    """Return the ids of a split's pictures, and the parts that hold their central 256 of 304 pixels.

    Raises:
        ValueError: shards are missing, or are not those of images.parquet.
    """
    image_ids, parts = _read_parts(crops_dir / split, REAL_LOAD_SIZE, REAL_CROP_SIZE)
    if image_ids != [image["image_id"] for image in read_images(crops_dir, split)]:
        raise ValueError(f"{crops_dir / split} does not hold the pictures of images.parquet; rerun `dvc repro`")
    return image_ids, parts


def _of_method(folder: Path, rows: list[dict[str, Any]]) -> PictureSet:
    sample_ids, parts = _read_parts(folder, None, None)
    if sample_ids != [row["sample_id"] for row in rows]:
        raise ValueError(
            f"{folder} holds {len(sample_ids)} pictures that are not the {len(rows)} of samples.parquet; "
            "rerun `dvc repro generate_samples`"
        )
    return PictureSet(rows=rows, places=np.arange(len(rows), dtype=np.int64), parts=parts)


def _read_parts(
    folder: Path, stored_size: int | None, image_size: int | None
) -> tuple[list[int], tuple[ShardPart, ...]]:
    """Read the ids of a folder's shards; without sizes their pictures are taken whole, at the only size they have."""
    paths = sorted(folder.glob("shard_*.arrow"))
    if not paths:
        raise ValueError(f"{folder} holds no shard_*.arrow; run `dvc repro`")
    image_ids: list[int] = []
    parts: list[ShardPart] = []
    for path in paths:
        size = stored_size or _only_size(path)
        shard = read_shard(path, size)
        image_ids += shard.image_ids
        part = ShardPart(path=path, count=len(shard.image_ids), stored_size=size, image_size=image_size or size)
        parts.append(part)
    sizes = {part.image_size for part in parts}
    if len(sizes) > 1:
        raise ValueError(f"{folder} holds pictures of several sizes, {sorted(sizes)}; rerun `dvc repro`")
    return image_ids, tuple(parts)


def _only_size(path: Path) -> int:
    try:
        names = pa.ipc.open_file(pa.memory_map(str(path))).schema.names
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a whole Arrow file: {error}; rerun `dvc repro`") from error
    sizes = [int(name.removeprefix("image_")) for name in names if name.removeprefix("image_").isdecimal()]
    if len(sizes) != 1:
        raise ValueError(f"{path} holds pictures of sizes {sizes}; one size was expected; rerun `dvc repro`")
    return sizes[0]
