"""From pictures to shards: the right pixels in the right rows, stable bytes, nothing half-written after an error."""

import json
import resource
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data.cropping import CropBox, CropRule
from pipeline.data.crops import CropJob, Row, crop_images, decode_image, write_crops
from pipeline.data.shards import LOAD_SIZES, ImageShards, shard_path
from pipeline.data.tables import read_images

PICTURE = "images/002.Green_Dot/dot_1.jpg"
MapJobs = Callable[[Callable[[CropJob], list[Row]], Sequence[CropJob]], Sequence[list[Row]]]


def in_order(work: Callable[[CropJob], list[Row]], jobs: Sequence[CropJob]) -> list[list[Row]]:
    return [work(job) for job in jobs]


def backwards_and_twice(work: Callable[[CropJob], list[Row]], jobs: Sequence[CropJob]) -> list[list[Row]]:
    """Run the last job first and each job twice, as when a task's worker died after it wrote its shard."""
    return [[work(job), work(job)][1] for job in reversed(jobs)][::-1]


def crop(
    root: Path, out: Path, *, rule: CropRule = "area", map_jobs: MapJobs = in_order, images_per_shard: int = 2
) -> None:
    crop_images(
        root,
        out / "crops",
        out / "crop_images.json",
        split="testclasses",
        captions_per_image=10,
        rule=rule,
        min_object_area=0.75,
        images_per_shard=images_per_shard,
        map_jobs=map_jobs,
    )


def report_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "crop_images.json").read_text())


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def set_box(root: Path, image_id: int, box: str) -> None:
    path = root / "bounding_boxes.txt"
    lines = [f"{image_id} {box}" if line.startswith(f"{image_id} ") else line for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines))


def area_weights(length: int, size: int) -> np.ndarray:
    """Return (size, length): row r averages the stretch [r, r + 1) * length / size of the pixels."""
    edges = np.arange(size + 1) * length / size
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.maximum(overlap, 0) * size / length


def cubic_weights(length: int, size: int) -> np.ndarray:
    """Return (size, length): cubic convolution with a = -0.75 at half-pixel centres, the border repeated."""
    a = -0.75
    weights = np.zeros((size, length))
    for row in range(size):
        center = (row + 0.5) * length / size - 0.5
        for pixel in range(int(np.floor(center)) - 1, int(np.floor(center)) + 3):
            t = abs(center - pixel)
            near = (a + 2) * t**3 - (a + 3) * t**2 + 1
            far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
            weights[row, min(max(pixel, 0), length - 1)] += near if t <= 1 else far
    return weights


def resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize by matrices: a side that shrinks is averaged over areas, one that grows is convolved with a cubic."""
    down, across = ((area_weights if length >= size else cubic_weights)(length, size) for length in pixels.shape[:2])
    rows = np.tensordot(down, pixels.astype(float), axes=1)  # (size, width, 3)
    return np.einsum("rwc,sw->rsc", rows, across, optimize=True).clip(0, 255)


@pytest.mark.parametrize("rule", ["area", "published", "none"])
def test_shards_hold_the_crops_of_their_rows(rule: CropRule, cub_root: Path, tmp_path: Path) -> None:
    crop(cub_root, tmp_path, rule=rule)
    for split, image_ids in (("train", [4, 5, 6, 7, 8, 9]), ("test", [1, 2, 3])):
        rows = read_images(tmp_path / "crops", split)
        assert [row["image_id"] for row in rows] == image_ids
        for size in LOAD_SIZES.values():
            shards = ImageShards(tmp_path / "crops" / split, size)
            assert shards.image_ids == image_ids
            for row, pixels in zip(rows, shards.all(), strict=True):
                with Image.open(cub_root / "images" / row["file_name"]) as image:
                    expected = resized(np.asarray(image.crop(tuple(row["crop_box"]))), size)
                assert np.abs(pixels - expected).max() <= 1.5, (row["file_name"], size)


def test_rows_hold_the_sizes_boxes_and_captions_of_their_pictures(cub_root: Path, tmp_path: Path) -> None:
    set_box(cub_root, 5, "100.0 -4.0 500.0 90.5")
    crop(cub_root, tmp_path)
    row = read_images(tmp_path / "crops", "train")[1]
    assert (row["image_id"], row["class_id"], row["class_name"]) == (5, 2, "002.Green_Dot")
    assert (row["width"], row["height"], row["file_name"]) == (160, 180, "002.Green_Dot/dot_1.jpg")
    assert row["bbox"] == [100.0, 0.0, 60.0, 86.5]  # cut to the picture
    box = CropBox(*row["crop_box"])
    assert row["object_area_ratio_before"] == pytest.approx(60 * 86.5 / (160 * 180))
    assert row["object_area_ratio"] == pytest.approx(60 * 86.5 / ((box.right - box.left) * (box.bottom - box.top)))
    assert row["object_area_ratio"] >= 0.75
    assert row["captions"] == [f"a dot of class 2, picture 1, caption {number}" for number in range(10)]
    assert report_of(tmp_path)["num_boxes_cut_to_the_picture"] == 1


def test_bytes_do_not_depend_on_the_order_or_repetition_of_jobs(cub_root: Path, tmp_path: Path) -> None:
    crop(cub_root, tmp_path / "one")
    crop(cub_root, tmp_path / "two", map_jobs=backwards_and_twice)
    files = files_of(tmp_path / "one")
    assert files == files_of(tmp_path / "two")
    assert sorted(files) == [
        "crop_images.json",
        "crops/images.parquet",
        *(f"crops/test/shard_0000{index}.arrow" for index in range(2)),
        *(f"crops/train/shard_0000{index}.arrow" for index in range(3)),
    ]


def test_bytes_do_not_depend_on_where_the_data_set_lies(cub_root: Path, tmp_path: Path) -> None:
    shutil.copytree(cub_root, tmp_path / "elsewhere")
    crop(cub_root, tmp_path / "one")
    crop(tmp_path / "elsewhere", tmp_path / "two")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


@pytest.mark.parametrize("images_per_shard", [1, 4, 100])
def test_pictures_do_not_depend_on_the_size_of_shards(images_per_shard: int, cub_root: Path, tmp_path: Path) -> None:
    crop(cub_root, tmp_path / "one", images_per_shard=2)
    crop(cub_root, tmp_path / "two", images_per_shard=images_per_shard)
    one, two = (ImageShards(tmp_path / name / "crops" / "train", 76) for name in ("one", "two"))
    assert one.image_ids == two.image_ids
    np.testing.assert_array_equal(one.all(), two.all())
    assert report_of(tmp_path / "one") == report_of(tmp_path / "two")
    assert len(list((tmp_path / "two" / "crops" / "train").iterdir())) == -(-6 // images_per_shard)


def test_the_report_counts_every_picture_once(cub_root: Path, tmp_path: Path) -> None:
    crop(cub_root, tmp_path)
    report = report_of(tmp_path)
    rows = read_images(tmp_path / "crops", "train") + read_images(tmp_path / "crops", "test")
    assert report["rule"] == "area"
    assert report["num_images"] == {"train": 6, "test": 3}
    assert report["num_classes"] == {"train": 2, "test": 1}
    assert report["num_captions"] == 90
    assert report["num_boxes_cut_to_the_picture"] == 0
    for when, key in (("before", "object_area_ratio_before"), ("after", "object_area_ratio")):
        ratios = [row[key] for row in rows]
        told = report["object_area_ratio"][when]
        edges = told["histogram_edges"]
        assert sum(told["histogram"]) == 9 and len(edges) == 21 and edges[0] == 0 and edges[-1] == 1
        assert told["histogram"] == np.histogram(ratios, edges)[0].tolist()
        assert told["min"] == pytest.approx(min(ratios), abs=1e-4)
        assert told["max"] == pytest.approx(max(ratios), abs=1e-4)
        assert told["median"] == pytest.approx(np.median(ratios), abs=1e-4)
        assert told["share_below_0.5"] == pytest.approx(np.mean(np.array(ratios) < 0.5), abs=1e-4)
        assert told["share_at_least_0.75"] == pytest.approx(np.mean(np.array(ratios) >= 0.75), abs=1e-4)
    assert report["object_area_ratio"]["after"]["share_at_least_0.75"] == 1
    boxes = [CropBox(*row["crop_box"]) for row in rows]
    sides = [sorted((box.right - box.left, box.bottom - box.top)) for box in boxes]
    assert report["median_aspect_stretch"] == pytest.approx(
        np.median([long / short for short, long in sides]), abs=1e-4
    )


def test_an_older_output_is_replaced_whole(cub_root: Path, tmp_path: Path) -> None:
    crop(cub_root, tmp_path, images_per_shard=1)
    crop(cub_root, tmp_path, images_per_shard=100)
    crop(cub_root, tmp_path / "fresh", images_per_shard=100)
    assert files_of(tmp_path / "crops") == files_of(tmp_path / "fresh" / "crops")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make_huge(path: Path) -> None:
    """Write a picture of 8,001 x 8,001 black pixels, which its file hardly shows."""
    Image.new("1", (8001, 8001)).save(path, "PNG")


BAD_PICTURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "cannot be decoded (image file is truncated"),
    "zero_bytes": (lambda path: path.write_bytes(b""), "bring a whole copy or remove its line"),
    "only_a_head": (lambda path: path.write_bytes(path.read_bytes()[:30]), "bring a whole copy or remove its line"),
    "text": (lambda path: path.write_text("404: not found"), "bring a whole copy or remove its line"),
    "missing": (lambda path: path.unlink(), "is missing though images.txt lists it; bring it or remove its line"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "bring it or remove its line"),
    "huge": (make_huge, "8001x8001 pixels, more than"),
}
BAD_BOXES = {
    "nan": ("nan 20 30 30", "is not finite"),
    "infinite": ("10 20 inf 30", "is not finite"),
    "no_width": ("10 20 0 30", "is empty or outside the picture of 160x180 pixels"),
    "negative_height": ("10 20 30 -5", "is empty or outside"),
    "right_of_the_picture": ("160 20 30 30", "is empty or outside"),
    "above_the_picture": ("10 -40 30 40", "is empty or outside"),
}


def refusal(root: Path, out: Path, path: Path) -> str:
    """Crop, and return the message of the refusal, which must name `path` in one line and leave nothing behind."""
    with pytest.raises(ValueError) as refused:
        crop(root, out)
    message = str(refused.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_bad_picture_is_named_and_nothing_half_written_remains(name: str, cub_root: Path, tmp_path: Path) -> None:
    damage, expected = BAD_PICTURES[name]
    damage(cub_root / PICTURE)
    assert expected in refusal(cub_root, tmp_path / "out", cub_root / PICTURE)
    assert not files_of(tmp_path / "out") and not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("name", BAD_BOXES)
def test_a_bad_box_is_named_and_nothing_half_written_remains(name: str, cub_root: Path, tmp_path: Path) -> None:
    box, expected = BAD_BOXES[name]
    set_box(cub_root, 5, box)
    message = refusal(cub_root, tmp_path / "out", cub_root / PICTURE)
    assert expected in message and "correct its line in bounding_boxes.txt" in message
    assert not list((tmp_path / "out").glob("*"))


def test_a_data_set_that_is_not_whole_is_refused_before_anything_is_written(cub_root: Path, tmp_path: Path) -> None:
    path = cub_root / "text_c10" / "002.Green_Dot" / "dot_1.txt"
    path.unlink()
    refusal(cub_root, tmp_path / "out", path)
    assert not (tmp_path / "out").exists()


def test_an_error_leaves_the_output_before_it(cub_root: Path, tmp_path: Path) -> None:
    crop(cub_root, tmp_path / "out")
    before = files_of(tmp_path / "out")
    truncate(cub_root / PICTURE)
    refusal(cub_root, tmp_path / "out", cub_root / PICTURE)
    assert files_of(tmp_path / "out") == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["crop_images.json", "crops"]


def test_a_full_disk_leaves_the_output_before_it(cub_root: Path, tmp_path: Path) -> None:
    crop(cub_root, tmp_path / "out")
    before = files_of(tmp_path / "out")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))  # less than two pictures of 304x304
    try:
        with pytest.raises(OSError):
            crop(cub_root, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_of(tmp_path / "out") == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["crop_images.json", "crops"]


COLOURS = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)


def test_a_greyscale_picture_has_three_equal_channels(tmp_path: Path) -> None:
    grey = COLOURS[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.jpg", "PNG")
    np.testing.assert_array_equal(decode_image(tmp_path / "grey.jpg"), np.repeat(grey[..., None], 3, axis=2))


def test_a_greyscale_picture_goes_through_to_the_shards(cub_root: Path, tmp_path: Path) -> None:
    with Image.open(cub_root / PICTURE) as image:
        grey = image.convert("L")
    grey.save(cub_root / PICTURE)
    crop(cub_root, tmp_path)
    pixels = ImageShards(tmp_path / "crops" / "train", 76).all()[1]
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 1])
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])
    assert pixels.std() > 10


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1", "CMYK"])
def test_a_picture_of_any_mode_and_name_decodes_to_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    Image.fromarray(COLOURS).convert(mode).save(path, "TIFF" if mode == "CMYK" else "PNG")
    pixels = decode_image(path)
    assert pixels.shape == (7, 9, 3) and pixels.dtype == np.uint8
    if mode in ("RGB", "RGBA"):
        np.testing.assert_array_equal(pixels, COLOURS)


def test_a_picture_of_one_pixel_goes_through(cub_root: Path, tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (10, 200, 30)).save(cub_root / PICTURE, "PNG")
    set_box(cub_root, 5, "0 0 1 1")
    crop(cub_root, tmp_path)
    pixels = ImageShards(tmp_path / "crops" / "train", 304).all()[1]
    assert (pixels == (10, 200, 30)).all()


def test_a_very_wide_picture_goes_through(cub_root: Path, tmp_path: Path) -> None:
    Image.new("RGB", (20_000, 3), (10, 200, 30)).save(cub_root / PICTURE, "PNG")
    set_box(cub_root, 5, "0 0 20000 3")
    crop(cub_root, tmp_path)
    assert (ImageShards(tmp_path / "crops" / "train", 76).all()[1] == (10, 200, 30)).all()


def published_crop_box(box: tuple[int, int, int, int], width: int, height: int) -> list[int]:
    x, y, box_width, box_height = box
    center_x, center_y = int((2 * x + box_width) / 2), int((2 * y + box_height) / 2)
    half_side = int(max(box_width, box_height) * 0.75)
    return [
        max(0, center_x - half_side),
        max(0, center_y - half_side),
        min(width, center_x + half_side),
        min(height, center_y + half_side),
    ]


def test_the_published_rule_takes_a_box_that_overruns_as_it_stands(cub_root: Path, tmp_path: Path) -> None:
    set_box(cub_root, 5, "60.0 70.0 110.0 60.0")  # the picture is 160 wide; CUB's image 757 of 779 is such a one
    crop(cub_root, tmp_path, rule="published")
    row = read_images(tmp_path / "crops", "train")[1]
    assert row["crop_box"] == published_crop_box((60, 70, 110, 60), 160, 180)


def test_a_box_between_pixels_inside_the_picture_does_not_count_as_cut(cub_root: Path, tmp_path: Path) -> None:
    set_box(cub_root, 5, "10.1 20.1 60.2 60.2")
    crop(cub_root, tmp_path)
    assert report_of(tmp_path)["num_boxes_cut_to_the_picture"] == 0


def test_a_torn_picture_of_another_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    Image.fromarray(COLOURS).save(path, "PPM")
    path.write_bytes(path.read_bytes()[:9])
    with pytest.raises(ValueError, match=str(path)):
        decode_image(path)


def test_a_decompression_bomb_is_refused_without_a_warning_beside_it(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "bomb.jpg"
    path.write_bytes(b"P4\n10000 10000\n")  # 100 million pixels: PIL's warning begins at 89 million
    with pytest.raises(ValueError, match=str(path)):
        decode_image(path)
    assert not recwarn.list


def test_a_picture_of_sixteen_bits_keeps_its_shades(tmp_path: Path) -> None:
    grey = COLOURS[..., 0]
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    np.testing.assert_allclose(decode_image(tmp_path / "deep.png")[..., 0], grey, atol=1)


def test_real_birds_go_through_with_three_quarters_of_the_area(real_data: Path, tmp_path: Path) -> None:
    """One picture of each class of the real subset."""
    source, root = real_data / "cub" / "CUB_200_2011", tmp_path / "few"
    root.mkdir()
    lines = (source / "images.txt").read_text().splitlines()
    first = {line.split("/")[0].split(" ")[1]: line for line in reversed(lines)}
    (root / "images.txt").write_text("\n".join(first.values()))
    for path in (
        source / "images",
        source / "bounding_boxes.txt",
        source / "image_class_labels.txt",
        source / "classes.txt",
    ):
        (root / path.name).symlink_to(path.resolve())
    (root / "text_c10").symlink_to((real_data / "cub" / "text_c10").resolve())
    crop_images(
        root,
        tmp_path / "crops",
        tmp_path / "report.json",
        split="zero_shot",
        captions_per_image=10,
        rule="area",
        min_object_area=0.75,
        images_per_shard=8,
        map_jobs=in_order,
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert sum(report["num_images"].values()) == len(first) == 14
    assert report["object_area_ratio"]["after"]["share_at_least_0.75"] == 1
    for split in ("train", "test"):
        pixels = ImageShards(tmp_path / "crops" / split, 304).all()
        assert (pixels.std(axis=(1, 2, 3)) > 10).all()  # pictures, not blanks


def test_a_shard_is_a_function_of_its_records_alone(cub_root: Path, tmp_path: Path) -> None:
    jobs: list[CropJob] = []
    crop(cub_root, tmp_path / "all", map_jobs=lambda work, given: [jobs.append(job) or work(job) for job in given])
    alone = CropJob(
        records=jobs[1].records,
        shard_path=shard_path(tmp_path / "alone", 7),
        rule=jobs[1].rule,
        min_object_area=jobs[1].min_object_area,
    )
    write_crops(alone)
    assert alone.shard_path.read_bytes() == shard_path(tmp_path / "all" / "crops" / "train", 1).read_bytes()
