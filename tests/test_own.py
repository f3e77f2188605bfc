"""A user's own pictures: the records are right, each bad input is refused in one line with file, line and remedy."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.cropping import Bbox
from pipeline.data.own import read_own
from pipeline.data.records import BadImages, SourceImage, SplitRule
from tests.conftest import write_lines
from tests.source_data import OWN_COLUMNS, OWN_ROWS, refusal, write_csv, write_own


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_own(tmp_path / "own")


def read(root: Path, split: SplitRule = "official", captions_per_image: int = 2) -> list[SourceImage]:
    return read_own(root, split=split, captions_per_image=captions_per_image, bad=BadImages("fail"))


def test_records_hold_what_the_rows_say_sorted_by_path(root: Path) -> None:
    blue, red, _ = read(root)
    assert red == SourceImage(
        image_id=2,
        class_id=2,
        class_name="red",
        split="train",
        file_name="b/2.jpg",
        image_path=root / "b" / "2.jpg",
        bbox=Bbox(1.5, 2.0, 30.0, 40.0),
        captions=("a red bird, sitting", "a bird that is red"),
    )
    assert (blue.image_id, blue.class_id, blue.split, blue.bbox) == (1, 1, "test", None)
    assert blue.captions == ('a "blue" bird', "a bird in blue")


def test_the_order_of_the_rows_matters_to_the_captions_alone(root: Path) -> None:
    expected = read(root)
    write_csv(root, OWN_COLUMNS[::-1], [row[::-1] for row in OWN_ROWS[::-1]])
    records = read(root)
    assert [record.captions[::-1] for record in records] == [record.captions for record in expected]
    assert [record.image_id for record in records] == [1, 2, 3]


def as_parquet(root: Path, **columns: object) -> None:
    (root / "images.csv").unlink(missing_ok=True)
    pq.write_table(pa.table(columns), root / "images.parquet")


def test_parquet_gives_the_same_records_as_csv(root: Path) -> None:
    expected = read(root)
    paths = ["b/2.jpg", "a/1.png", "c.jpg"]
    as_parquet(
        root,
        path=paths,
        captions=[[row[1] for row in OWN_ROWS if row[0] == path] for path in paths],
        x=[1.5, None, 0],
        y=[2.0, None, 0],
        width=pa.array([30, None, 8], pa.int32()),
        height=[40, None, 9],
        **{"class": ["red", "blue", "red"], "split": pa.array(["train", "test", "train"]).dictionary_encode()},
    )
    assert read(root) == expected


def test_parquet_with_a_caption_a_row_and_numbered_classes_is_read(root: Path) -> None:
    as_parquet(
        root,
        path=["b.jpg", "a.jpg", "b.jpg"],
        caption=["b1", "a1", "b2"],
        **{"class": [7, 10, 7], "split": ["test", "train", "test"]},
    )
    assert [(r.class_id, r.class_name, r.captions) for r in read(root, captions_per_image=1)] == [
        (1, "10", ("a1",)),
        (2, "7", ("b1",)),
    ]


def test_a_folder_named_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    root = tmp_path / "size=3"
    root.mkdir()
    as_parquet(root, path=["a.jpg", "b.jpg"], caption=["a", "b"], split=["train", "test"])
    assert len(read(root, captions_per_image=1)) == 2


def test_a_byte_order_mark_and_foreign_line_ends_are_passed_over(root: Path) -> None:
    expected = read(root)
    content = (root / "images.csv").read_bytes()
    (root / "images.csv").write_bytes(b"\xef\xbb\xbf" + content + b"\r\n\r\n")
    assert read(root) == expected


def test_without_a_class_each_picture_is_its_own_class(root: Path) -> None:
    write_csv(root, ["path", "caption", "split"], [["b.jpg", "b", "train"], ["./a.jpg", "a", "test"]])
    records = read(root, captions_per_image=1)
    assert [(record.class_id, record.class_name) for record in records] == [(1, "a.jpg"), (2, "b.jpg")]


def write_unsplit(root: Path, num_images: int) -> None:
    write_csv(root, ["path", "caption"], [[f"{number}.jpg", "a bird"] for number in range(num_images)])


def test_without_a_split_a_tenth_is_for_testing_and_stays_so_when_pictures_are_added(root: Path) -> None:
    write_unsplit(root, 500)
    few = {record.file_name: record.split for record in read(root, captions_per_image=1)}
    write_unsplit(root, 1000)
    many = {record.file_name: record.split for record in read(root, captions_per_image=1)}
    assert few.items() <= many.items()
    assert {name for name, split in many.items() if split == "test"} == {
        name for name in many if int.from_bytes(hashlib.sha256(name.encode()).digest(), "big") % 10 == 0
    }
    assert 70 <= sum(split == "test" for split in many.values()) <= 130


def test_without_a_split_testclasses_txt_decides_if_it_is_there(root: Path) -> None:
    write_csv(root, OWN_COLUMNS[:-1], [row[:-1] for row in OWN_ROWS])
    write_lines(root / "testclasses.txt", ["red"])
    for split in ("official", "testclasses"):
        assert [record.split for record in read(root, split)] == ["train", "test", "test"]


def test_a_column_of_splits_goes_before_testclasses_txt_unless_the_split_says_so(root: Path) -> None:
    write_lines(root / "testclasses.txt", ["red"])
    assert [record.split for record in read(root, "official")] == ["test", "train", "train"]
    assert [record.split for record in read(root, "testclasses")] == ["train", "test", "test"]


def rewrite(columns: list[str], *rows: list[str]) -> Callable[[Path], object]:
    return lambda root: write_csv(root, columns, list(rows))


def cell(line: int, column: str, value: str) -> Callable[[Path], object]:
    """Change one cell; lines count from 0 below the heading."""

    def damage(root: Path) -> None:
        rows = [list(row) for row in OWN_ROWS]
        rows[line][OWN_COLUMNS.index(column)] = value
        write_csv(root, OWN_COLUMNS, rows)

    return damage


def add(text: bytes) -> Callable[[Path], object]:
    return lambda root: (root / "images.csv").write_bytes((root / "images.csv").read_bytes() + text)


def parquet(**columns: object) -> Callable[[Path], object]:
    return lambda root: as_parquet(root, **columns)


def tear_parquet(root: Path) -> None:
    as_parquet(root, path=["a.jpg"], caption=["a"])
    (root / "images.parquet").write_bytes((root / "images.parquet").read_bytes()[:-20])


CSV, PARQUET = "images.csv", "images.parquet"
# The split, what is done to the data set, the file that must be named, and words of the remedy.
BAD_DATA_SETS: dict[str, tuple[SplitRule, Callable[[Path], object], str, str]] = {
    "no_data_set": ("official", shutil.rmtree, "", "must hold images.csv or images.parquet"),
    "no_table": ("official", lambda root: (root / CSV).unlink(), "", "has no of images.csv and images.parquet"),
    "two_tables": ("official", lambda root: shutil.copy(root / CSV, root / PARQUET), "", "bring one of them"),
    "empty": ("official", lambda root: (root / CSV).write_bytes(b""), CSV, "needs a column path"),
    "no_rows": ("official", rewrite(["path", "caption"]), CSV, "has no rows; add one for each caption"),
    "unknown_column": ("official", rewrite(["path", "captoin"]), CSV, "the column 'captoin', unknown or twice; it may"),
    "column_twice": ("official", rewrite(["path", "caption", "path"]), CSV, "the column 'path', unknown or twice"),
    "semicolons": ("official", rewrite(["path;caption"]), CSV, "the column 'path;caption', unknown or twice"),
    "no_path": ("official", rewrite(["caption", "class"]), CSV, "needs a column path"),
    "no_caption": ("official", rewrite(["path", "class"]), CSV, "and one column caption; it has"),
    "captions_in_csv": ("official", rewrite(["path", "captions"]), CSV, "the column 'captions', unknown"),
    "half_a_box": ("official", rewrite(["path", "caption", "x", "y"]), CSV, "a box needs all of them"),
    "line_too_long": ("official", add(b"a,b,c,d,e,f,g,h,i\n"), CSV, "line 9 has not 8 cells"),
    "line_too_short": ("official", add(b"a.jpg\n"), CSV, "line 9 has not 8 cells"),
    "empty_path": ("official", cell(1, "path", " "), CSV, "line 3 has the path 'None', not text"),
    "quote_left_open": ("official", add(b'a.jpg,"a bird\n'), CSV, "line 9 is no CSV"),
    "quote_in_the_middle": ("official", add(b'a.jpg,"a "bird,,,,,,\n'), CSV, "line 9 is no CSV"),
    "huge_cell": ("official", add(b"a.jpg," + b"x" * 200_000 + b",,,,,,\n"), CSV, "line 9 is no CSV"),
    "not_utf8": ("official", add("grün.jpg".encode("latin-1")), CSV, "save it as UTF-8"),
    "no_test_picture": ("official", rewrite(["path", "caption"], ["a", "b"], ["a", "c"]), CSV, "add a column split"),
    "no_class_column": ("testclasses", rewrite(["path", "caption"], ["a", "b"]), CSV, "has no column class, which"),
    "no_list": ("testclasses", lambda root: None, "testclasses.txt", "bring the list of test classes (one a line, su"),
    "unknown_class": (
        "testclasses",
        lambda root: write_lines(root / "testclasses.txt", ["green"]),
        "testclasses.txt",
        "'green' is no class of this data set, such as 'blue'; correct that line",
    ),
    "parquet_torn": ("official", tear_parquet, PARQUET, "is no whole Parquet file"),
    "parquet_of_text": (
        "official",
        lambda root: (root / CSV).rename(root / PARQUET),
        PARQUET,
        "is no whole Parquet file",
    ),
    "parquet_unknown_column": (
        "official",
        parquet(path=["a"], caption=["a"], index=[1]),
        PARQUET,
        "column 'index', unk",
    ),
    "parquet_both": (
        "official",
        parquet(path=["a"], caption=["a"], captions=[["a"]]),
        PARQUET,
        "one column caption or",
    ),
    "parquet_no_path": ("official", parquet(path=pa.nulls(1), caption=["a"]), PARQUET, "row 1 has the path 'None'"),
    "parquet_path_bytes": ("official", parquet(path=[b"a"], caption=["a"]), PARQUET, "row 1 has the path"),
}

# The same of the picture b/2.jpg alone, which on_bad_image: skip leaves out.
BAD_IMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "other_class": (cell(2, "class", "blue"), "line 4 has another class than"),
    "other_split": (cell(2, "split", "test"), "line 4 has another split than"),
    "other_box": (cell(2, "width", "31"), "line 4 has another width than"),
    "empty_class": (lambda root: [cell_pair(root, "class", "")], "line 2 has the class 'None', not text"),
    "empty_split": (lambda root: [cell_pair(root, "split", "")], "line 2 has the split None; write train or test"),
    "unknown_split": (lambda root: [cell_pair(root, "split", "val")], "line 2 has the split 'val'; write train or"),
    "box_with_a_hole": (lambda root: [cell_pair(root, "x", "")], "line 2 has the box [None, '2', '30', '40']"),
    "box_of_words": (lambda root: [cell_pair(root, "x", "left")], "not four finite numbers"),
    "box_nan": (lambda root: [cell_pair(root, "x", "nan")], "not four finite numbers"),
    "box_infinite": (lambda root: [cell_pair(root, "height", "-inf")], "not four finite numbers"),
    "empty_caption": (cell(2, "caption", " "), "'b/2.jpg' has 1 captions, fewer than crop_images.captions_per_image"),
    "long_caption": (cell(2, "caption", "x" * 10_000), "'b/2.jpg' has a caption of 10000 characters"),
}


def cell_pair(root: Path, column: str, value: str) -> None:
    """Change a cell in both rows of b/2.jpg."""
    at = OWN_COLUMNS.index(column)
    write_csv(
        root,
        OWN_COLUMNS,
        [[*row[:at], value, *row[at + 1 :]] if row[0] == "b/2.jpg" else row for row in OWN_ROWS],
    )


@pytest.mark.parametrize("name", BAD_DATA_SETS)
def test_bad_input_is_refused_in_one_line_with_its_file_and_the_remedy(name: str, root: Path) -> None:
    split, damage, file_name, remedy = BAD_DATA_SETS[name]
    damage(root)
    message = refusal(lambda: read(root, split))
    assert str(root / file_name) in message
    assert remedy in message


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_picture_ends_the_reading_or_is_skipped_alone(name: str, root: Path) -> None:
    damage, remedy = BAD_IMAGES[name]
    damage(root)
    message = refusal(lambda: read(root))
    assert str(root / CSV) in message and remedy in message

    bad = BadImages("skip")
    records = read_own(root, split="official", captions_per_image=2, bad=bad)
    assert [(record.image_id, record.file_name) for record in records] == [(1, "a/1.png"), (3, "c.jpg")]
    assert bad.found == [("b/2.jpg", message)]


@pytest.mark.parametrize(
    "path", ["../secret.jpg", "/etc/secret.jpg", "a/../../secret.jpg", "a\0b.jpg", "a\nb.jpg", "."]
)
def test_a_path_that_leaves_its_folder_or_names_no_file_is_refused(path: str, root: Path) -> None:
    write_csv(root, ["path", "caption"], [[path, "a bird"]])
    message = refusal(lambda: read(root, captions_per_image=1))
    assert str(root / CSV) in message and ("leads out of" in message or "is no name of a file" in message)


@pytest.mark.parametrize(
    ("columns", "remedy"),
    [
        ({"caption": [5]}, "row 1 has a caption that is no text"),
        ({"captions": ["a bird"]}, "row 1 has the captions 'a bird', not a list of texts"),
        ({"captions": pa.nulls(1)}, "row 1 has the captions 'None', not a list of texts"),
        ({"captions": [[5, 6]]}, "row 1 has a caption that is no text"),
        ({"captions": [["a", None]]}, "has 1 captions, fewer than"),
        ({"caption": ["a"], "class": [1.5]}, "row 1 has the class '1.5', not text"),
        ({"caption": ["a"], "class": [True]}, "row 1 has the class 'True', not text"),
    ],
)
def test_a_parquet_cell_of_another_type_is_refused_by_its_row(
    columns: dict[str, object], remedy: str, root: Path
) -> None:
    as_parquet(root, path=["a.jpg"], **columns)
    message = refusal(lambda: read(root))
    assert str(root / PARQUET) in message and remedy in message


def test_zero_shot_is_refused_with_the_splits_there_are(root: Path) -> None:
    message = refusal(lambda: read(root, "zero_shot"))
    assert "crop_images.split" in message and "official or testclasses" in message
