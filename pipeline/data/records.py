"""What every source of pictures gives: one record a picture, before anything is decoded, and a list of the bad ones.

A source is a module with one reader (cub, oxford, coco, own); pipeline.data.sources picks it by name. What is wrong
with one picture (no box, too few captions, a torn file) either ends the reading or is noted, as `on_bad_image` says;
what is wrong with the whole data set (no folder, no list of classes) always ends it.
"""

import json
import math
import re
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeGuard, cast

from pipeline.data.cropping import Bbox

Split = Literal["train", "test"]
SplitRule = Literal["zero_shot", "testclasses", "official"]
OnBadImage = Literal["fail", "skip"]

MAX_CAPTION_CHARS = 1000  # a sentence has some 60; what is longer is another file's text
LINE_ENDS = str.maketrans("\r\n", "  ")  # a table's cell may have them, a caption has not
HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")
NOT_IN_A_PATH = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # control characters, too


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceImage:
    """One picture of a data set as it was published."""

    image_id: int
    class_id: int
    class_name: str
    split: Split
    file_name: str  # as the data set names it, with / between folders
    image_path: Path
    bbox: Bbox | None  # of the object; None: it fills the picture
    captions: tuple[str, ...]


class BadImage(NamedTuple):
    """A picture that was left out, and why."""

    file_name: str
    reason: str


class BadImages:
    """The pictures that cannot be used: the first ends the reading (`fail`), or each is noted and left out (`skip`)."""

    def __init__(self, on_bad_image: OnBadImage):
        self._on_bad_image = on_bad_image
        self.found: list[BadImage] = []

    @contextmanager
    def noted(self, file_name: str) -> Generator[None]:
        """Run the block that reads one picture; its ValueError is raised again, or noted under `file_name`."""
        try:
            yield
        except ValueError as error:
            if self._on_bad_image == "fail":
                raise
            self.found.append(BadImage(file_name, str(error)))


def require_folder(folder: Path, content: str) -> None:
    """Raise ValueError unless `folder` is there; `content` says what it must hold."""
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is missing: it must hold {content}. Put (or link) the data set there; "
            "for queued experiments also `dvc add` it, since they see only what git or DVC tracks"
        )


def require_split_rule(split: SplitRule, source: str, known: Sequence[SplitRule]) -> None:
    """Raise ValueError unless `split` is one of the rules that `source` has."""
    if split not in known:
        raise ValueError(f"crop_images.split: {split} is no split of source {source}; set it to {' or '.join(known)}")


def require_both_splits(records: Iterable[SourceImage], where: Path) -> None:
    """Raise ValueError unless both splits have a picture; `where` is the file that decides."""
    splits = {record.split for record in records}
    for split in ("train", "test"):
        if split not in splits:
            raise ValueError(f"{where}: no picture is in the {split} split; check crop_images.split")


def read_lines(path: Path) -> list[str]:
    """Read a text file's lines; only a line end ends a line, and a byte order mark is no part of the first.

    Raises:
        ValueError: the file is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None


def read_json(path: Path, passed_over: str | None = None) -> object:
    """Read a JSON file; the key `passed_over`, where its value is a list of numbers or of such lists, becomes null.

    Raises:
        ValueError: the file is missing, torn, not JSON or not UTF-8.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: bring it from the data set")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if passed_over:
            text = re.sub(rf'("{passed_over}"\s*:\s*)\[[^"{{}}]*\]', r"\1null", text)
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of brackets in brackets
        raise ValueError(f"{path} is not JSON ({error}); bring a whole copy") from None


def is_text(value: object) -> TypeGuard[str]:
    """Return whether a value is a string that UTF-8 can hold: JSON can spell halves of characters, which it cannot."""
    return isinstance(value, str) and (value.isascii() or not HALF_CHARACTER.search(value))


def is_id(value: object) -> TypeGuard[int]:
    """Return whether a value is a whole number that an int64 column can hold, 0 or more."""
    return type(value) is int and 0 <= value < 2**63


def path_inside(folder: Path, relative: str, listed_in: Path) -> Path:
    """Return folder/relative; refuse a path that leaves the folder.

    Raises:
        ValueError: `relative` is absolute, climbs, or is no file's name; the message names the file that lists it.
    """
    path = Path(relative)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{listed_in}: {relative!r} leads out of {folder}; remove it")
    if not path.parts or NOT_IN_A_PATH.search(relative):
        raise ValueError(f"{listed_in}: {relative!r} is no name of a file; correct or remove it")
    return folder / path


def finite_bbox(values: object, where: str) -> Bbox:
    """Return the box out of the list of x, y, width and height, each a number or its text.

    Whether it lies in the picture is known once that is decoded: pipeline.data.cropping.bbox_inside.

    Raises:
        ValueError: there are not four, or one is no finite number; the message opens with `where`.
    """
    try:
        if not isinstance(values, list):
            raise ValueError
        x, y, width, height = map(float, cast(list[Any], values))
        if not math.isfinite(x + y + width + height):  # a sum with NaN or infinity has one
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{where} has the box {repr(values)[:100]}, not four finite numbers x, y, width, height; correct it"
        ) from None
    return Bbox(x, y, width, height)


def read_captions(path: Path, captions_per_image: int) -> tuple[str, ...]:
    """Read the first captions of a file with one a line; empty lines are passed over.

    Raises:
        ValueError: see chosen_captions, or the file is missing or not UTF-8.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: a picture needs its captions, one a line")
    return chosen_captions(read_lines(path), captions_per_image, str(path))


def chosen_captions(lines: Iterable[str], captions_per_image: int, where: str) -> tuple[str, ...]:
    """Return the first `captions_per_image` lines that are not empty.

    Raises:
        ValueError: there are fewer, or one is longer than MAX_CAPTION_CHARS or no text that UTF-8 can hold; the message
            opens with `where`.
    """
    captions = tuple(line.strip().translate(LINE_ENDS) for line in lines if line.strip())[:captions_per_image]
    if len(captions) < captions_per_image:
        raise ValueError(
            f"{where} has {len(captions)} captions, fewer than crop_images.captions_per_image = {captions_per_image}; "
            "add captions or lower that key"
        )
    longest = max(map(len, captions), default=0)
    if longest > MAX_CAPTION_CHARS:
        raise ValueError(f"{where} has a caption of {longest} characters; shorten it to {MAX_CAPTION_CHARS}")
    if not all(map(is_text, captions)):
        raise ValueError(f"{where} has a caption with half a character (a lone surrogate); correct it")
    return captions


def read_test_class_names(root: Path, class_names: Iterable[str]) -> frozenset[str]:
    """Read <root>/testclasses.txt, the classes of the test split, one a line.

    Args:
        root: the data set's folder.
        class_names: every name that a line may have; the first is shown as an example.

    Raises:
        ValueError: the file is missing or lists a class that is not among `class_names`.
    """
    path, known = root / "testclasses.txt", list(class_names)
    example = f", such as {known[0]!r}" if known else ""
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: bring the list of test classes (one a line{example}), as the split of Reed et al. has "
            "it, or write your own"
        )
    names = frozenset(line.strip() for line in read_lines(path) if line.strip())
    unknown = sorted(names.difference(known))
    if unknown:
        raise ValueError(f"{path}: {unknown[0]!r} is no class of this data set{example}; correct that line")
    return names
