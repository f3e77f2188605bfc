"""One entry to every source: it picks the reader and checks what all owe; damage of any kind ends in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data import sources
from pipeline.data.records import OnBadImage, SplitRule
from pipeline.data.sources import Source, SourceName, read_source
from tests.conftest import write_lines
from tests.source_data import refusal, write_coco, write_own, write_oxford


def write_own_parquet(root: Path) -> Path:
    root.mkdir()
    columns = {"path": ["a.jpg", "b.jpg"], "captions": [["a", "b"], ["c", "d"]], "split": ["train", "test"]}
    pq.write_table(pa.table({**columns, "x": [1.0, 2], "y": [1.0, 2], "width": [3, 4], "height": [3, 4]}), root / NAME)
    return root


NAME = "images.parquet"
WRITERS: dict[SourceName, Callable[[Path], Path]] = {"oxford": write_oxford, "coco": write_coco, "own": write_own}
SPLITS: dict[SourceName, SplitRule] = {
    "cub": "testclasses",
    "oxford": "testclasses",
    "coco": "official",
    "own": "official",
}


def read(root: Path, source: SourceName, on_bad_image: OnBadImage = "fail", captions_per_image: int = 2) -> Source:
    return read_source(
        root,
        source=source,
        split=SPLITS[source],
        captions_per_image=captions_per_image,
        on_bad_image=on_bad_image,
    )


@pytest.fixture(params=get_args(SourceName))
def data_set(request: pytest.FixtureRequest, cub_root: Path, tmp_path: Path) -> tuple[SourceName, Path]:
    source: SourceName = request.param
    return source, cub_root if source == "cub" else WRITERS[source](tmp_path / source)


def test_every_source_gives_whole_records_sorted_by_id(data_set: tuple[SourceName, Path]) -> None:
    source, root = data_set
    records, bad_images = read(root, source)
    ids = [record.image_id for record in records]
    assert ids == sorted(set(ids)) and not bad_images
    assert {record.split for record in records} == {"train", "test"}
    assert all(record.image_path.is_relative_to(root) and len(record.captions) == 2 for record in records)
    names = {record.class_id: record.class_name for record in records}
    assert all(names[record.class_id] == record.class_name for record in records)


def test_a_picture_without_enough_captions_ends_the_reading_or_is_listed(data_set: tuple[SourceName, Path]) -> None:
    source, root = data_set
    message = refusal(lambda: read(root, source, captions_per_image=11))
    assert str(root) in message and "crop_images.captions_per_image = 11" in message
    # All are bad: skipping them leaves nothing to train on, which no policy allows.
    assert str(root) in refusal(lambda: read(root, source, "skip", 11))


def test_a_split_that_a_source_lacks_is_refused_by_the_key(data_set: tuple[SourceName, Path]) -> None:
    source, root = data_set
    lacking: dict[SourceName, SplitRule] = {
        "cub": "official",
        "oxford": "zero_shot",
        "coco": "testclasses",
        "own": "zero_shot",
    }
    message = refusal(
        lambda: read_source(root, source=source, split=lacking[source], captions_per_image=1, on_bad_image="skip")
    )
    assert "crop_images.split" in message and lacking[source] in message and SPLITS[source] in message


def test_a_folder_that_is_not_there_is_refused_by_name(data_set: tuple[SourceName, Path]) -> None:
    source, root = data_set
    assert str(root / "nowhere") in refusal(lambda: read(root / "nowhere", source))


def test_one_picture_under_two_ids_is_refused(cub_root: Path) -> None:
    lines = (cub_root / "images.txt").read_text().replace("9 003.Blue_Dot/dot_2.jpg", "9 001.Red_Dot/dot_0.jpg")
    (cub_root / "images.txt").write_text(lines)
    message = refusal(lambda: read(cub_root, "cub"))
    assert str(cub_root / "images/001.Red_Dot/dot_0.jpg") in message and "as image 1 and 9; keep one" in message


@pytest.mark.parametrize(
    ("test_classes", "empty"), [([], "test"), (["001.Red_Dot", "002.Green_Dot", "003.Blue_Dot"], "train")]
)
def test_a_split_without_a_picture_is_refused_by_the_key(test_classes: list[str], empty: str, cub_root: Path) -> None:
    write_lines(cub_root / "testclasses.txt", test_classes)
    message = refusal(lambda: read(cub_root, "cub"))
    assert f"{cub_root}: no picture is in the {empty} split; check crop_images.split" in message


def test_the_modules_table_names_every_source_and_every_split_rule() -> None:
    rows = [line for line in str(sources.__doc__).splitlines() if line.startswith("| ")]
    assert all(any(row.startswith(f"| {source} ") for row in rows) for source in get_args(SourceName))
    assert all(any(rule in row for row in rows) for rule in get_args(SplitRule))


def damaged(content: bytes, data: st.DataObject) -> bytes:
    """Cut, alter, insert or repeat some bytes."""
    start = data.draw(st.integers(0, len(content)), label="start")
    end = data.draw(st.integers(start, min(len(content), start + 40)), label="end")
    alter = st.one_of(
        st.binary(max_size=8),
        st.sampled_from(
            [b"", b"\0", b"\n", b'"', b"-", b"9" * 30, b"nan", b"null", b"\xff", b"../", b"\\ud800", b"{}"]
        ),
    )
    if data.draw(st.booleans(), label="cut"):
        return content[:start]
    return content[:start] + data.draw(alter, label="put") * data.draw(st.integers(1, 3), label="times") + content[end:]


@pytest.mark.parametrize("source", ["cub", "oxford", "coco", "own", NAME])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_a_file_ends_in_anything_but_one_line(
    source: str, data: st.DataObject, cub_root: Path, tmp_path: Path
) -> None:
    root, name = tmp_path / source, source
    if source == "cub":
        root = cub_root
    elif not root.exists():
        (write_own_parquet if source == NAME else WRITERS[source])(root)
    name = "own" if source == NAME else source
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".jpg")
    path = data.draw(st.sampled_from(files), label="file")
    whole = path.read_bytes()
    try:
        path.write_bytes(damaged(whole, data))
        for on_bad_image in ("fail", "skip"):
            try:
                found = read(root, name, on_bad_image)
            except ValueError as error:
                assert type(error) is ValueError and "\n" not in str(error) and str(root) in str(error), repr(error)
            else:
                assert all("\n" not in bad.reason and str(root) in bad.reason for bad in found.bad_images)
    finally:
        path.write_bytes(whole)
