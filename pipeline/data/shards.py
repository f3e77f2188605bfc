"""Image shards: Arrow IPC files of fixed-shape uint8 tensors, uncompressed, so that each picture has its place.

A picture is decoded once, when its shard is written; whatever reads it later gathers rows. A shard holds one tensor
column a load size, so that a reader of 76x76 pictures never touches the bytes of the 304x304 ones.

`read_shard` maps a shard into memory. `ImageShards` reads random rows at their places in the files instead: no page
stays mapped, so a process that walks through a data set of any size stays small, and a row costs one call in place of
several page faults.
"""

import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data.files import replaced_file
from pipeline.data.tables import require_contract

CONTRACT = "shard/v1"

# Side of a picture that a network sees -> side it is stored at: 76/64 of it, room for random crops, as published.
LOAD_SIZES = {64: 76, 256: 304}

Images = npt.NDArray[np.uint8]  # (N, H, W, 3)


class Shard(NamedTuple):
    """One mapped shard."""

    image_ids: list[int]  # N
    pixels: Images  # (N, S, S, 3), on the disk until touched
    pixels_offset: int  # of the first pixel in the file, in bytes


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
    """The pictures of one split at one load size, on the disk until asked for, in the order of images.parquet."""

    def __init__(self, folder: Path, load_size: int):
        """Open every shard of `folder`.

        Raises:
            ValueError: there is no shard, one is torn, of another contract, or without this load size.
            OSError: this system cannot read at a place in a file.
        """
        if not hasattr(os, "preadv"):
            raise OSError("this system lacks os.preadv, which reading shards needs: use Linux, macOS or WSL")
        paths = sorted(folder.glob("shard_*.arrow"))
        if not paths:
            raise ValueError(f"{folder} holds no shard_*.arrow: run `dvc repro crop_images`")
        self.load_size = load_size
        self.image_ids: list[int] = []
        self._paths = paths
        self._descriptors: list[int] = []
        weakref.finalize(self, _close, self._descriptors)
        self._offsets: list[int] = []  # of each file's first pixel
        starts = [0]
        for path in paths:
            shard = read_shard(path, load_size)
            self.image_ids += shard.image_ids
            self._offsets.append(shard.pixels_offset)
            self._descriptors.append(os.open(path, os.O_RDONLY))
            starts.append(len(self.image_ids))
        self._starts = np.array(starts)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return int(self._starts[-1])

    @property
    def num_bytes(self) -> int:
        """Return what the pictures take in memory."""
        return len(self) * self.load_size**2 * 3

    def gather(self, indices: npt.NDArray[np.int64]) -> Images:
        """Read the pictures at `indices`, as (len(indices), S, S, 3) uint8 in the order asked for.

        Raises:
            ValueError: a shard has become shorter since it was opened.
        """
        images = np.empty((len(indices), self.load_size, self.load_size, 3), np.uint8)
        parts = np.searchsorted(self._starts, indices, side="right") - 1
        for image, part, row in zip(images, parts.tolist(), (indices - self._starts[parts]).tolist(), strict=True):
            offset = self._offsets[part] + row * image.nbytes
            if os.preadv(self._descriptors[part], [image.data], offset) != image.nbytes:
                raise ValueError(f"{self._paths[part]} became shorter since it was opened; rerun `dvc repro`")
        return images

    def all(self) -> Images:
        """Read every picture."""
        return self.gather(np.arange(len(self)))


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def read_shard(path: Path, size: int) -> Shard:
    """Map one shard; its (N, size, size, 3) uint8 pictures stay on the disk until touched.

    Raises:
        ValueError: the file is torn, of another contract, or has no pictures of this size.
    """
    try:
        file_bytes = pa.memory_map(str(path)).read_buffer()
        table = pa.ipc.open_file(pa.BufferReader(file_bytes)).read_all()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{path} is not a whole Arrow file: {error}; rerun `dvc repro`") from error
    require_contract(path, table.schema.metadata, CONTRACT)
    if f"image_{size}" not in table.column_names:
        raise ValueError(f"{path} has no pictures of {size}x{size}, only {table.column_names[1:]}")
    if table.column("image_id").num_chunks != 1:
        raise ValueError(f"{path} does not hold one record batch; rerun `dvc repro`")
    column = table.column(f"image_{size}").chunk(0)
    assert isinstance(column, pa.FixedShapeTensorArray), f"{path}: image_{size} is {column.type}"
    image_ids = [int(image_id) for image_id in table.column("image_id").to_numpy()]
    pixels = column.to_numpy_ndarray()
    return Shard(image_ids, pixels, pixels.ctypes.data - file_bytes.address)
