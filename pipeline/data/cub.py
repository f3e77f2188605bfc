"""CUB-200-2011's layout on the disk, read into one canonical list of records. The demo data set has the same layout.

    <root>/[CUB_200_2011/]images/<class>/<file>.jpg   the pictures; beside images/ stand images.txt, classes.txt,
                                                      image_class_labels.txt and bounding_boxes.txt
    <root>/text_c10/<class>/<file>.txt                one caption a line, ten a picture
    <root>/testclasses.txt                            class folders of the test split; for split: testclasses

Ids are 1-based; boxes are joined by id, not by line. The zero-shot split of Reed et al. (CVPR 2016) has 150 train and
50 test classes: 8,855 and 2,933 pictures. CUB's own train_test_split.txt is another split and is not read.
"""

from pathlib import Path
from typing import NamedTuple

from pipeline.data.records import (
    BadImages,
    SourceImage,
    SplitRule,
    finite_bbox,
    is_id,
    path_inside,
    read_captions,
    read_lines,
    read_test_class_names,
    require_folder,
    require_split_rule,
)

# The 50 test classes of the zero-shot split, as the published StackGAN uses them.
# fmt: off
ZERO_SHOT_TEST_CLASS_IDS = frozenset({
    1, 4, 6, 8, 9, 14, 23, 29, 31, 33, 34, 35, 36, 37, 38, 43, 49, 51, 53, 66, 72, 79, 83, 84, 86, 91, 95, 96, 98, 101,
    102, 103, 112, 114, 119, 121, 130, 135, 138, 147, 156, 163, 165, 166, 180, 183, 185, 186, 187, 197,
})
# fmt: on


class _Pairs(NamedTuple):
    """An annotation file's lines of `<id> <value>`."""

    path: Path
    values: dict[int, str]


def read_cub(root: Path, *, split: SplitRule, captions_per_image: int, bad: BadImages) -> list[SourceImage]:
    """Read every picture's record, sorted by image_id.

    Args:
        root: the folder that holds CUB_200_2011/ and text_c10/, or CUB_200_2011's files and text_c10/ themselves.
        split: `zero_shot` for CUB's 150 + 50 classes, `testclasses` to read <root>/testclasses.txt.
        captions_per_image: how many captions a picture must have; further ones are not read.
        bad: notes a picture that has no box, no class or too few captions.

    Raises:
        ValueError: a folder or file is missing or torn, or `bad` ends the reading.
    """
    require_split_rule(split, "cub", ("zero_shot", "testclasses"))
    annotations = root / "CUB_200_2011" if (root / "CUB_200_2011").is_dir() else root
    require_folder(annotations / "images", "the pictures of CUB-200-2011, one folder a class")
    require_folder(root / "text_c10", "the captions, one .txt of ten lines a picture, in one folder a class")
    images, classes = _read_pairs(annotations / "images.txt"), _read_pairs(annotations / "classes.txt")
    labels = _read_pairs(annotations / "image_class_labels.txt")
    boxes = _read_pairs(annotations / "bounding_boxes.txt")
    test_class_ids = _test_class_ids(root, split, classes.values)

    records: list[SourceImage] = []
    for image_id, file_name in sorted(images.values.items()):
        with bad.noted(file_name):
            class_id = _class_id(image_id, file_name, labels, classes)
            if image_id not in boxes.values:
                raise ValueError(f"{boxes.path}: image {image_id} ({file_name}) has no box; add its line")
            image_path = path_inside(annotations / "images", file_name, images.path)
            record = SourceImage(
                image_id=image_id,
                class_id=class_id,
                class_name=classes.values[class_id],
                split="test" if class_id in test_class_ids else "train",
                file_name=file_name,
                image_path=image_path,
                bbox=finite_bbox(boxes.values[image_id].split(), f"{boxes.path}: image {image_id}"),
                captions=read_captions(root / "text_c10" / Path(file_name).with_suffix(".txt"), captions_per_image),
            )
            records.append(record)
    return records


def _read_pairs(path: Path) -> _Pairs:
    if not path.is_file():
        raise ValueError(f"{path} is missing: bring it from CUB-200-2011 (lines of `<id> <value>`)")
    values: dict[int, str] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        key, _, value = line.strip().partition(" ")
        # 19 digits: more overflow an int64 column, and int() refuses thousands of them without naming the file.
        if not key.isdecimal() or len(key) > 19 or not is_id(int(key)) or not value:
            raise ValueError(f"{path}, line {number}: {line!r} is not `<id> <value>`; correct it")
        if int(key) in values:
            raise ValueError(f"{path}, line {number}: id {key} stands there twice; keep one")
        values[int(key)] = value.strip()
    if not values:
        raise ValueError(f"{path} is empty: bring it from CUB-200-2011")
    return _Pairs(path, values)


def _class_id(image_id: int, file_name: str, labels: _Pairs, classes: _Pairs) -> int:
    label = labels.values.get(image_id, "")
    if not label.isdecimal() or len(label) > 19 or int(label) not in classes.values:
        raise ValueError(f"{labels.path}: image {image_id} ({file_name}) has no class that classes.txt lists; add it")
    return int(label)


def _test_class_ids(root: Path, split: SplitRule, class_names: dict[int, str]) -> frozenset[int]:
    if split == "zero_shot":
        return ZERO_SHOT_TEST_CLASS_IDS
    names = read_test_class_names(root, [class_names[class_id] for class_id in sorted(class_names)])
    return frozenset(class_id for class_id, name in class_names.items() if name in names)
