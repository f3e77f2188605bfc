"""Parquet tables: whole round trips, stable bytes, and refusals that name the file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.files import file_sha256
from pipeline.data.tables import (
    IMAGES,
    SAMPLES,
    EncoderId,
    embeddings_schema,
    read_embeddings,
    read_encoder,
    read_images,
    read_table,
    write_table,
)

DIM = 3


def image_row(image_id: int, split: str = "train") -> dict[str, object]:
    return {
        "image_id": image_id,
        "class_id": image_id % 2,
        "class_name": "001.Bird",
        "split": split,
        "file_name": f"001.Bird/{image_id}.jpg",
        "width": 500,
        "height": 375,
        "bbox": [1.5, 2.0, 100.25, 90.0],
        "crop_box": [0, 1, 105, 100],
        "object_area_ratio_before": 0.1,
        "object_area_ratio": 0.9,
        "captions": ["a bird", "ein Vögelchen \U0001f426"],
    }


def write_embeddings(path: Path, image_ids: list[int], values: np.ndarray | None = None) -> None:
    """Write one row an entry of `image_ids`; by default row r holds (r, r, r)."""
    if values is None:
        values = np.repeat(np.arange(len(image_ids)), DIM).reshape(-1, DIM)
    columns = [
        pa.array(image_ids, pa.int64()),
        pa.array(range(len(image_ids)), pa.int32()),
        pa.array(["a bird"] * len(image_ids), pa.string()),
        pa.array(values.astype(np.float32).tolist(), pa.list_(pa.float32(), DIM)),
    ]
    write_table(path, pa.Table.from_arrays(columns, schema=embeddings_schema(DIM, {"name": "gru"})))


def test_images_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [image_row(3), image_row(1, "test"), image_row(2)]
    write_table(tmp_path / "images.parquet", pa.Table.from_pylist(rows, schema=IMAGES))
    assert read_table(tmp_path / "images.parquet", "images/v1").to_pylist() == rows


def test_a_split_is_read_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [image_row(3), image_row(1, "test"), image_row(2)]
    write_table(tmp_path / "images.parquet", pa.Table.from_pylist(rows, schema=IMAGES))
    assert [row["image_id"] for row in read_images(tmp_path, "train")] == [3, 2]
    assert [row["image_id"] for row in read_images(tmp_path, "test")] == [1]


def test_equal_tables_have_equal_bytes(tmp_path: Path) -> None:
    rows = [image_row(3), image_row(1, "test")]
    for name in ("one.parquet", "two.parquet", "one.parquet"):
        write_table(tmp_path / name, pa.Table.from_pylist(rows, schema=IMAGES))
    assert file_sha256(tmp_path / "one.parquet") == file_sha256(tmp_path / "two.parquet")


def test_embeddings_come_back_by_picture_and_caption(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((6, DIM)).astype(np.float32)
    write_embeddings(tmp_path / "e.parquet", [7, 7, 7, 2, 2, 2], values)
    read = read_embeddings(tmp_path / "e.parquet").vectors
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values.reshape(2, 3, DIM))


def test_embeddings_in_several_row_groups_come_back_whole(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "one.parquet", [1, 1, 2, 2, 3, 3])
    pq.write_table(pq.read_table(tmp_path / "one.parquet"), tmp_path / "many.parquet", row_group_size=1)
    many, one = (read_embeddings(tmp_path / f"{name}.parquet") for name in ("many", "one"))
    np.testing.assert_array_equal(many.vectors, one.vectors)


def test_the_encoder_stands_in_the_metadata() -> None:
    metadata = embeddings_schema(DIM, {"name": "gru", "sha256": "ab"}).metadata
    assert metadata == {b"contract": b"embeddings/v1", b"encoder_name": b"gru", b"encoder_sha256": b"ab"}


def test_a_table_without_a_contract_is_our_own_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        write_table(tmp_path / "t.parquet", pa.table({"image_id": [1]}))
    assert not list(tmp_path.iterdir())


def refusal(read: Callable[[], object], path: Path) -> str:
    with pytest.raises(ValueError) as refused:
        read()
    message = str(refused.value)
    assert str(path) in message
    return message


def test_a_missing_table_is_refused_with_the_way_to_make_it(tmp_path: Path) -> None:
    path = tmp_path / "images.parquet"
    assert "run `dvc repro` to make it" in refusal(lambda: read_images(tmp_path, "train"), path)


def test_another_contract_is_refused_with_both_names(tmp_path: Path) -> None:
    path = tmp_path / "samples.parquet"
    write_table(path, pa.Table.from_pylist([], schema=SAMPLES))
    message = refusal(lambda: read_table(path, "images/v1"), path)
    assert "'samples/v1' is not 'images/v1'" in message and "dvc repro" in message
    pq.write_table(pa.table({"image_id": [1]}), path)
    assert "'none' is not 'images/v1'" in refusal(lambda: read_table(path, "images/v1"), path)


def test_a_torn_table_is_refused_wherever_it_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    write_embeddings(path, [1, 1, 2, 2])
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert "is not a whole Parquet file" in refusal(lambda: read_embeddings(path), path)


@pytest.mark.parametrize("part", ["first page", "footer"])
def test_a_table_with_altered_bytes_is_refused_by_name(part: str, tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    write_embeddings(path, [1, 1, 2, 2])
    altered = bytearray(path.read_bytes())
    footer = len(altered) - 8 - int.from_bytes(altered[-8:-4], "little")
    place = 4 if part == "first page" else footer
    altered[place : place + 20] = b"\xff" * 20
    path.write_bytes(altered)
    refusal(lambda: read_embeddings(path), path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_embedding_that_is_not_finite_is_refused(value: float, tmp_path: Path) -> None:
    values = np.zeros((4, DIM))
    values[2, 1] = value
    write_embeddings(tmp_path / "e.parquet", [1, 1, 2, 2], values)
    message = refusal(lambda: read_embeddings(tmp_path / "e.parquet"), tmp_path / "e.parquet")
    assert "NaN or infinite; rerun embed_captions" in message


def test_captions_that_do_not_share_out_equally_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    write_embeddings(path, [1, 1, 2])
    assert "not the same number of captions for each picture" in refusal(lambda: read_embeddings(path), path)


@pytest.mark.parametrize("image_ids", [[1, 1, 1, 2], [1, 2, 1, 2], [1, 2, 2, 1]], ids=str)
def test_a_picture_whose_rows_are_fewer_or_apart_is_refused(image_ids: list[int], tmp_path: Path) -> None:
    write_embeddings(tmp_path / "e.parquet", image_ids)
    refusal(lambda: read_embeddings(tmp_path / "e.parquet"), tmp_path / "e.parquet")


def test_an_empty_table_is_refused_by_name(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "e.parquet", [])
    refusal(lambda: read_embeddings(tmp_path / "e.parquet"), tmp_path / "e.parquet")


def test_a_file_of_embeddings_names_its_encoder(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    empty = embeddings_schema(DIM, {"name": "gru", "sha256": "ab12"}).empty_table()
    write_table(path, empty)
    assert read_encoder(path) == EncoderId("gru", "ab12")
    write_embeddings(path, [1])  # its schema has a name alone
    with pytest.raises(ValueError, match=r"train.parquet: its schema has no encoder_sha256; rerun embed_captions"):
        read_encoder(path)
