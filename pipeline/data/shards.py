"""Image shards: Arrow IPC files of fixed-shape uint8 tensors, uncompressed, read by memory map.

A picture is decoded once, when its shard is written; whatever reads it later gathers rows. A shard holds one tensor
column a load size, so that a reader of 76x76 pictures never touches the bytes of the 304x304 ones.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data.files import replaced_file
from pipeline.data.tables import require_contract

CONTRACT = "shard/v1"

# Side of a picture that a network sees -> side it is stored at: 76/64 of it, room for random crops, as published.
LOAD_SIZES = {64: 76, 256: 304}

Images = npt.NDArray[np.uint8]  # (N, H, W, 3)


def shard_path(folder: Path, index: int) -> Path:
    """Return the path of shard `index` of a split's folder."""
    return folder / f"shard_{index:05d}.arrow"


def write_shard(path: Path, image_ids: Sequence[int], images: Mapping[int, Images]) -> None:
    """Write one shard.

    Args:
        path: the file, replaced whole.
        image_ids: N ids.
        images: for each size S, (N, S, S, 3) uint8.
    """
    fields: list[pa.Field[Any]] = [pa.field("image_id", pa.int64())]
    columns: list[pa.Array[Any]] = [pa.array(image_ids, pa.int64())]
    for size, pixels in sorted(images.items()):
        assert pixels.shape == (len(image_ids), size, size, 3) and pixels.dtype == np.uint8, (size, pixels.shape)
        tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(pixels))
        fields.append(pa.field(f"image_{size}", tensor.type))
        columns.append(tensor)
    schema = pa.schema(fields, metadata={"contract": CONTRACT})
    with replaced_file(path) as partial_path, pa.ipc.new_file(str(partial_path), schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))


class ImageShards:
    """The pictures of one split at one load size, memory-mapped, in the order of images.parquet."""

    def __init__(self, folder: Path, load_size: int):
        """Map every shard of `folder`.

        Raises:
            ValueError: there is no shard, one is torn, of another contract, or without this load size.
        """
        self._parts: list[Images] = []
        image_ids: list[int] = []
        for path in sorted(folder.glob("shard_*.arrow")):
            ids, pixels = read_shard(path, load_size)
            image_ids += ids
            self._parts.append(pixels)
        if not self._parts:
            raise ValueError(f"{folder} holds no shard_*.arrow: run `dvc repro crop_images`")
        self.load_size = load_size
        self.image_ids = image_ids
        self._starts = np.cumsum([0] + [len(part) for part in self._parts])

    def __len__(self) -> int:
        """Return the number of pictures."""
        return int(self._starts[-1])

    def gather(self, indices: npt.NDArray[np.int64]) -> Images:
        """Copy the pictures at `indices` out of the map, as (len(indices), S, S, 3) uint8 in the order asked for."""
        images = np.empty((len(indices), self.load_size, self.load_size, 3), np.uint8)
        parts = np.searchsorted(self._starts, indices, side="right") - 1
        for part in np.unique(parts):
            rows = parts == part
            images[rows] = self._parts[part][indices[rows] - self._starts[part]]
        return images

    def all(self) -> Images:
        """Copy every picture out of the map."""
        return np.concatenate(self._parts)


def read_shard(path: Path, size: int) -> tuple[list[int], Images]:
    """Map one shard: its image ids and its (N, size, size, 3) uint8 pictures, which stay on the disk until touched.

    Raises:
        ValueError: the file is torn, of another contract, or has no pictures of this size.
    """
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        require_contract(path, reader.schema.metadata, CONTRACT)
        table = reader.read_all()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{path} is not a whole Arrow file: {error}; rerun `dvc repro`") from error
    if f"image_{size}" not in table.column_names:
        raise ValueError(f"{path} has no pictures of {size}x{size}, only {table.column_names[1:]}")
    if table.column("image_id").num_chunks != 1:
        raise ValueError(f"{path} does not hold one record batch; rerun `dvc repro`")
    column = table.column(f"image_{size}").chunk(0)
    assert isinstance(column, pa.FixedShapeTensorArray), f"{path}: image_{size} is {column.type}"
    return [int(image_id) for image_id in table.column("image_id").to_numpy()], column.to_numpy_ndarray()
