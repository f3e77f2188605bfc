"""CUB's layout: the records are right, each bad input is refused in one line with its file and the remedy."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.data.cropping import Bbox
from pipeline.data.cub import ZERO_SHOT_TEST_CLASS_IDS, read_cub
from pipeline.data.records import BadImages, SourceImage, SplitRule
from tests.source_data import refusal as refusal_of


def read(root: Path, split: SplitRule = "testclasses", captions_per_image: int = 10) -> list[SourceImage]:
    return read_cub(root, split=split, captions_per_image=captions_per_image, bad=BadImages("fail"))


def edit(path: Path, alter: Callable[[list[str]], list[str]]) -> None:
    """Change a text file's lines."""
    lines = alter(path.read_text(encoding="utf-8").splitlines())
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_records_hold_what_the_files_say_joined_by_id(cub_root: Path) -> None:
    records = read(cub_root)
    assert [record.image_id for record in records] == list(range(1, 10))
    record = records[4]  # the second picture of class 2
    assert record == SourceImage(
        image_id=5,
        class_id=2,
        class_name="002.Green_Dot",
        split="train",
        file_name="002.Green_Dot/dot_1.jpg",
        image_path=cub_root / "images" / "002.Green_Dot" / "dot_1.jpg",
        bbox=Bbox(12.0, 20.0, 109.0, 126.0),
        captions=tuple(f"a dot of class 2, picture 1, caption {number}" for number in range(10)),
    )
    assert all(record.image_path.is_file() for record in records)


@pytest.mark.parametrize("split", ["testclasses", "zero_shot"])
def test_a_class_is_in_one_split_only(split: SplitRule, cub_root: Path) -> None:
    classes = {(record.class_id, record.split) for record in read(cub_root, split)}
    assert classes == {(1, "test"), (2, "train"), (3, "train")}


def test_records_are_the_same_whatever_the_order_of_lines(cub_root: Path) -> None:
    expected = read(cub_root)
    for name in ("images.txt", "image_class_labels.txt", "bounding_boxes.txt", "classes.txt"):
        edit(cub_root / name, lambda lines: lines[::-2] + lines[-2::-2])
    assert read(cub_root) == expected


def test_annotations_may_stand_in_cubs_own_folder(cub_root: Path) -> None:
    flat = read(cub_root)
    inner = cub_root / "CUB_200_2011"
    inner.mkdir()
    for path in [*cub_root.glob("*.txt"), cub_root / "images"]:
        if path.name != "testclasses.txt":
            shutil.move(path, inner / path.name)
    nested = read(cub_root)
    assert [(record.image_id, record.bbox, record.captions) for record in nested] == [
        (record.image_id, record.bbox, record.captions) for record in flat
    ]
    assert nested[0].image_path == inner / "images" / "001.Red_Dot" / "dot_0.jpg"


def test_a_linked_data_set_is_read(cub_root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(cub_root, target_is_directory=True)
    assert len(read(tmp_path / "link")) == 9


def test_further_captions_empty_lines_and_foreign_line_ends_are_passed_over(cub_root: Path) -> None:
    path = cub_root / "text_c10" / "001.Red_Dot" / "dot_0.txt"
    path.write_bytes(b"\r\n".join(b"  caption %d  \r\n" % number for number in range(14)))
    assert read(cub_root)[0].captions == tuple(f"caption {number}" for number in range(10))
    assert len(read(cub_root, captions_per_image=3)[0].captions) == 3


CAPTIONS = "text_c10/002.Green_Dot/dot_1.txt"
PICTURE = "002.Green_Dot/dot_1.jpg"


def drop_line(name: str, start: str) -> Callable[[Path], None]:
    return lambda root: edit(root / name, lambda lines: [line for line in lines if not line.startswith(start)])


def add_line(name: str, line: str) -> Callable[[Path], None]:
    return lambda root: edit(root / name, lambda lines: [*lines, line])


def set_line(name: str, image_id: int, value: str) -> Callable[[Path], None]:
    def change(line: str) -> str:
        return f"{image_id} {value}" if line.startswith(f"{image_id} ") else line

    return lambda root: edit(root / name, lambda lines: [change(line) for line in lines])


# What is done to the data set, the file that must be named, and words of the remedy: of the whole data set.
BAD_DATA_SETS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no_data_set": (shutil.rmtree, "images", "Put (or link) the data set there"),
    "no_pictures": (lambda root: shutil.rmtree(root / "images"), "images", "must hold the pictures of CUB-200-2011"),
    "no_captions": (lambda root: shutil.rmtree(root / "text_c10"), "text_c10", "must hold the captions"),
    "no_images_txt": (lambda root: (root / "images.txt").unlink(), "images.txt", "bring it from CUB-200-2011"),
    "no_labels_txt": (
        lambda root: (root / "image_class_labels.txt").unlink(),
        "image_class_labels.txt",
        "bring it from CUB-200-2011",
    ),
    "no_boxes_txt": (lambda root: (root / "bounding_boxes.txt").unlink(), "bounding_boxes.txt", "bring it from CUB"),
    "no_classes_txt": (lambda root: (root / "classes.txt").unlink(), "classes.txt", "bring it from CUB-200-2011"),
    "empty_images_txt": (lambda root: (root / "images.txt").write_text("\n"), "images.txt", "is empty: bring it"),
    "no_testclasses_txt": (
        lambda root: (root / "testclasses.txt").unlink(),
        "testclasses.txt",
        "bring the list of test classes (one a line, such as '001.Red_Dot')",
    ),
    "unknown_test_class": (
        add_line("testclasses.txt", "004.Grey_Dot"),
        "testclasses.txt",
        "'004.Grey_Dot' is no class of this data set",
    ),
    "picture_twice": (
        add_line("images.txt", f"5 {PICTURE}"),
        "images.txt",
        "line 10: id 5 stands there twice; keep one",
    ),
    "box_twice": (add_line("bounding_boxes.txt", "5 1 1 2 2"), "bounding_boxes.txt", "id 5 stands there twice"),
    "label_twice": (add_line("image_class_labels.txt", "5 2"), "image_class_labels.txt", "id 5 stands there twice"),
    "line_without_value": (add_line("images.txt", "10"), "images.txt", "line 10: '10' is not `<id> <value>`"),
    "id_not_a_number": (add_line("images.txt", "ten a/b.jpg"), "images.txt", "is not `<id> <value>`"),
    "id_too_long": (add_line("images.txt", f"{2**63} a/b.jpg"), "images.txt", "is not `<id> <value>`"),
    "id_of_thousands_of_digits": (
        add_line("images.txt", "9" * 5000 + " a/b.jpg"),
        "images.txt",
        "is not `<id> <value>`",
    ),
    "negative_id": (add_line("images.txt", "-1 a/b.jpg"), "images.txt", "is not `<id> <value>`"),
}

# The same of one picture, which on_bad_image: skip leaves out.
BAD_IMAGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "picture_without_box": (
        drop_line("bounding_boxes.txt", "5 "),
        "bounding_boxes.txt",
        f"image 5 ({PICTURE}) has no box; add its line",
    ),
    "picture_without_class": (
        drop_line("image_class_labels.txt", "5 "),
        "image_class_labels.txt",
        f"image 5 ({PICTURE}) has no class that classes.txt lists; add it",
    ),
    "picture_without_captions": (lambda root: (root / CAPTIONS).unlink(), CAPTIONS, "needs its captions, one a line"),
    "too_few_captions": (
        lambda root: edit(root / CAPTIONS, lambda lines: [*lines[:9], "  "]),
        CAPTIONS,
        "has 9 captions, fewer than crop_images.captions_per_image = 10; add captions or lower that key",
    ),
    "empty_captions": (lambda root: (root / CAPTIONS).write_text(""), CAPTIONS, "has 0 captions"),
    "long_caption": (
        lambda root: edit(root / CAPTIONS, lambda lines: ["a dot " * 2000, *lines]),
        CAPTIONS,
        "has a caption of 11999 characters; shorten it to 1000",
    ),
    "captions_not_utf8": (
        lambda root: (root / CAPTIONS).write_bytes("ein grüner Punkt\n".encode("latin-1") * 10),
        CAPTIONS,
        "save it as UTF-8",
    ),
    "box_of_three_numbers": (
        set_line("bounding_boxes.txt", 5, "1 2 3"),
        "bounding_boxes.txt",
        "image 5 has the box ['1', '2', '3'], not four finite numbers x, y, width, height",
    ),
    "box_of_words": (
        set_line("bounding_boxes.txt", 5, "a b c d"),
        "bounding_boxes.txt",
        "image 5 has the box ['a', 'b', 'c', 'd'], not four finite numbers",
    ),
    "box_nan": (set_line("bounding_boxes.txt", 5, "1 2 nan 4"), "bounding_boxes.txt", "image 5 has the box"),
    "box_infinite": (set_line("bounding_boxes.txt", 5, "1 2 inf 4"), "bounding_boxes.txt", "image 5 has the box"),
    "label_not_a_number": (
        set_line("image_class_labels.txt", 5, "green"),
        "image_class_labels.txt",
        "image 5",
    ),
}


def refusal(root: Path) -> str:
    return refusal_of(lambda: read(root))


@pytest.mark.parametrize("name", [*BAD_DATA_SETS, *BAD_IMAGES])
def test_bad_input_is_refused_in_one_line_with_its_file_and_the_remedy(name: str, cub_root: Path) -> None:
    damage, file_name, remedy = {**BAD_DATA_SETS, **BAD_IMAGES}[name]
    damage(cub_root)
    message = refusal(cub_root)
    assert str(cub_root / file_name) in message
    assert remedy in message


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_picture_is_skipped_alone_and_noted(name: str, cub_root: Path) -> None:
    damage, file_name, remedy = BAD_IMAGES[name]
    damage(cub_root)
    bad = BadImages("skip")
    records = read_cub(cub_root, split="testclasses", captions_per_image=10, bad=bad)
    assert [record.image_id for record in records] == [1, 2, 3, 4, 6, 7, 8, 9]
    [(bad_name, reason)] = bad.found
    assert bad_name == PICTURE and str(cub_root / file_name) in reason and remedy in reason


def test_pictures_of_a_class_without_a_name_are_bad(cub_root: Path) -> None:
    drop_line("classes.txt", "3 ")(cub_root)
    bad = BadImages("skip")
    assert len(read_cub(cub_root, split="testclasses", captions_per_image=10, bad=bad)) == 6
    assert all("has no class that classes.txt lists; add it" in reason for _, reason in bad.found)


def test_cubs_own_split_is_refused_with_the_splits_there_are(cub_root: Path) -> None:
    message = refusal_of(lambda: read(cub_root, "official"))
    assert "crop_images.split" in message and "zero_shot or testclasses" in message


OUTSIDE = ("../../../secret.jpg", "/etc/secret.jpg", "002.Green_Dot/../../../secret.jpg")


@pytest.mark.parametrize("outside", OUTSIDE)
def test_a_path_that_leaves_its_folder_is_refused_before_anything_is_read(outside: str, cub_root: Path) -> None:
    set_line("images.txt", 5, outside)(cub_root)
    message = refusal(cub_root)
    assert f"{cub_root / 'images.txt'}: {outside!r} leads out of" in message and "remove it" in message


@pytest.mark.parametrize("name", ["images.txt", "classes.txt", "image_class_labels.txt", "testclasses.txt"])
def test_an_annotation_file_that_is_not_utf8_is_refused_by_name(name: str, cub_root: Path) -> None:
    path = cub_root / name
    path.write_bytes(path.read_bytes() + "99 Grünspecht\n".encode("latin-1"))
    assert str(path) in refusal(cub_root)


@pytest.mark.parametrize("name", ["images.txt", "image_class_labels.txt"])
def test_a_digit_that_is_no_decimal_is_refused_by_its_file(name: str, cub_root: Path) -> None:
    edit(cub_root / name, lambda lines: [*lines, "\u00b2 a/b.jpg"])
    assert str(cub_root / name) in refusal(cub_root)


@pytest.mark.parametrize("separator", ["\x0c", "\x85", "\u2028"])
def test_only_a_line_end_ends_a_caption(separator: str, cub_root: Path) -> None:
    replace(cub_root / "text_c10" / "001.Red_Dot" / "dot_0.txt", "a dot of class", f"a dot{separator} of class")
    assert read(cub_root)[0].captions[1] == "a dot of class 1, picture 0, caption 1"


def test_a_byte_order_mark_is_no_part_of_a_caption(cub_root: Path) -> None:
    path = cub_root / "text_c10" / "001.Red_Dot" / "dot_0.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read(cub_root)[0].captions[0] == "a dot of class 1, picture 0, caption 0"


def test_the_zero_shot_split_has_150_and_50_classes() -> None:
    assert len(ZERO_SHOT_TEST_CLASS_IDS) == 50
    assert set(range(1, 201)) >= ZERO_SHOT_TEST_CLASS_IDS


def test_the_real_subset_has_451_train_and_328_test_pictures(real_data: Path) -> None:
    records = read(real_data / "cub", "zero_shot")
    assert Counter(record.split for record in records) == {"train": 451, "test": 328}
    assert all(record.image_path.is_file() and len(record.captions) == 10 for record in records)
    assert all(record.file_name.startswith(record.class_name) for record in records)


def test_all_of_cub_has_8855_train_and_2933_test_pictures(real_data: Path, tmp_path: Path) -> None:
    official = real_data / "cub" / "official_annotations_all_11788"
    if not official.is_dir():
        pytest.skip(f"no {official}")
    for name in ("images.txt", "image_class_labels.txt", "bounding_boxes.txt"):
        (tmp_path / name).symlink_to((official / name).resolve())
    (tmp_path / "classes.txt").symlink_to((real_data / "cub" / "CUB_200_2011" / "classes.txt").resolve())
    (tmp_path / "images").mkdir()
    # Their captions are not at hand; empty files have none, and none is asked for.
    for class_line in (tmp_path / "classes.txt").read_text().splitlines():
        (tmp_path / "text_c10" / class_line.partition(" ")[2]).mkdir(parents=True)
    for line in (official / "images.txt").read_text().splitlines():
        (tmp_path / "text_c10" / line.partition(" ")[2]).with_suffix(".txt").touch()
    records = read(tmp_path, "zero_shot", captions_per_image=0)
    assert Counter(record.split for record in records) == {"train": 8855, "test": 2933}
    for split in ("train", "test"):
        published = (official / f"{split}_filenames.txt").read_text().split()
        assert sorted(published) == sorted(record.file_name[:-4] for record in records if record.split == split)
