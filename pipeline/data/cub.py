"""CUB-200-2011's layout on the disk, read into one canonical list of records. The demo data set has the same layout.

    <root>/[CUB_200_2011/]images/<class>/<file>.jpg   the pictures; beside images/ stand images.txt, classes.txt,
                                                      image_class_labels.txt and bounding_boxes.txt
    <root>/text_c10/<class>/<file>.txt                one caption a line, ten a picture
    <root>/testclasses.txt                            class folders of the test split; for split: testclasses

Ids are 1-based; boxes are joined by id, not by line. The zero-shot split of Reed et al. (CVPR 2016) has 150 train and
50 test classes: 8,855 and 2,933 pictures. CUB's own train_test_split.txt is another split and is not read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.data.cropping import Bbox

SplitRule = Literal["zero_shot", "testclasses"]

# The 50 test classes of the zero-shot split, as the published StackGAN uses them.
# fmt: off
ZERO_SHOT_TEST_CLASS_IDS = frozenset({
    1, 4, 6, 8, 9, 14, 23, 29, 31, 33, 34, 35, 36, 37, 38, 43, 49, 51, 53, 66, 72, 79, 83, 84, 86, 91, 95, 96, 98, 101,
    102, 103, 112, 114, 119, 121, 130, 135, 138, 147, 156, 163, 165, 166, 180, 183, 185, 186, 187, 197,
})
# fmt: on


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceImage:
    """One picture of a data set as it was published, before anything is decoded."""

    image_id: int
    class_id: int
    class_name: str
    split: Literal["train", "test"]
    file_name: str
    image_path: Path
    bbox: Bbox
    captions: tuple[str, ...]


def read_cub(root: Path, *, split: SplitRule, captions_per_image: int) -> list[SourceImage]:
    """Read every picture's record, sorted by image_id.

    Args:
        root: the folder that holds CUB_200_2011/ and text_c10/, or CUB_200_2011's files and text_c10/ themselves.
        split: `zero_shot` for CUB's 150 + 50 classes, `testclasses` to read <root>/testclasses.txt.
        captions_per_image: how many captions a picture must have; further ones are not read.

    Raises:
        ValueError: a folder or file is missing or torn, a picture has no box, no class or too few captions.
    """
    annotations = root / "CUB_200_2011" if (root / "CUB_200_2011").is_dir() else root
    _require_folder(annotations / "images", "the pictures of CUB-200-2011, one folder a class")
    _require_folder(root / "text_c10", "the captions, one .txt of ten lines a picture, in one folder a class")
    class_names = _read_pairs(annotations / "classes.txt")
    labels_path, boxes_path = annotations / "image_class_labels.txt", annotations / "bounding_boxes.txt"
    labels, boxes = _read_pairs(labels_path), _read_pairs(boxes_path)
    test_class_ids = _test_class_ids(root, split, class_names)

    records: list[SourceImage] = []
    for image_id, file_name in sorted(_read_pairs(annotations / "images.txt").items()):
        label = labels.get(image_id, "")
        if not label.isdecimal() or int(label) not in class_names:
            raise ValueError(
                f"{labels_path}: image {image_id} ({file_name}) has no class that classes.txt lists; add it"
            )
        if image_id not in boxes:
            raise ValueError(f"{boxes_path}: image {image_id} ({file_name}) has no box; add its line")
        class_id, image_path = int(label), _inside(annotations / "images", Path(file_name))
        records.append(
            SourceImage(
                image_id=image_id,
                class_id=class_id,
                class_name=class_names[class_id],
                split="test" if class_id in test_class_ids else "train",
                file_name=file_name,
                image_path=image_path,
                bbox=_parse_bbox(boxes[image_id], boxes_path, image_id),
                captions=_read_captions(root / "text_c10" / Path(file_name).with_suffix(".txt"), captions_per_image),
            )
        )
    for name in ("train", "test"):
        if not any(record.split == name for record in records):
            raise ValueError(f"{annotations}/images.txt: no picture is in the {name} split; check crop_images.split")
    return records


def _require_folder(folder: Path, content: str) -> None:
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is missing: it must hold {content}. Put (or link) the data set there; "
            "for queued experiments also `dvc add` it, since they see only what git or DVC tracks"
        )


def _read_pairs(path: Path) -> dict[int, str]:
    """Read lines of `<id> <rest>`."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: bring it from CUB-200-2011 (lines of `<id> <value>`)")
    pairs: dict[int, str] = {}
    for number, line in enumerate(_read_lines(path), start=1):
        if not line.strip():
            continue
        key, _, value = line.strip().partition(" ")
        if not key.isdecimal() or not value:
            raise ValueError(f"{path}, line {number}: {line!r} is not `<id> <value>`")
        if int(key) in pairs:
            raise ValueError(f"{path}, line {number}: id {key} stands there twice; keep one")
        pairs[int(key)] = value.strip()
    if not pairs:
        raise ValueError(f"{path} is empty: bring it from CUB-200-2011")
    return pairs


def _read_lines(path: Path) -> list[str]:
    """Read a text file's lines; only a line end ends a line, and a byte order mark is no part of the first."""
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None


def _parse_bbox(text: str, path: Path, image_id: int) -> Bbox:
    try:
        x, y, width, height = (float(value) for value in text.split())
    except ValueError:
        raise ValueError(f"{path}: image {image_id} has the box {text!r}, not `x y width height`") from None
    return Bbox(x, y, width, height)


def _read_captions(path: Path, captions_per_image: int) -> tuple[str, ...]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: a picture needs its captions, one a line")
    captions = tuple(line.strip() for line in _read_lines(path) if line.strip())[:captions_per_image]
    if len(captions) < captions_per_image:
        raise ValueError(
            f"{path} has {len(captions)} captions, fewer than crop_images.captions_per_image = {captions_per_image}; "
            "add captions or lower that key"
        )
    return captions


def _test_class_ids(root: Path, split: SplitRule, class_names: dict[int, str]) -> frozenset[int]:
    if split == "zero_shot":
        return ZERO_SHOT_TEST_CLASS_IDS
    path = root / "testclasses.txt"
    if not path.is_file():
        raise ValueError(f"{path} is missing: list the class folders of the test split there, one a line")
    names = {line.strip() for line in _read_lines(path) if line.strip()}
    unknown = names - set(class_names.values())
    if unknown:
        raise ValueError(f"{path}: {sorted(unknown)[0]!r} is no class of classes.txt; correct or remove that line")
    return frozenset(class_id for class_id, name in class_names.items() if name in names)


def _inside(folder: Path, relative: Path) -> Path:
    """Return folder/relative; refuse a path that leaves the folder."""
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"{relative} in images.txt leads out of {folder}; remove that line")
    return folder / relative
