"""Parquet tables with a named contract: files carry `contract=<name>/v<n>`, another one is refused.

images.parquet      one row a picture, in the order of the shards of its split
embeddings.parquet  one row a caption, `captions_per_image` rows for each picture, in the order of images.parquet
samples.parquet     one row a generated picture
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.files import replaced_file

REMEDY = "run `dvc repro` to make it"

BOX = pa.list_(pa.float32(), 4)

IMAGES = pa.schema(
    [
        ("image_id", pa.int64()),
        ("class_id", pa.int64()),
        ("class_name", pa.string()),
        ("split", pa.string()),
        ("file_name", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bbox", BOX),
        ("crop_box", pa.list_(pa.int32(), 4)),
        ("object_area_ratio_before", pa.float64()),
        ("object_area_ratio", pa.float64()),
        ("captions", pa.list_(pa.string())),
    ],
    metadata={"contract": "images/v1"},
)

SAMPLES = pa.schema(
    [
        ("sample_id", pa.int64()),
        ("method", pa.string()),
        ("image_id", pa.int64()),
        ("class_id", pa.int64()),
        ("caption_id", pa.int32()),
        ("caption", pa.string()),
        ("seed", pa.int64()),
    ],
    metadata={"contract": "samples/v1"},
)


def embeddings_schema(embedding_dim: int, encoder: Mapping[str, str]) -> pa.Schema:
    """Return the schema of embeddings.parquet; `encoder` (name, sha256, ...) goes into its metadata."""
    return pa.schema(
        [
            ("image_id", pa.int64()),
            ("caption_id", pa.int32()),
            ("caption", pa.string()),
            ("embedding", pa.list_(pa.float32(), embedding_dim)),
        ],
        metadata={"contract": "embeddings/v1", **{f"encoder_{key}": value for key, value in encoder.items()}},
    )


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table whose schema names its contract, byte-identical for equal tables."""
    assert table.schema.metadata and b"contract" in table.schema.metadata, f"{path}: the schema names no contract"
    with replaced_file(path) as partial_path:
        pq.write_table(table, partial_path, write_page_checksum=True)


def read_table(path: Path, contract: str, remedy: str = REMEDY) -> pa.Table:
    """Read a table written under `contract`.

    Raises:
        ValueError: the file is missing, not Parquet, or of another contract.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: {remedy}")
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a whole Parquet file ({error}); {remedy}") from error
    require_contract(path, table.schema.metadata, contract, remedy)
    return table


def read_images(crops_dir: Path, split: str) -> list[dict[str, Any]]:
    """Read one split's rows of images.parquet, in the order of its shards."""
    table = read_table(crops_dir / "images.parquet", "images/v1")
    return [row for row in table.to_pylist() if row["split"] == split]


def require_contract(path: Path, metadata: Mapping[bytes, bytes] | None, contract: str, remedy: str = REMEDY) -> None:
    """Raise ValueError unless the metadata of the file at `path` names `contract`."""
    found = (metadata or {}).get(b"contract", b"none").decode()
    if found != contract:
        raise ValueError(f"{path}: contract {found!r} is not {contract!r}; {remedy}")


class Embeddings(NamedTuple):
    """One split's embeddings.parquet."""

    image_ids: list[int]  # N
    captions: list[list[str]]  # N lists of K
    vectors: npt.NDArray[np.float32]  # (N, K, embedding_dim)


class EncoderId(NamedTuple):
    """Which text encoder made embeddings; recorded with them, and with the GANs trained on them."""

    name: str
    sha256: str


def read_embedding_dim(path: Path) -> int:
    """Return the length of an embedding, from the file's schema alone."""
    return int(_read_embeddings_schema(path).field("embedding").type.list_size)


def read_encoder(path: Path) -> EncoderId:
    """Return which encoder made a file of embeddings, from its schema alone."""
    metadata = _read_embeddings_schema(path).metadata
    try:
        return EncoderId(metadata[b"encoder_name"].decode(), metadata[b"encoder_sha256"].decode())
    except KeyError as error:
        raise ValueError(f"{path}: its schema has no {error.args[0].decode()}; rerun embed_captions") from None


def _read_embeddings_schema(path: Path) -> pa.Schema:
    if not path.is_file():
        raise ValueError(f"{path} is missing: run `dvc repro` to make it")
    schema = pq.read_schema(path)
    require_contract(path, schema.metadata, "embeddings/v1")
    return schema


def read_embeddings(path: Path) -> Embeddings:
    """Read a split's embeddings.

    Raises:
        ValueError: a value is not finite, or the pictures do not have the same number of captions, side by side.
    """
    table = read_table(path, "embeddings/v1")
    row_ids = [int(image_id) for image_id in table.column("image_id").to_numpy()]
    image_ids = list(dict.fromkeys(row_ids))
    per_image = len(row_ids) // max(len(image_ids), 1)
    if not image_ids or row_ids != [image_id for image_id in image_ids for _ in range(per_image)]:
        raise ValueError(
            f"{path}: not the same number of captions for each picture, side by side; rerun embed_captions"
        )
    values = np.asarray(pc.list_flatten(table.column("embedding")), dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: an embedding is NaN or infinite; rerun embed_captions")
    captions = [str(caption) for caption in table.column("caption").to_pylist()]
    return Embeddings(
        image_ids=image_ids,
        captions=[captions[start : start + per_image] for start in range(0, len(captions), per_image)],
        vectors=values.reshape(len(image_ids), per_image, -1),
    )
