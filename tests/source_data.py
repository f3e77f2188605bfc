"""Tiny data sets in the layouts of Oxford-102, COCO and a user's own pictures, for several test files. No pictures."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy.io import savemat

from tests.conftest import write_lines

OXFORD_LABELS = (2, 1, 3, 1, 2, 3)  # of pictures 1 to 6; class 1 is the test class of testclasses.txt
CAT, DOG = {"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}


def write_oxford(root: Path) -> Path:
    """Write six pictures' labels, sets and captions, three lines each."""
    (root / "jpg").mkdir(parents=True)
    savemat(root / "imagelabels.mat", {"labels": [OXFORD_LABELS]})
    savemat(root / "setid.mat", {"trnid": [[5, 1]], "valid": [[4]], "tstid": [[2, 3, 6]]})
    for image_id, class_id in enumerate(OXFORD_LABELS, start=1):
        path = root / "text_c10" / f"class_{class_id:05}" / f"image_{image_id:05}.txt"
        write_lines(path, [f"flower {image_id}, caption {number}" for number in range(3)])
    write_lines(root / "testclasses.txt", ["class_00001"])
    return root


def write_coco(root: Path, year: str = "2017") -> Path:
    """Write train pictures 30 and 7 (a cat before a dog, nothing) and the val picture 12 (a dog)."""
    objects = [
        {"id": 1, "image_id": 30, "category_id": 18, "bbox": [1, 2, 30, 40], "area": 500.0, "iscrowd": 0},
        {"id": 2, "image_id": 30, "category_id": 17, "bbox": [5, 6, 20, 30], "area": 550.5, "iscrowd": 0},
    ]
    write_coco_part(root, f"train{year}", [30, 7], objects)
    write_coco_part(root, f"val{year}", [12], [{**objects[0], "image_id": 12}])
    return root


def write_coco_part(root: Path, name: str, image_ids: list[int], objects: list[dict[str, Any]]) -> None:
    images = [{"id": image_id, "file_name": f"{image_id:012}.jpg"} for image_id in image_ids]
    captions = [
        {"id": 100 + number, "image_id": image_id, "caption": f"picture {image_id}, caption {number} \n"}
        for number in (2, 0, 1)
        for image_id in image_ids
    ]
    outlines = [{"segmentation": [[1.5, 2, 3], [4, 5, 6.25]], **entry} for entry in objects]
    (root / name).mkdir(parents=True, exist_ok=True)
    write_json(root / "annotations" / f"captions_{name}.json", {"images": images, "annotations": captions})
    write_json(
        root / "annotations" / f"instances_{name}.json",
        {"images": images, "annotations": outlines, "categories": [CAT, DOG]},
    )


OWN_COLUMNS = ["path", "caption", "x", "y", "width", "height", "class", "split"]
OWN_ROWS = [
    ["b/2.jpg", "a red bird, sitting", "1.5", "2", "30", "40", "red", "train"],
    ["a/1.png", 'a "blue" bird', "", "", "", "", "blue", "test"],
    ["b/2.jpg", "a bird that is red", "1.5", "2", "30", "40", "red", "train"],
    ["a/1.png", "a bird\nin blue", "", "", "", "", "blue", "test"],
    ["c.jpg", "another red one", "0", "0", "8", "9", "red", "train"],
    ["c.jpg", "red again", "0", "0", "8", "9", "red", "train"],
]


def write_own(root: Path) -> Path:
    """Write images.csv: three pictures, two captions each."""
    write_csv(root, OWN_COLUMNS, OWN_ROWS)
    return root


def write_csv(root: Path, columns: list[str], rows: list[list[str]]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with (root / "images.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def write_json(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


def edit_json(path: Path, alter: Callable[[Any], object]) -> None:
    """Change a JSON document in place."""
    document = json.loads(path.read_text(encoding="utf-8"))
    alter(document)
    write_json(path, document)


def refusal(read: Callable[[], object]) -> str:
    """Return the one line that `read` is refused with."""
    with pytest.raises(ValueError) as refused:
        read()
    message = str(refused.value)
    assert "\n" not in message and type(refused.value) is ValueError
    return message
