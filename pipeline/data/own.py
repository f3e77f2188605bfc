"""A user's own pictures: one table of paths and captions, read into one canonical list of records.

    <root>/images.csv or <root>/images.parquet   one of the two; columns:
        path                  of the picture, relative to <root>
        caption               one caption; a path may have several rows, each with another. Parquet may have instead:
        captions              a list of texts, one row a path
        x, y, width, height   optional: the object's box in pixels; empty cells: it has none
        class                 optional, text or a whole number: what the picture shows; without it each is its own class
        split                 optional: train or test
    <root>/testclasses.txt                       optional: classes of the test split, one a line

Split `official` is the column `split`; without one, testclasses.txt if it is there; without both, every picture whose
path has a sha256 of 0 modulo 10 is for testing, which stays as it is when pictures are added. `testclasses` is
testclasses.txt, whatever the column says. A test is of the paper's kind only if its classes are not trained on.

CSV is UTF-8 with commas; rows of one path must agree in everything but the caption.
"""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.cropping import Bbox
from pipeline.data.records import (
    BadImages,
    SourceImage,
    Split,
    SplitRule,
    chosen_captions,
    finite_bbox,
    path_inside,
    read_lines,
    read_test_class_names,
    require_folder,
    require_split_rule,
)

BOX_COLUMNS = ("x", "y", "width", "height")
OPTIONAL_COLUMNS = (*BOX_COLUMNS, "class", "split")


class _Row(NamedTuple):
    """A row of the table."""

    where: str  # opens messages
    cells: Mapping[str, Any]  # by column; None: an empty cell


class _Table(NamedTuple):
    path: Path
    columns: Sequence[str]
    rows: list[_Row]


def read_own(root: Path, *, split: SplitRule, captions_per_image: int, bad: BadImages) -> list[SourceImage]:
    """Read every picture's record: image_id counts the sorted paths from 1, class_id the sorted class names from 1.

    Args:
        root: the folder that holds the table.
        split: `official` or `testclasses`, see the module's text.
        captions_per_image: how many captions a picture must have, in the order of the rows; further ones are not read.
        bad: notes a picture whose rows are unsound or do not agree.

    Raises:
        ValueError: the table or the list of classes is missing or torn, or `bad` ends the reading.
    """
    require_split_rule(split, "own", ("official", "testclasses"))
    require_folder(root, "images.csv or images.parquet, and the pictures it lists")
    table = _read_table(root)
    groups = _rows_by_path(table)
    class_names = _class_names(groups, "class" in table.columns)
    class_ids = {name: class_id for class_id, name in enumerate(class_names, start=1)}
    test_class_names = _test_class_names(root, split, table, class_names)

    records: list[SourceImage] = []
    for image_id, file_name in enumerate(sorted(groups), start=1):
        rows = groups[file_name]
        with bad.noted(file_name):
            image_path = path_inside(root, file_name, table.path)
            _require_agreement(rows)
            class_name = _text(rows[0], "class") if "class" in table.columns else file_name
            lines = [caption for row in rows for caption in _captions(row)]
            record = SourceImage(
                image_id=image_id,
                class_id=class_ids[class_name],
                class_name=class_name,
                split=_split(file_name, rows[0]) if test_class_names is None else _in(class_name, test_class_names),
                file_name=file_name,
                image_path=image_path,
                bbox=_bbox(rows[0]),
                captions=chosen_captions(lines, captions_per_image, f"{table.path}: {file_name!r}"),
            )
            records.append(record)
    by_path = test_class_names is None and "split" not in table.columns
    if by_path and all(record.split == "train" for record in records):
        raise ValueError(f"{table.path}: no picture fell to the test split; add a column split (train or test)")
    return records


def _read_table(root: Path) -> _Table:
    paths = [path for path in (root / "images.csv", root / "images.parquet") if path.is_file()]
    if len(paths) != 1:
        raise ValueError(f"{root} has {len(paths) or 'no'} of images.csv and images.parquet; bring one of them")
    return _read_csv(paths[0]) if paths[0].suffix == ".csv" else _read_parquet(paths[0])


def _read_csv(path: Path) -> _Table:
    reader = csv.DictReader(io.StringIO("\n".join(read_lines(path))), strict=True)
    try:
        columns = _checked_columns(path, list(reader.fieldnames or ()), ("caption",))
        rows: list[_Row] = []
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if None in cells or None in cells.values():  # DictReader's marks of a line too long or too short
                raise ValueError(f"{where} has not {len(columns)} cells like the first; put text with commas in quotes")
            rows.append(_Row(where, {column: cell.strip() or None for column, cell in cells.items()}))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.reader.line_num} is no CSV ({error}); correct it") from None
    return _Table(path, columns, rows)


def _read_parquet(path: Path) -> _Table:
    try:
        table = pq.read_table(path, partitioning=None, page_checksum_verification=True)
        columns = _checked_columns(path, table.column_names, ("caption", "captions"))
        cells = table.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no whole Parquet file ({reason}); write it anew") from None
    return _Table(path, columns, [_Row(f"{path}, row {number}", row) for number, row in enumerate(cells, start=1)])


def _checked_columns(path: Path, columns: Sequence[str], caption_columns: Sequence[str]) -> Sequence[str]:
    """Return the columns' names if they are known and whole."""
    allowed = ("path", *caption_columns, *OPTIONAL_COLUMNS)
    wrong = [column for number, column in enumerate(columns) if column not in allowed or column in columns[:number]]
    if wrong:
        raise ValueError(
            f"{path} has the column {wrong[0]!r}, unknown or twice; it may have each of {', '.join(allowed)}"
        )
    if "path" not in columns or sum(column in columns for column in caption_columns) != 1:
        raise ValueError(f"{path} needs a column path and one column {' or '.join(caption_columns)}; it has {columns}")
    if sum(column in columns for column in BOX_COLUMNS) not in (0, len(BOX_COLUMNS)):
        raise ValueError(f"{path} has some of the columns {', '.join(BOX_COLUMNS)}; a box needs all of them")
    return columns


def _rows_by_path(table: _Table) -> dict[str, list[_Row]]:
    groups: dict[str, list[_Row]] = {}
    for row in table.rows:
        groups.setdefault(PurePosixPath(_text(row, "path")).as_posix(), []).append(row)  # ./a.jpg is a.jpg
    if not groups:
        raise ValueError(f"{table.path} has no rows; add one for each caption")
    return groups


def _class_names(groups: Mapping[str, Sequence[_Row]], has_class: bool) -> list[str]:
    """Return the sorted names of all classes, those of bad pictures too: an id depends on the table alone."""
    if not has_class:
        return sorted(groups)
    cells = (row.cells["class"] for rows in groups.values() for row in rows)
    return sorted({str(cell).strip() for cell in cells if cell is not None})


def _test_class_names(root: Path, split: SplitRule, table: _Table, class_names: list[str]) -> frozenset[str] | None:
    """Return the classes of the test split; None: the column, or each picture's path, says in which split it is."""
    if split == "official" and ("split" in table.columns or not (root / "testclasses.txt").is_file()):
        return None
    if "class" not in table.columns:
        raise ValueError(f"{table.path} has no column class, which testclasses.txt is about; add it")
    return read_test_class_names(root, class_names)


def _in(class_name: str, test_class_names: frozenset[str]) -> Split:
    return "test" if class_name in test_class_names else "train"


def _split(file_name: str, row: _Row) -> Split:
    if "split" not in row.cells:
        return "train" if int(hashlib.sha256(file_name.encode()).hexdigest(), 16) % 10 else "test"
    if row.cells["split"] not in ("train", "test"):
        raise ValueError(f"{row.where} has the split {row.cells['split']!r}; write train or test")
    return row.cells["split"]


def _require_agreement(rows: Sequence[_Row]) -> None:
    for row in rows[1:]:
        for column in OPTIONAL_COLUMNS:
            if row.cells.get(column) != rows[0].cells.get(column):
                raise ValueError(
                    f"{row.where} has another {column} than {rows[0].where}, of the same path; correct one"
                )


def _bbox(row: _Row) -> Bbox | None:
    values = [row.cells.get(column) for column in BOX_COLUMNS]
    return None if values == [None] * len(BOX_COLUMNS) else finite_bbox(values, row.where)


def _captions(row: _Row) -> list[str]:
    """Return a row's captions; an empty cell has none."""
    cell = row.cells["captions"] if "captions" in row.cells else [row.cells["caption"]]
    if not isinstance(cell, list):
        raise ValueError(f"{row.where} has the captions {str(cell)[:100]!r}, not a list of texts; correct it")
    captions = [caption for caption in cast(list[object], cell) if caption is not None]
    if not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"{row.where} has a caption that is no text; correct it")
    return cast(list[str], captions)


def _text(row: _Row, column: str) -> str:
    """Return a cell as text; a whole number is text, too."""
    cell = row.cells[column]
    if isinstance(cell, bool) or not isinstance(cell, str | int) or not str(cell).strip():
        raise ValueError(f"{row.where} has the {column} {str(cell)[:100]!r}, not text; correct it or remove the column")
    return str(cell).strip()
