"""The embeddings that came with the published code, brought from its pickles into Parquet with the sums of their files.

A data folder of the published code (Data/birds, Data/flowers, data/coco) holds train/ and test/, each with
  filenames.pickle               N keys such as `<class_dir>/<file>`, without .jpg
  class_info.pickle              N class ids, in the same order; COCO has none
  char-CNN-RNN-embeddings.pickle N arrays (K, 1024) or one (N, K, 1024): K = 10 captions, 5 for COCO

Each becomes <split>.parquet of contract released_embeddings/v1: one row a caption, K rows for each picture side by
side, in the order of the pickles. file_name equals images.parquet's.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.files import file_sha256, replaced_folder
from pipeline.data.records import path_inside
from pipeline.data.released_pickles import read_matrices, read_names, read_whole_numbers
from pipeline.data.tables import EncoderId, read_table

CONTRACT = "released_embeddings/v1"
EMBEDDINGS_NAME = "char-CNN-RNN-embeddings.pickle"
SPLITS = ("train", "test")
ROWS_PER_GROUP = 8192  # what the writer holds beside the table: 32 MB of 1024 numbers, not all of them once more

logger = logging.getLogger(__name__)


class Released(NamedTuple):
    """One split's released embeddings."""

    file_names: list[str]  # N, with .jpg
    class_ids: list[int] | None  # N; None where the data set came without classes
    vectors: npt.NDArray[np.float32]  # (N, K, embedding_dim)


class ImportedSplit(NamedTuple):
    """A Parquet file that was written, and what it holds."""

    path: Path
    num_images: int
    captions_per_image: int
    embedding_dim: int


def import_released(
    released_dir: Path,
    out_dir: Path,
    *,
    embeddings_name: str = EMBEDDINGS_NAME,
    captions_per_image: int | None = None,
) -> list[ImportedSplit]:
    """Write the splits of a released data folder to out_dir/{train,test}.parquet: all of them, or nothing.

    Args:
        released_dir: with train/ or test/ or both.
        out_dir: a new folder, or one that holds only what this wrote before.
        embeddings_name: the file of embeddings in each split's folder.
        captions_per_image: keep the first so many of each picture; None: all, and each picture must have as many.

    Raises:
        ValueError: a file is missing, torn, would run code, or does not fit the others; the message names it.
    """
    if embeddings_name in ("", ".", "..") or Path(embeddings_name).name != embeddings_name or "\0" in embeddings_name:
        raise ValueError(f"--embeddings {embeddings_name!r}: give the plain name of a file in train/ and test/")
    if captions_per_image is not None and captions_per_image < 1:
        raise ValueError(f"--captions {captions_per_image}: give a whole number from 1")
    splits = _splits_in(released_dir, embeddings_name)
    _require_own_folder(out_dir)
    imported: list[ImportedSplit] = []
    split_of: dict[str, str] = {}
    with replaced_folder(out_dir.resolve()) as partial_dir:  # resolved, so that a link to another disk stays one
        for split in splits:
            released = _read_split(released_dir / split, embeddings_name, captions_per_image)
            for name in released.file_names:
                if split_of.setdefault(name, split) != split:
                    raise ValueError(f"{released_dir}: {name} is in train/ and in test/; bring lists that share none")
            num_images, num_captions, dim = released.vectors.shape
            if imported and imported[0].embedding_dim != dim:
                raise ValueError(
                    f"{released_dir}: embeddings of {imported[0].embedding_dim} numbers in train/ and of {dim} in "
                    "test/; bring both from one encoder"
                )
            metadata = _metadata(released_dir / split, embeddings_name)
            path, table = partial_dir / f"{split}.parquet", _table(released, metadata)
            pq.write_table(table, path, row_group_size=ROWS_PER_GROUP, write_page_checksum=True)
            imported.append(ImportedSplit(out_dir / f"{split}.parquet", num_images, num_captions, dim))
            del released, table  # its vectors are not needed beside those of the next split
    return imported


def read_released(path: Path) -> Released:
    """Read what import_released wrote.

    Raises:
        ValueError: the file is missing, torn or of another contract, a value is not finite, or the pictures do not
            have the same number of captions, side by side.
    """
    again = "run `stackgan import-embeddings` to write it"
    table = read_table(path, CONTRACT, again)
    per_image = int(pc.max(table.column("caption_id")).as_py() or 0) + 1
    firsts = table.take(np.arange(0, table.num_rows, per_image))
    is_whole = table.num_rows and table.num_rows % per_image == 0
    if not is_whole or not table.drop_columns("embedding").equals(_captions(firsts, per_image)):
        raise ValueError(f"{path}: not the same number of captions for each picture, side by side; {again}")
    values = np.asarray(pc.list_flatten(table.column("embedding")), dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: an embedding is NaN or infinite; {again}")
    class_ids = firsts.column("class_id").to_pylist()
    return Released(
        file_names=[str(name) for name in firsts.column("file_name").to_pylist()],
        class_ids=None if None in class_ids else [int(class_id) for class_id in class_ids if class_id is not None],
        vectors=values.reshape(len(class_ids), per_image, -1),
    )


def released_encoder(path: Path) -> EncoderId:
    """Return the name of the encoder and the sha256 of the pickle that a file which read_released accepts came from."""
    metadata = pq.read_schema(path).metadata
    return EncoderId(metadata[b"encoder_name"].decode(), metadata[b"encoder_sha256"].decode())


def _splits_in(released_dir: Path, embeddings_name: str) -> list[str]:
    """Return the splits whose folder holds a file of a list or of embeddings; COCO's test/ has neither."""
    names = ("filenames.pickle", "class_info.pickle", embeddings_name)
    splits = [split for split in SPLITS if any((released_dir / split / name).exists() for name in names)]
    if not splits:
        raise ValueError(
            f"{released_dir} holds neither train/ nor test/ with filenames.pickle and {embeddings_name}: give the data "
            "folder of the published code, such as Data/birds"
        )
    for split in sorted(set(SPLITS) - set(splits)):
        logger.info("%s holds none of %s: passed over", released_dir / split, ", ".join(names))
    return splits


def _require_own_folder(out_dir: Path) -> None:
    """Refuse a folder that holds anything else: it is replaced as a whole, so that no older split stays in it."""
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"--out {out_dir} is a file; give a folder")
    others = sorted({path.name for path in out_dir.glob("*")} - {f"{split}.parquet" for split in SPLITS})
    if others:
        raise ValueError(f"--out {out_dir} holds {others[0]}, which this command did not write; give a new folder")


def _read_split(split_dir: Path, embeddings_name: str, captions_per_image: int | None) -> Released:
    names_path, classes_path = split_dir / "filenames.pickle", split_dir / "class_info.pickle"
    embeddings_path = split_dir / embeddings_name
    file_names = [_file_name(key, names_path) for key in read_names(names_path)]
    if not file_names:
        raise ValueError(f"{names_path} lists no picture; bring it as it was released")
    if len(set(file_names)) < len(file_names):
        raise ValueError(f"{names_path} lists a picture with .jpg and without; bring a list of distinct names")
    class_ids = read_whole_numbers(classes_path) if classes_path.exists() else None
    matrices = read_matrices(embeddings_path)
    for path, values in ((classes_path, class_ids), (embeddings_path, matrices)):
        if values is not None and len(values) != len(file_names):
            raise ValueError(
                f"{path} is for {len(values)} pictures, {names_path} lists {len(file_names)}; bring files that belong "
                "together"
            )
    return Released(file_names, class_ids, _stacked(matrices, file_names, captions_per_image, embeddings_path))


def _file_name(key: str, names_path: Path) -> str:
    """Return a key with .jpg, as images.parquet writes the name of the picture."""
    path_inside(Path("images"), key, names_path)
    if str(PurePosixPath(key)) != key:  # a//b, ./a: the same picture under another name
        raise ValueError(f"{names_path}: {key!a:.200} is no plain path such as <class>/<file>; correct it")
    return key.removesuffix(".jpg") + ".jpg"


def _stacked(
    matrices: Sequence[npt.NDArray[np.floating[Any]]],
    file_names: Sequence[str],
    captions_per_image: int | None,
    path: Path,
) -> npt.NDArray[np.float32]:
    """Copy N arrays (K, dim) of finite numbers into one (N, K, dim); `captions_per_image` keeps the first of each."""
    num_captions, dim = matrices[0].shape
    for name, matrix in zip(file_names, matrices, strict=True):
        if matrix.shape[1] != dim:
            raise ValueError(
                f"{path}: {name} has embeddings of {matrix.shape[1]} numbers, {file_names[0]} of {dim}; bring the file "
                "as it was released"
            )
        if captions_per_image is None and len(matrix) != num_captions:
            raise ValueError(
                f"{path}: {name} has {len(matrix)} captions, {file_names[0]} has {num_captions}; give --captions "
                f"{min(map(len, matrices))} to keep the first of each picture"
            )
        if captions_per_image and len(matrix) < captions_per_image:
            raise ValueError(
                f"{path}: {name} has {len(matrix)} captions; give --captions {min(map(len, matrices))} or less"
            )
    vectors = np.empty((len(matrices), captions_per_image or num_captions, dim), np.float32)
    with np.errstate(over="ignore"):  # a double too large for a float becomes infinite, and is refused
        for index, (name, matrix) in enumerate(zip(file_names, matrices, strict=True)):
            vectors[index] = matrix[: vectors.shape[1]]
            if not np.isfinite(vectors[index]).all():
                raise ValueError(
                    f"{path}: an embedding of {name} is NaN or infinite; bring the file as it was released"
                )
    return vectors


def _metadata(split_dir: Path, embeddings_name: str) -> dict[str, str]:
    """Name the contract, the encoder and the sums of the files, class_info's where there is one."""
    classes_path = split_dir / "class_info.pickle"
    return {
        "contract": CONTRACT,
        "encoder_name": embeddings_name.removesuffix(".pickle").removesuffix("-embeddings"),
        "encoder_sha256": file_sha256(split_dir / embeddings_name),
        "filenames_sha256": file_sha256(split_dir / "filenames.pickle"),
        **({"class_info_sha256": file_sha256(classes_path)} if classes_path.exists() else {}),
    }


def _table(released: Released, metadata: Mapping[str, str]) -> pa.Table:
    num_images, num_captions, dim = released.vectors.shape
    pictures = pa.table(
        {
            "file_name": pa.array(released.file_names, pa.string()),
            "class_id": pa.array(released.class_ids or [None] * num_images, pa.int64()),
        }
    )
    embeddings = pa.FixedSizeListArray.from_arrays(pa.array(released.vectors.reshape(-1)), dim)
    rows = _captions(pictures, num_captions).append_column("embedding", embeddings)
    return rows.replace_schema_metadata(dict(metadata))


def _captions(pictures: pa.Table, num_captions: int) -> pa.Table:
    """Return the rows without embeddings: for each picture `num_captions` side by side, counted from 0."""
    rows = pictures.take(np.repeat(np.arange(pictures.num_rows), num_captions))
    numbers = np.tile(np.arange(num_captions, dtype=np.int32), pictures.num_rows)
    columns = [rows.column("file_name"), pa.chunked_array([pa.array(numbers)]), rows.column("class_id")]
    return pa.Table.from_arrays(columns, names=["file_name", "caption_id", "class_id"])
