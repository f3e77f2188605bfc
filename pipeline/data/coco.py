"""COCO's layout on the disk (Lin et al., 2014; its files of 2014 or of 2017), read into one canonical list of records.

    <root>/annotations/captions_train2014.json, captions_val2014.json     five captions a picture, or more
    <root>/annotations/instances_train2014.json, instances_val2014.json   objects: category, box, area
    <root>/[images/]train2014/, val2014/                                  the pictures, by their `file_name`

A picture's class is the category of its largest object that is no crowd, its box that object's; without an object it
is class 0, `none`. The published code gives every picture a class of its own, so that a wrong pair may show the same
thing; a picture that another category dominates is surely wrong, and the class is a label to score by. Objects whose
box has no width or no height, of which COCO has a few, are passed over.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from pipeline.data.cropping import Bbox
from pipeline.data.records import (
    BadImages,
    SourceImage,
    SplitRule,
    chosen_captions,
    finite_bbox,
    is_id,
    is_text,
    path_inside,
    read_json,
    require_folder,
    require_split_rule,
)

YEARS = ("2014", "2017")
PARTS = ("train", "val")
NO_CLASS_ID, NO_CLASS_NAME = 0, "none"
Entry = dict[str, Any]  # of a JSON file's list


class _Object(NamedTuple):
    """An object in a picture; of two, the larger one is the greater tuple, and of equals the older annotation."""

    area: float
    minus_annotation_id: int
    category_id: int
    bbox: Bbox


class _Annotations(NamedTuple):
    """The annotations of train or val, by image_id."""

    captions_path: Path
    instances_path: Path
    file_names: dict[int, str]
    captions: dict[int, list[tuple[int, str]]]  # annotation id and text
    objects: dict[int, list[Entry]]


def read_coco(root: Path, *, split: SplitRule, captions_per_image: int, bad: BadImages) -> list[SourceImage]:
    """Read every picture's record, sorted by image_id, which is COCO's own; COCO's val is the test split.

    Args:
        root: the data set's folder, with the files of one year.
        split: `official`, the only one.
        captions_per_image: how many captions a picture must have, the first by annotation id; COCO has five.
        bad: notes a picture without enough captions, or with an object whose box, area or category is unsound.

    Raises:
        ValueError: a folder or file is missing or torn, or `bad` ends the reading.
    """
    require_split_rule(split, "coco", ("official",))
    require_folder(root / "annotations", "COCO's captions_*.json and instances_*.json")
    year = _year_of(root / "annotations")
    category_names = {NO_CLASS_ID: NO_CLASS_NAME}
    train = _read_part(root, f"train{year}", category_names, captions_per_image, bad)
    test = _read_part(root, f"val{year}", category_names, captions_per_image, bad)
    shared = {record.image_id for record in train} & {record.image_id for record in test}
    if shared:
        raise ValueError(f"{root / 'annotations'}: image {min(shared)} is in train{year} and in val{year}; keep one")
    return sorted(train + test, key=lambda record: record.image_id)


def _year_of(annotations: Path) -> str:
    years = [year for year in YEARS if any((annotations / f"captions_{part}{year}.json").is_file() for part in PARTS)]
    if not years:
        raise ValueError(
            f"{annotations} has no captions_train2014.json and no captions_train2017.json: bring captions_train, "
            "captions_val, instances_train and instances_val of one year from COCO's annotations"
        )
    if len(years) > 1:
        raise ValueError(f"{annotations} has the captions of {' and '.join(years)}: move one year's files away")
    return years[0]


def _read_part(
    root: Path, name: str, category_names: dict[int, str], captions_per_image: int, bad: BadImages
) -> list[SourceImage]:
    """Read the records of `name`, such as train2014; its categories are added to `category_names`."""
    folder = root / "images" / name if (root / "images" / name).is_dir() else root / name
    require_folder(folder, f"the pictures of COCO's {name}")
    found = _read_annotations(root / "annotations", name, category_names)
    records: list[SourceImage] = []
    for image_id, file_name in found.file_names.items():
        with bad.noted(file_name):
            largest = _largest_object(found.objects[image_id], category_names, found.instances_path)
            class_id = largest.category_id if largest else NO_CLASS_ID
            lines = [caption for _, caption in sorted(found.captions[image_id])]
            record = SourceImage(
                image_id=image_id,
                class_id=class_id,
                class_name=category_names[class_id],
                split="train" if name.startswith("train") else "test",
                file_name=file_name,
                image_path=path_inside(folder, file_name, found.captions_path),
                bbox=largest.bbox if largest else None,
                captions=chosen_captions(lines, captions_per_image, f"{found.captions_path}: image {image_id}"),
            )
            records.append(record)
    return records


def _largest_object(objects: Sequence[Entry], category_names: dict[int, str], path: Path) -> _Object | None:
    """Return a picture's largest object that is no crowd.

    Raises:
        ValueError: an object's box, area or category is unsound.
    """
    found: list[_Object] = []
    for entry in objects:
        if entry.get("iscrowd"):
            continue
        where, category_id = f"{path}: annotation {entry['id']}", entry.get("category_id")
        bbox = finite_bbox(entry.get("bbox"), where)
        area = entry.get("area", bbox.width * bbox.height)
        if type(area) not in (int, float) or not abs(area) < math.inf:  # true of a NaN, too
            raise ValueError(f"{where} has the area {str(area)[:100]!r}, not a finite number; correct it")
        if not is_id(category_id) or category_id == NO_CLASS_ID or category_id not in category_names:
            raise ValueError(
                f"{where} has the category_id {str(category_id)[:100]!r}, which `categories` does not list"
            )
        if bbox.width and bbox.height:
            found.append(_Object(area, -entry["id"], category_id, bbox))
    return max(found, default=None)


def _read_annotations(folder: Path, name: str, category_names: dict[int, str]) -> _Annotations:
    captions_path, instances_path = folder / f"captions_{name}.json", folder / f"instances_{name}.json"
    document = read_json(captions_path)
    file_names = _file_names(captions_path, document)
    captions: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for image_id, entry in _annotations(captions_path, document, file_names):
        caption = entry.get("caption")
        if not isinstance(caption, str):
            raise ValueError(f"{captions_path}: annotation {entry['id']} has no `caption`; bring a whole copy")
        captions[image_id].append((entry["id"], caption))

    document = read_json(
        instances_path, passed_over="segmentation"
    )  # the outlines: most of the file, and 2 GB once parsed
    _add_categories(instances_path, document, category_names)
    objects: dict[int, list[Entry]] = defaultdict(list)
    for image_id, entry in _annotations(instances_path, document, file_names):
        objects[image_id].append(entry)
    return _Annotations(captions_path, instances_path, file_names, captions, objects)


def _file_names(path: Path, document: object) -> dict[int, str]:
    file_names: dict[int, str] = {}
    for entry in _entries(path, document, "images"):
        image_id, file_name = entry.get("id"), entry.get("file_name")
        if not is_id(image_id) or not is_text(file_name):
            raise ValueError(f"{path}: an entry of `images` has no `id` or no `file_name`; bring a whole copy")
        if image_id in file_names:
            raise ValueError(f"{path}: image {image_id} stands there twice; keep one")
        file_names[image_id] = file_name
    return file_names


def _add_categories(path: Path, document: object, names: dict[int, str]) -> None:
    for entry in _entries(path, document, "categories"):
        category_id, name = entry.get("id"), entry.get("name")
        if not is_id(category_id) or not is_text(name):
            raise ValueError(f"{path}: an entry of `categories` has no `id` or no `name`; bring a whole copy")
        known = names.setdefault(category_id, name)
        if known != name:  # 0 is taken too, for pictures without an object
            raise ValueError(f"{path}: category {category_id} is {name!r} and {known!r}; give each an id of its own")


def _annotations(path: Path, document: object, file_names: dict[int, str]) -> Iterator[tuple[int, Entry]]:
    """Yield the image_id and the annotation of each of `annotations`."""
    for entry in _entries(path, document, "annotations"):
        annotation_id, image_id = entry.get("id"), entry.get("image_id")
        if not is_id(annotation_id) or not is_id(image_id):
            raise ValueError(f"{path}: an entry of `annotations` has no `id` or no `image_id`; bring a whole copy")
        if image_id not in file_names:
            raise ValueError(f"{path}: annotation {annotation_id} is of image {image_id}, which `images` does not list")
        yield image_id, entry


def _entries(path: Path, document: object, key: str) -> Iterator[Entry]:
    entries = cast(Entry, document).get(key) if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f"{path} has no list `{key}`; bring a whole copy")
    for entry in cast(list[object], entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: an entry of `{key}` is no object in braces; bring a whole copy")
        yield cast(Entry, entry)
