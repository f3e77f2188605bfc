"""From pictures to shards: the right pixels in the right rows, stable bytes, nothing half-written after an error."""

import json
import resource
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import ray
from PIL import ExifTags, Image

from pipeline.cluster import map_shards
from pipeline.data.cropping import CropBox, CropRule
from pipeline.data.crops import CropJob, MapJobs, ShardCrops, crop_images, plan_crops, write_crops
from pipeline.data.decoding import decode_image, resize_crop
from pipeline.data.files import file_sha256
from pipeline.data.records import OnBadImage, SplitRule
from pipeline.data.shards import LOAD_SIZES, ImageShards, shard_path
from pipeline.data.tables import read_images
from tests.conftest import CLASS_NAMES

PICTURE = "images/002.Green_Dot/dot_1.jpg"


def in_order(work: Callable[[CropJob], ShardCrops], jobs: Sequence[CropJob]) -> list[ShardCrops]:
    return [work(job) for job in jobs]


def backwards_and_twice(work: Callable[[CropJob], ShardCrops], jobs: Sequence[CropJob]) -> list[ShardCrops]:
    """Run the last job first and each job twice, as when a task's worker died after it wrote its shard."""
    return [[work(job), work(job)][1] for job in reversed(jobs)][::-1]


def crop(
    root: Path,
    out: Path,
    *,
    rule: CropRule = "area",
    map_jobs: MapJobs = in_order,
    images_per_shard: int = 2,
    on_bad_image: OnBadImage = "fail",
    split: SplitRule = "testclasses",
) -> None:
    crop_images(
        root,
        out / "crops",
        out / "crop_images.json",
        out / "crop_images.jpg",
        source="cub",
        split=split,
        captions_per_image=10,
        on_bad_image=on_bad_image,
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
                    kept = np.asarray(image.crop(tuple(row["crop_box"])))
                np.testing.assert_array_equal(pixels, resize_crop(kept, size), err_msg=f"{row['file_name']} at {size}")


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
        "crop_images.jpg",
        "crop_images.json",
        "crops/images.parquet",
        *(f"crops/test/shard_0000{index}.arrow" for index in range(2)),
        *(f"crops/train/shard_0000{index}.arrow" for index in range(3)),
    ]


@pytest.mark.slow
def test_bytes_do_not_depend_on_the_number_of_workers_on_ray(cub_root: Path, tmp_path: Path) -> None:
    crop(cub_root, tmp_path / "here")
    for num_workers in (1, 2, 4):
        try:
            crop(cub_root, tmp_path / f"{num_workers}", map_jobs=partial(map_shards, num_workers=num_workers))
        finally:
            ray.shutdown()  # the next one starts with as many CPUs as it has workers
        assert files_of(tmp_path / f"{num_workers}") == files_of(tmp_path / "here")


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
    assert (report["source"], report["rule"]) == ("cub", "area")
    assert (report["num_bad_images"], report["bad_images"]) == (0, [])
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


def make_animation(path: Path) -> None:
    frames = [Image.new("RGB", (160, 180), colour) for colour in ("red", "blue")]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


def save_blank(width: int, height: int) -> Callable[[Path], None]:
    return lambda path: Image.new("1", (width, height)).save(path, "PNG")


BAD_PICTURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "cannot be decoded (image file is truncated"),
    "zero_bytes": (lambda path: path.write_bytes(b""), "bring a whole copy or remove it from the list"),
    "only_a_head": (lambda path: path.write_bytes(path.read_bytes()[:30]), "cannot be decoded ("),
    "text": (lambda path: path.write_text("404: not found"), "it is none of JPEG, PNG"),
    "missing": (lambda path: path.unlink(), "is missing though the data set lists it"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "is missing though the data set lists it"),
    "bomb": (save_blank(8001, 8001), "has 8001x8001 pixels, more than 64000000"),
    "one_pixel": (save_blank(1, 1), "has 1x1 pixels, a side shorter than 16"),
    "animated": (make_animation, "is an animation of 2 frames; save one frame as a picture"),
}
BAD_BOXES = {
    "nan": ("nan 20 30 30", "not four finite numbers"),
    "infinite": ("10 20 inf 30", "not four finite numbers"),
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


def left_out(root: Path, out: Path) -> str:
    """Crop, leaving out what is bad, which must be the third picture of the train split alone; return why."""
    crop(root, out, on_bad_image="skip")
    report = report_of(out)
    assert report["num_bad_images"] == 1
    (bad,) = report["bad_images"]
    assert bad["file"] == PICTURE.removeprefix("images/")
    ids = [4, 6, 7, 8, 9]
    assert [row["image_id"] for row in read_images(out / "crops", "train")] == ids
    for size in LOAD_SIZES.values():
        assert ImageShards(out / "crops" / "train", size).image_ids == ids
    assert report["num_images"] == {"train": 5, "test": 3}
    assert str(root) not in json.dumps(report)
    return bad["reason"]


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_bad_picture_is_named_and_nothing_half_written_remains(name: str, cub_root: Path, tmp_path: Path) -> None:
    damage, expected = BAD_PICTURES[name]
    damage(cub_root / PICTURE)
    assert expected in refusal(cub_root, tmp_path / "out", cub_root / PICTURE)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_bad_picture_is_left_out_and_listed(name: str, cub_root: Path, tmp_path: Path) -> None:
    damage, expected = BAD_PICTURES[name]
    damage(cub_root / PICTURE)
    reason = left_out(cub_root, tmp_path / "out")
    assert reason.startswith(f"{PICTURE} ") and expected in reason


@pytest.mark.parametrize("name", BAD_BOXES)
def test_a_bad_box_is_named_and_nothing_half_written_remains(name: str, cub_root: Path, tmp_path: Path) -> None:
    box, expected = BAD_BOXES[name]
    set_box(cub_root, 5, box)
    with pytest.raises(ValueError) as refused:
        crop(cub_root, tmp_path / "out")
    message = str(refused.value)
    assert expected in message and (str(cub_root / PICTURE) in message or "bounding_boxes.txt: image 5 " in message)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("name", BAD_BOXES)
def test_a_picture_with_a_bad_box_is_left_out_and_listed(name: str, cub_root: Path, tmp_path: Path) -> None:
    box, expected = BAD_BOXES[name]
    set_box(cub_root, 5, box)
    assert expected in left_out(cub_root, tmp_path / "out")


def test_a_box_that_only_the_picture_shows_to_be_bad_is_to_be_corrected(cub_root: Path, tmp_path: Path) -> None:
    set_box(cub_root, 5, "160 20 30 30")
    assert refusal(cub_root, tmp_path / "out", cub_root / PICTURE).endswith("; correct its box")


def test_a_picture_without_captions_is_listed_before_those_that_cannot_be_decoded(
    cub_root: Path, tmp_path: Path
) -> None:
    truncate(cub_root / PICTURE)
    (cub_root / "text_c10" / "003.Blue_Dot" / "dot_2.txt").write_text("only one\n")
    crop(cub_root, tmp_path, on_bad_image="skip")
    report = report_of(tmp_path)
    files = [bad["file"] for bad in report["bad_images"]]
    assert files == ["003.Blue_Dot/dot_2.jpg", "002.Green_Dot/dot_1.jpg"]
    assert report["num_bad_images"] == 2 and report["num_captions"] == 70
    assert report["bad_images"][0]["reason"].startswith("text_c10/003.Blue_Dot/dot_2.txt has 1 captions")


def test_the_list_of_bad_pictures_does_not_depend_on_where_the_data_set_lies(cub_root: Path, tmp_path: Path) -> None:
    for name, (damage, _) in zip(range(9), BAD_PICTURES.values(), strict=True):
        if name not in (0, 8):
            damage(cub_root / "images" / list(CLASS_NAMES.values())[name // 3] / f"dot_{name % 3}.jpg")
    elsewhere = tmp_path / "else where" / "é.d"
    shutil.copytree(cub_root, elsewhere)
    crop(cub_root, tmp_path / "one", on_bad_image="skip", map_jobs=backwards_and_twice)
    crop(elsewhere, tmp_path / "two", on_bad_image="skip")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert report_of(tmp_path / "one")["num_bad_images"] == 7


def test_a_shard_without_a_good_picture_is_not_written_and_others_keep_their_names(
    cub_root: Path, tmp_path: Path
) -> None:
    for name in ("002.Green_Dot/dot_2.jpg", "003.Blue_Dot/dot_0.jpg"):  # the second shard of three
        truncate(cub_root / "images" / name)
    crop(cub_root, tmp_path, on_bad_image="skip")
    assert sorted(path.name for path in (tmp_path / "crops" / "train").iterdir()) == [
        "shard_00000.arrow",
        "shard_00002.arrow",
    ]
    shards = ImageShards(tmp_path / "crops" / "train", 76)
    rows = read_images(tmp_path / "crops", "train")
    assert shards.image_ids == [row["image_id"] for row in rows] == [4, 5, 8, 9]
    third = decode_image(cub_root / "images" / rows[2]["file_name"])
    left, top, right, bottom = rows[2]["crop_box"]
    np.testing.assert_array_equal(shards.gather(np.array([2]))[0], resize_crop(third[top:bottom, left:right], 76))


def test_a_split_without_a_good_picture_is_refused(cub_root: Path, tmp_path: Path) -> None:
    crop(cub_root, tmp_path / "out")
    before = files_of(tmp_path / "out")
    for number in range(3):
        truncate(cub_root / "images" / "001.Red_Dot" / f"dot_{number}.jpg")
    with pytest.raises(ValueError, match="no picture of the test split can be used; 3 were left out") as refused:
        crop(cub_root, tmp_path / "out", on_bad_image="skip")
    assert str(cub_root / "images" / "001.Red_Dot" / "dot_0.jpg") in str(refused.value)
    assert files_of(tmp_path / "out") == before


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
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "crop_images.jpg",
        "crop_images.json",
        "crops",
    ]


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
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "crop_images.jpg",
        "crop_images.json",
        "crops",
    ]


def as_grey(path: Path) -> None:
    with Image.open(path) as image:
        grey = image.convert("L")
    grey.save(path)


def as_png_of_mode(mode: str) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        with Image.open(path) as image:
            picture = image.convert(mode)
        picture.save(path, "TIFF" if mode == "CMYK" else "PNG")

    return save


def as_sixteen_bits(path: Path) -> None:
    with Image.open(path) as image:
        grey = np.asarray(image.convert("L")).astype(np.uint16)
    Image.fromarray(grey * 257).save(path, "PNG")


ODD_PICTURES: dict[str, Callable[[Path], None]] = {
    "png_named_jpg": as_png_of_mode("RGB"),
    "greyscale": as_grey,
    "cmyk": as_png_of_mode("CMYK"),
    "rgba": as_png_of_mode("RGBA"),
    "palette": as_png_of_mode("P"),
    "sixteen_bits": as_sixteen_bits,
}


@pytest.mark.parametrize("name", ODD_PICTURES)
def test_an_odd_picture_goes_through_to_the_shards(name: str, cub_root: Path, tmp_path: Path) -> None:
    crop(cub_root, tmp_path / "plain")
    ODD_PICTURES[name](cub_root / PICTURE)
    crop(cub_root, tmp_path / "odd")
    plain, odd = (ImageShards(tmp_path / kind / "crops" / "train", 76).all()[1] for kind in ("plain", "odd"))
    if name in ("greyscale", "sixteen_bits"):
        assert (odd == odd[..., :1]).all()
        plain = np.repeat(np.dot(plain, [0.299, 0.587, 0.114])[..., None], 3, axis=2)
    assert np.abs(odd - plain.astype(float)).mean() < (8 if name == "palette" else 1.5)


def test_the_box_of_a_turned_picture_is_of_the_upright_one(cub_root: Path, tmp_path: Path) -> None:
    crop(cub_root, tmp_path / "plain")
    with Image.open(cub_root / PICTURE) as image:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6  # turn by 90 degrees clockwise to see it upright
        lying = image.transpose(Image.Transpose.ROTATE_90)
    lying.save(cub_root / PICTURE, "PNG", exif=exif)
    crop(cub_root, tmp_path / "turned")
    assert files_of(tmp_path / "plain") == files_of(tmp_path / "turned")


def test_a_very_wide_picture_goes_through(cub_root: Path, tmp_path: Path) -> None:
    Image.new("RGB", (20_000, 16), (10, 200, 30)).save(cub_root / PICTURE, "PNG")
    set_box(cub_root, 5, "0 0 20000 16")
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


def test_a_box_that_overruns_by_a_pixel_is_cut_to_the_picture(cub_root: Path, tmp_path: Path) -> None:
    set_box(cub_root, 5, "61.0 -1.0 100.0 182.0")  # the picture is 160x180
    crop(cub_root, tmp_path)
    assert read_images(tmp_path / "crops", "train")[1]["bbox"] == [61.0, 0.0, 99.0, 180.0]
    assert report_of(tmp_path)["num_boxes_cut_to_the_picture"] == 1


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
    crop(root, tmp_path, split="zero_shot", images_per_shard=8)
    report = report_of(tmp_path)
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
        on_bad_image="fail",
    )
    write_crops(alone)
    assert file_sha256(alone.shard_path) == file_sha256(shard_path(tmp_path / "all" / "crops" / "train", 1))


def test_a_picture_without_a_box_is_its_own_box(cub_root: Path, tmp_path: Path) -> None:
    jobs: list[CropJob] = []
    crop(cub_root, tmp_path / "all", map_jobs=lambda work, given: [jobs.append(job) or work(job) for job in given])
    for rule in get_args(CropRule):
        path = shard_path(tmp_path / rule, 0)
        boxless = tuple(replace(record, bbox=None) for record in jobs[0].records)
        done = write_crops(replace(jobs[0], records=boxless, shard_path=path, rule=rule))
        assert done.bad_images == []
        for record, row, pixels in zip(boxless, done.rows, ImageShards(path.parent, 76).all(), strict=True):
            assert row["bbox"] == row["crop_box"] == [0, 0, row["width"], row["height"]]
            assert row["object_area_ratio"] == row["object_area_ratio_before"] == 1
            np.testing.assert_array_equal(pixels, resize_crop(decode_image(record.image_path), 76))


def test_two_pictures_of_one_id_are_refused_by_their_names(cub_root: Path, tmp_path: Path) -> None:
    jobs: list[CropJob] = []
    crop(cub_root, tmp_path, map_jobs=lambda work, given: [jobs.append(job) or work(job) for job in given])
    records = [record for job in jobs for record in job.records]
    records[3] = replace(records[3], image_id=records[1].image_id)
    with pytest.raises(ValueError, match="both have image_id 5; give each its own") as refused:
        plan_crops(records, tmp_path, rule="area", min_object_area=0.75, images_per_shard=2, on_bad_image="skip")
    assert str(records[1].image_path) in str(refused.value) and str(records[3].image_path) in str(refused.value)
