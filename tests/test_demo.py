"""The demo data set: CUB's layout, true boxes and captions, the same bytes for the same arguments."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.demo import DemoSummary, make_demo_dataset
from pipeline.data.demo_captions import COLOURS
from pipeline.data.files import file_sha256
from tests.demo_data import words

TINY = {"num_train_classes": 2, "num_test_classes": 2, "images_per_class": 1, "captions_per_image": 3, "seed": 4}
NUM_TRAIN, NUM_TEST, NUM_IMAGES, NUM_CAPTIONS = 12, 5, 4, 10


def fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def table(folder: Path, name: str) -> list[list[str]]:
    return [line.split(" ") for line in (folder / name).read_text().splitlines()]


def captions_of(folder: Path, relative_path: str) -> list[str]:
    return (folder / "text_c10" / relative_path).with_suffix(".txt").read_text().splitlines()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoSummary]:
    folder = tmp_path_factory.mktemp("raw") / "demo"
    summary = make_demo_dataset(
        folder, num_train_classes=NUM_TRAIN, num_test_classes=NUM_TEST, images_per_class=NUM_IMAGES,
        captions_per_image=NUM_CAPTIONS, seed=0,
    )  # fmt: skip
    return folder, summary


# ---- the files -------------------------------------------------------------------------------------------------------


def test_layout_is_cubs_and_counts_agree(demo: tuple[Path, DemoSummary]) -> None:
    folder, summary = demo
    num_classes = NUM_TRAIN + NUM_TEST
    images, boxes, labels = (table(folder, f"{n}.txt") for n in ("images", "bounding_boxes", "image_class_labels"))
    classes = table(folder, "classes.txt")

    expected_ids = [str(k) for k in range(1, num_classes * NUM_IMAGES + 1)]
    assert [row[0] for row in images] == [row[0] for row in boxes] == [row[0] for row in labels] == expected_ids
    assert [row[0] for row in classes] == [str(k) for k in range(1, num_classes + 1)]
    class_names = dict(classes)
    for (_, path), (_, class_id) in zip(images, labels, strict=True):
        assert path.split("/")[0] == class_names[class_id]
        assert re.fullmatch(r"\d{3}\.[A-Z][A-Za-z_]+", class_names[class_id])
        assert len(captions_of(folder, path)) == NUM_CAPTIONS
    on_disk = sorted(p.relative_to(folder / "images").as_posix() for p in (folder / "images").rglob("*.jpg"))
    assert on_disk == sorted(row[1] for row in images)
    assert all(re.fullmatch(r"\d+\.\d", side) for row in boxes for side in row[1:])
    assert (summary.num_train_images, summary.num_test_images) == (NUM_TRAIN * NUM_IMAGES, NUM_TEST * NUM_IMAGES)
    assert summary.num_captions == num_classes * NUM_IMAGES * NUM_CAPTIONS


def test_same_arguments_write_the_same_bytes_in_another_process_and_another_seed_does_not(tmp_path: Path) -> None:
    make_demo_dataset(tmp_path / "first", **TINY)
    # Another hash seed would show any dependence on the order of a set.
    script = f"import pathlib, pipeline.data.demo as demo; demo.make_demo_dataset(pathlib.Path('second'), **{TINY})"
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    make_demo_dataset(tmp_path / "other", **{**TINY, "seed": 5})

    assert fingerprint(tmp_path / "first") == fingerprint(tmp_path / "second")
    assert fingerprint(tmp_path / "first") != fingerprint(tmp_path / "other")


def test_a_picture_depends_on_its_class_and_number_not_on_how_many_there_are(tmp_path: Path) -> None:
    make_demo_dataset(tmp_path / "one", **TINY)
    make_demo_dataset(tmp_path / "two", **{**TINY, "images_per_class": 2})
    for path in (tmp_path / "one" / "images").rglob("*.jpg"):
        assert file_sha256(path) == file_sha256(tmp_path / "two" / path.relative_to(tmp_path / "one"))


def test_an_older_data_set_is_replaced_whole_and_nothing_else_stays(tmp_path: Path) -> None:
    out_dir = tmp_path / "raw" / "demo"
    (out_dir / "images" / "999.Old_Bird").mkdir(parents=True)
    make_demo_dataset(out_dir, **TINY)
    assert not (out_dir / "images" / "999.Old_Bird").exists()
    assert [path.name for path in out_dir.parent.iterdir()] == ["demo"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_train_classes", 1), ("num_train_classes", 5000), ("num_test_classes", 0), ("num_test_classes", 50),
     ("images_per_class", 0), ("captions_per_image", 0), ("seed", -1)],
)  # fmt: skip
def test_impossible_counts_are_refused_by_name_and_leave_nothing(tmp_path: Path, key: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"make_demo_dataset\.{key} is {value}"):
        make_demo_dataset(tmp_path / "demo", **{**TINY, key: value})
    assert list(tmp_path.iterdir()) == []


# ---- the split -------------------------------------------------------------------------------------------------------


def test_classes_are_disjoint_and_test_colours_all_occur_in_train_captions(demo: tuple[Path, DemoSummary]) -> None:
    folder, _ = demo
    test_names = (folder / "testclasses.txt").read_text().splitlines()
    all_names = [row[1] for row in table(folder, "classes.txt")]
    assert len(set(all_names)) == len({name.split(".")[1] for name in all_names}) == NUM_TRAIN + NUM_TEST
    assert len(set(test_names)) == NUM_TEST
    assert set(test_names) < set(all_names)

    train_words: set[str] = set()
    test_colours: set[str] = set()
    for _, path in table(folder, "images.txt"):
        said = words(" ".join(captions_of(folder, path)))
        if path.split("/")[0] in test_names:
            test_colours |= said & set(COLOURS)
        else:
            train_words |= said
    assert len(test_colours) >= 5
    assert test_colours <= train_words
    shapes = {
        is_test: {n.split("_")[-1] for n in all_names if (n in test_names) == is_test} for is_test in (True, False)
    }
    assert shapes[True] <= shapes[False]


# ---- the pictures ----------------------------------------------------------------------------------------------------


def test_boxes_lie_inside_the_pictures_and_most_cover_less_than_half(demo: tuple[Path, DemoSummary]) -> None:
    folder, summary = demo
    shares: list[float] = []
    for (_, path), row in zip(table(folder, "images.txt"), table(folder, "bounding_boxes.txt"), strict=True):
        x, y, width, height = (float(side) for side in row[1:])
        with Image.open(folder / "images" / path) as image:
            assert image.format == "JPEG"
            assert not image.getexif()
            assert 300 <= image.width <= 400
            assert x >= 0
            assert y >= 0
            assert x + width <= image.width
            assert y + height <= image.height
            shares.append(width * height / (image.width * image.height))
    assert min(shares) > 0.05
    assert 0.7 <= np.mean(np.array(shares) < 0.5) < 1.0
    assert summary.share_below_half == np.mean(np.array(shares) < 0.5)


# ---- the captions ----------------------------------------------------------------------------------------------------


def test_every_caption_names_the_body_colour_and_captions_of_a_picture_differ(demo: tuple[Path, DemoSummary]) -> None:
    folder, _ = demo
    for _, path in table(folder, "images.txt"):
        body = path.split("/")[0].split("_")[-2].split(".")[-1].lower()
        captions = captions_of(folder, path)
        assert body in COLOURS
        assert len(captions) == len(set(captions)) == NUM_CAPTIONS
        assert all(body in words(caption) for caption in captions)
        assert all(caption.isascii() and caption == caption.lower() and len(caption) < 200 for caption in captions)
        assert not re.search(r"[{}]|\ba [aeiou]|  ", "\n".join(captions))
