"""COCO's layout: the records are right, each bad input is refused in one line with its file and the remedy."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.coco import read_coco
from pipeline.data.cropping import Bbox
from pipeline.data.records import BadImages, SourceImage
from tests.source_data import edit_json, refusal, write_coco, write_coco_part, write_json

CAPTIONS, INSTANCES = "annotations/captions_train2017.json", "annotations/instances_train2017.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


def read(root: Path, captions_per_image: int = 3) -> list[SourceImage]:
    return read_coco(root, split="official", captions_per_image=captions_per_image, bad=BadImages("fail"))


def test_records_hold_what_the_files_say_sorted_by_cocos_own_ids(root: Path) -> None:
    nothing, dog, cat = read(root)
    assert cat == SourceImage(
        image_id=30,
        class_id=17,
        class_name="cat",
        split="train",
        file_name="000000000030.jpg",
        image_path=root / "train2017" / "000000000030.jpg",
        bbox=Bbox(5.0, 6.0, 20.0, 30.0),
        captions=("picture 30, caption 0", "picture 30, caption 1", "picture 30, caption 2"),
    )
    assert (nothing.image_id, nothing.class_id, nothing.class_name, nothing.bbox) == (7, 0, "none", None)
    assert (dog.image_id, dog.class_id, dog.split, dog.image_path.parent.name) == (12, 18, "test", "val2017")


def test_the_first_captions_by_annotation_id_are_taken(root: Path) -> None:
    assert read(root, 2)[2].captions == ("picture 30, caption 0", "picture 30, caption 1")


@pytest.mark.parametrize("year", ["2014", "2017"])
@pytest.mark.parametrize("parent", ["", "images"])
def test_both_years_and_both_places_of_the_pictures_are_read(year: str, parent: str, tmp_path: Path) -> None:
    root = write_coco(tmp_path / year, year)
    (root / parent).mkdir(exist_ok=True)
    for name in (f"train{year}", f"val{year}"):
        shutil.move(root / name, root / parent / f"{name}-moved")
        (root / parent / f"{name}-moved").rename(root / parent / name)
    assert [record.image_path.parent for record in read(root)] == [
        root / parent / name for name in (f"train{year}", f"val{year}", f"train{year}")
    ]


def set_objects(root: Path, *objects: dict[str, Any]) -> None:
    write_coco_part(root, "train2017", [30, 7], [{"image_id": 30, **entry} for entry in objects])


def cat(annotation_id: int, area: float, **more: object) -> dict[str, Any]:
    return {"id": annotation_id, "category_id": 17, "bbox": [1, 1, 5, 5], "area": area, **more}


def dog(annotation_id: int, area: float, **more: object) -> dict[str, Any]:
    return {**cat(annotation_id, area, **more), "category_id": 18}


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ([cat(1, 5.0), dog(2, 6.0)], "dog"),
        ([dog(2, 6.0), cat(1, 5.0)], "dog"),
        ([cat(1, 5.0), dog(2, 6.0, iscrowd=1)], "cat"),
        ([dog(2, 6.0, iscrowd=1)], "none"),
        ([cat(1, 5.0), dog(2, 6.0, bbox=[3, 3, 4, 0])], "cat"),
        ([dog(2, 5.0), cat(1, 5.0)], "cat"),  # equals: the older annotation, wherever it stands
        ([cat(1, 5.0), dog(2, 5.0)], "cat"),
    ],
)
def test_the_class_is_that_of_the_largest_object_that_is_no_crowd(
    objects: list[dict[str, Any]], expected: str, root: Path
) -> None:
    set_objects(root, *objects)
    assert read(root)[2].class_name == expected


def test_without_areas_the_largest_box_decides(root: Path) -> None:
    small, large = cat(1, 0, bbox=[0, 0, 9, 9]), dog(2, 0, bbox=[0, 0, 10, 9])
    del small["area"], large["area"]
    set_objects(root, small, large)
    assert read(root)[2].class_name == "dog"


def test_outlines_of_every_form_are_passed_over(root: Path) -> None:
    run_lengths = {"counts": [1, 2, 3], "size": [4, 5]}
    set_objects(root, cat(1, 9, segmentation=run_lengths), {"segmentation": [], **dog(2, 10)})
    text = (root / INSTANCES).read_text()
    (root / INSTANCES).write_text(text.replace('"segmentation": []', '"segmentation"\n:[[1e-5, -2.5E+3],\n[ ]\n]'))
    assert read(root)[2].class_name == "dog"


def captions(alter: Callable[[Any], object]) -> Callable[[Path], None]:
    return lambda root: edit_json(root / CAPTIONS, alter)


def instances(alter: Callable[[Any], object]) -> Callable[[Path], None]:
    return lambda root: edit_json(root / INSTANCES, alter)


def put(key: str, number: int, **values: object) -> Callable[[Any], object]:
    """Set keys of one entry of a list; None removes the key."""

    def alter(document: Any) -> None:
        entry = document[key][number]
        entry.update(values)
        for name in [name for name, value in values.items() if value is None]:
            del entry[name]

    return alter


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(content)


def cut(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:-40])


# What is done to the data set, the file that must be named, and words of the remedy: of the whole data set.
BAD_DATA_SETS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no_data_set": (shutil.rmtree, "annotations", "Put (or link) the data set there"),
    "no_pictures": (lambda root: (root / "val2017").rmdir(), "val2017", "must hold the pictures of COCO's val2017"),
    "no_annotations": (
        lambda root: [path.unlink() for path in (root / "annotations").iterdir()],
        "annotations",
        "bring captions_train, captions_val, instances_train and instances_val of one year",
    ),
    "two_years": (lambda root: write_coco(root, "2014"), "annotations", "2014 and 2017: move one year's files away"),
    "no_val_captions": (
        lambda root: (root / "annotations/captions_val2017.json").unlink(),
        "annotations/captions_val2017.json",
        "is missing",
    ),
    "no_instances": (lambda root: (root / INSTANCES).unlink(), INSTANCES, "is missing: bring it"),
    "captions_torn": (cut(CAPTIONS), CAPTIONS, "is not JSON"),
    "instances_torn": (cut(INSTANCES), INSTANCES, "is not JSON"),
    "captions_empty": (write(CAPTIONS, b""), CAPTIONS, "is not JSON"),
    "not_utf8": (write(CAPTIONS, '{"images": "grün"}'.encode("latin-1")), CAPTIONS, "is not JSON"),
    "too_deep": (write(CAPTIONS, b"[" * 100_000), CAPTIONS, "is not JSON"),
    "a_number_too_long": (write(CAPTIONS, b"[" + b"9" * 5000 + b"]"), CAPTIONS, "is not JSON"),
    "a_list": (write(CAPTIONS, b"[]"), CAPTIONS, "has no list `images`"),
    "no_images": (captions(lambda document: document.pop("images")), CAPTIONS, "has no list `images`"),
    "no_captions": (captions(lambda document: document.pop("annotations")), CAPTIONS, "has no list `annotations`"),
    "images_not_a_list": (captions(lambda document: document.update(images={})), CAPTIONS, "has no list `images`"),
    "image_not_an_object": (captions(lambda d: d["images"].append(5)), CAPTIONS, "an entry of `images` is no object"),
    "no_objects": (instances(lambda document: document.pop("annotations")), INSTANCES, "has no list `annotations`"),
    "no_categories": (instances(lambda document: document.pop("categories")), INSTANCES, "has no list `categories`"),
    "image_without_id": (captions(put("images", 0, id=None)), CAPTIONS, "has no `id` or no `file_name`"),
    "image_id_text": (captions(put("images", 0, id="30")), CAPTIONS, "has no `id` or no `file_name`"),
    "image_id_fraction": (captions(put("images", 0, id=30.0)), CAPTIONS, "has no `id` or no `file_name`"),
    "image_id_too_long": (captions(put("images", 0, id=2**63)), CAPTIONS, "has no `id` or no `file_name`"),
    "image_without_name": (captions(put("images", 0, file_name=None)), CAPTIONS, "has no `id` or no `file_name`"),
    "image_twice": (captions(put("images", 0, id=7)), CAPTIONS, "image 7 stands there twice; keep one"),
    "image_in_both_parts": (
        lambda root: write_coco_part(root, "train2017", [30, 12], []),
        "annotations",
        "image 12 is in train2017 and in val2017; keep one",
    ),
    "caption_without_id": (captions(put("annotations", 0, id=None)), CAPTIONS, "has no `id` or no `image_id`"),
    "caption_missing": (captions(put("annotations", 0, caption=None)), CAPTIONS, "annotation 102 has no `caption`"),
    "caption_a_number": (captions(put("annotations", 0, caption=5)), CAPTIONS, "annotation 102 has no `caption`"),
    "caption_of_no_image": (captions(put("annotations", 0, image_id=8)), CAPTIONS, "annotation 102 is of image 8, "),
    "object_of_no_image": (instances(put("annotations", 0, image_id=8)), INSTANCES, "annotation 1 is of image 8, whi"),
    "object_without_image": (instances(put("annotations", 0, image_id=None)), INSTANCES, "no `id` or no `image_id`"),
    "category_without_name": (instances(put("categories", 0, name=None)), INSTANCES, "has no `id` or no `name`"),
    "category_twice": (instances(put("categories", 0, id=18)), INSTANCES, "category 18 is 'dog' and 'cat'"),
    "category_zero": (instances(put("categories", 0, id=0)), INSTANCES, "category 0 is 'cat' and 'none'"),
    "category_with_two_names": (
        lambda root: edit_json(root / "annotations/instances_val2017.json", put("categories", 0, name="lion")),
        "annotations/instances_val2017.json",
        "category 17 is 'lion' and 'cat'",
    ),
}

# The same of picture 30 alone, which on_bad_image: skip leaves out.
BAD_IMAGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "path_that_climbs": (captions(put("images", 0, file_name="../../x.jpg")), CAPTIONS, "leads out of"),
    "path_from_the_root": (captions(put("images", 0, file_name="/etc/x.jpg")), CAPTIONS, "leads out of"),
    "path_with_a_line_end": (captions(put("images", 0, file_name="a\nb.jpg")), CAPTIONS, "is no name of a file"),
    "too_few_captions": (captions(lambda d: d["annotations"].pop(0)), CAPTIONS, "image 30 has 2 captions, fewer than"),
    "empty_caption": (captions(put("annotations", 0, caption=" \n")), CAPTIONS, "image 30 has 2 captions"),
    "long_caption": (captions(put("annotations", 0, caption="x" * 10_000)), CAPTIONS, "shorten it to 1000"),
    "half_a_character": (captions(put("annotations", 0, caption="\ud800")), CAPTIONS, "half a character"),
    "box_missing": (instances(put("annotations", 1, bbox=None)), INSTANCES, "annotation 2 has the box None"),
    "box_of_three": (instances(put("annotations", 1, bbox=[1, 2, 3])), INSTANCES, "annotation 2 has the box [1, 2, 3]"),
    "box_of_text": (instances(put("annotations", 1, bbox="1234")), INSTANCES, "annotation 2 has the box '1234'"),
    "box_nan": (instances(put("annotations", 1, bbox=[1, 2, 3, float("nan")])), INSTANCES, "not four finite numbers"),
    "box_infinite": (instances(put("annotations", 1, bbox=[1, 2, 10**400, 4])), INSTANCES, "not four finite numbers"),
    "area_nan": (instances(put("annotations", 1, area=float("nan"))), INSTANCES, "annotation 2 has the area 'nan'"),
    "area_text": (instances(put("annotations", 1, area="9")), INSTANCES, "annotation 2 has the area '9'"),
    "category_unknown": (instances(put("annotations", 1, category_id=19)), INSTANCES, "the category_id '19'"),
    "category_none": (instances(put("annotations", 1, category_id=0)), INSTANCES, "the category_id '0'"),
    "category_missing": (instances(put("annotations", 1, category_id=None)), INSTANCES, "the category_id 'None'"),
}


@pytest.mark.parametrize("name", [*BAD_DATA_SETS, *BAD_IMAGES])
def test_bad_input_is_refused_in_one_line_with_its_file_and_the_remedy(name: str, root: Path) -> None:
    damage, file_name, remedy = {**BAD_DATA_SETS, **BAD_IMAGES}[name]
    damage(root)
    message = refusal(lambda: read(root))
    assert str(root / file_name) in message
    assert remedy in message


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_picture_is_skipped_alone(name: str, root: Path) -> None:
    damage, file_name, remedy = BAD_IMAGES[name]
    damage(root)
    bad = BadImages("skip")
    records = read_coco(root, split="official", captions_per_image=3, bad=bad)
    assert [record.image_id for record in records] == [7, 12]
    [(_, reason)] = bad.found
    assert str(root / file_name) in reason and remedy in reason


@pytest.mark.parametrize("split", ["zero_shot", "testclasses"])
def test_other_splits_are_refused(split: Any, root: Path) -> None:
    message = refusal(lambda: read_coco(root, split=split, captions_per_image=1, bad=BadImages("fail")))
    assert "crop_images.split" in message and "official" in message


def test_an_empty_list_of_categories_makes_every_picture_none(root: Path) -> None:
    for name in ("train2017", "val2017"):
        write_json(root / "annotations" / f"instances_{name}.json", {"annotations": [], "categories": []})
    assert {record.class_name for record in read(root)} == {"none"}


def test_the_real_subset_has_forty_pictures_a_split_with_five_captions(real_data: Path) -> None:
    folder = real_data / "coco"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    records = read(folder, 5)
    assert Counter(record.split for record in records) == {"train": 40, "test": 40}
    assert all(record.image_path.is_file() and len(record.captions) == 5 for record in records)
    assert sum(record.bbox is None for record in records) == sum(record.class_id == 0 for record in records) == 2
    by_id = {record.image_id: record for record in records}
    assert by_id[331352].captions[0] == "A small closed toilet in a cramped space."
