"""From published pictures to image shards: decode, check, crop around the object, resize, write.

The work is cut into shards, each a function of its own records alone, so its bytes do not depend on which worker wrote
it or on how many there were.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.data.contact_sheet import contact_sheet, spread_over
from pipeline.data.crop_report import bad_image_report, crop_report
from pipeline.data.cropping import Bbox, CropBox, CropRule, bbox_inside, crop_box_for, object_area_ratio
from pipeline.data.decoding import Pixels, decode_image, resize_crop
from pipeline.data.files import replaced_file, replaced_folder, write_json
from pipeline.data.records import BadImage, BadImages, OnBadImage, SourceImage, SplitRule
from pipeline.data.shards import LOAD_SIZES, shard_path, write_shard
from pipeline.data.sources import SourceName, read_source
from pipeline.data.tables import IMAGES, write_table

Row = dict[str, Any]  # of images.parquet
NUM_SHEET_PICTURES = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class CropJob:
    """One shard's work."""

    records: tuple[SourceImage, ...]
    shard_path: Path
    rule: CropRule
    min_object_area: float
    on_bad_image: OnBadImage

    @property
    def reads(self) -> list[Path]:
        """List the pictures."""
        return [record.image_path for record in self.records]

    @property
    def writes(self) -> list[Path]:
        """List the shard."""
        return [self.shard_path]


class ShardCrops(NamedTuple):
    """What became of one shard's pictures."""

    rows: list[Row]
    bad_images: list[BadImage]  # not in the shard


MapJobs = Callable[[Callable[[CropJob], ShardCrops], Sequence[CropJob]], Sequence[ShardCrops]]


def crop_images(
    raw_dir: Path,
    crops_dir: Path,
    report_path: Path,
    sheet_path: Path,
    *,
    source: SourceName,
    split: SplitRule,
    captions_per_image: int,
    on_bad_image: OnBadImage,
    rule: CropRule,
    min_object_area: float,
    images_per_shard: int,
    map_jobs: MapJobs,
) -> None:
    """Crop a data set: write its shards, images.parquet, the report and the contact sheet.

    Args:
        raw_dir: the data set, see pipeline.data.sources.
        crops_dir: replaced whole; an error leaves it as it was.
        report_path: JSON with the distribution of object_area_ratio before and after, and the bad pictures.
        sheet_path: JPEG, see pipeline.data.contact_sheet.
        source: see read_source, as are split and captions_per_image.
        split: which pictures are the test split.
        captions_per_image: of each picture.
        on_bad_image: `fail` ends with the first picture that cannot be used, `skip` leaves it out and lists it.
        rule: see pipeline.data.cropping, as is min_object_area.
        min_object_area: for rule `area`.
        images_per_shard: pictures a shard; a task's memory is about 300 kB for each.
        map_jobs: calls a function on every job and returns the results in their order.

    Raises:
        ValueError: the data set is not whole, or no picture of a split can be used; the message names the file and the
            remedy.
    """
    records, unread = read_source(
        raw_dir, source=source, split=split, captions_per_image=captions_per_image, on_bad_image=on_bad_image
    )
    with replaced_folder(crops_dir) as partial_dir:
        jobs = plan_crops(
            records,
            partial_dir,
            rule=rule,
            min_object_area=min_object_area,
            images_per_shard=images_per_shard,
            on_bad_image=on_bad_image,
        )
        shards = map_jobs(write_crops, jobs)
        rows = [row for shard in shards for row in shard.rows]
        bad_images = [*unread, *(bad for shard in shards for bad in shard.bad_images)]
        _require_both_splits_left(rows, bad_images, raw_dir)
        write_table(partial_dir / "images.parquet", pa.Table.from_pylist(rows, schema=IMAGES))
        report = {
            "source": source,
            "rule": rule,
            **crop_report(rows, {record.image_id: record.bbox for record in records}),
            **bad_image_report(bad_images, raw_dir),
        }
        chosen = spread_over([row["object_area_ratio_before"] for row in rows], NUM_SHEET_PICTURES)
        record_of = {record.image_id: record for record in records}
        sheet = contact_sheet(
            [record_of[rows[place]["image_id"]] for place in chosen], rule=rule, min_object_area=min_object_area
        )
    write_json(report_path, report)
    with replaced_file(sheet_path) as partial_path:
        partial_path.write_bytes(sheet)


def plan_crops(
    records: Sequence[SourceImage],
    out_dir: Path,
    *,
    rule: CropRule,
    min_object_area: float,
    images_per_shard: int,
    on_bad_image: OnBadImage,
) -> list[CropJob]:
    """Cut each split's records, in their order, into jobs of `images_per_shard`.

    Raises:
        ValueError: two records have one image_id.
    """
    _require_distinct_ids(records)
    jobs: list[CropJob] = []
    for split in ("train", "test"):
        chosen = [record for record in records if record.split == split]
        for index, start in enumerate(range(0, len(chosen), images_per_shard)):
            jobs.append(
                CropJob(
                    records=tuple(chosen[start : start + images_per_shard]),
                    shard_path=shard_path(out_dir / split, index),
                    rule=rule,
                    min_object_area=min_object_area,
                    on_bad_image=on_bad_image,
                )
            )
    return jobs


def write_crops(job: CropJob) -> ShardCrops:
    """Write one shard and return its rows of images.parquet; without a usable picture there is no shard.

    Raises:
        ValueError: on_bad_image is `fail`, and a picture cannot be decoded or its box is empty or outside; the message
            names the file.
    """
    pixels = {size: np.empty((len(job.records), size, size, 3), np.uint8) for size in LOAD_SIZES.values()}
    rows: list[Row] = []
    bad = BadImages(job.on_bad_image)
    for record in job.records:
        with bad.noted(record.file_name):
            row, crop = _cropped(record, job)
            for size in LOAD_SIZES.values():
                pixels[size][len(rows)] = resize_crop(crop, size)
            rows.append(row)
    if rows:
        image_ids = [row["image_id"] for row in rows]
        write_shard(job.shard_path, image_ids, {size: images[: len(rows)] for size, images in pixels.items()})
    return ShardCrops(rows, bad.found)


def _cropped(record: SourceImage, job: CropJob) -> tuple[Row, Pixels]:
    image = decode_image(record.image_path)
    height, width = image.shape[:2]
    whole = Bbox(0.0, 0.0, float(width), float(height))
    try:
        bbox = bbox_inside(record.bbox or whole, width, height)
    except ValueError as error:
        raise ValueError(f"{record.image_path}: {error}; correct its box") from None
    crop_box = crop_box_for(record.bbox or whole, width, height, rule=job.rule, min_object_area=job.min_object_area)
    crop = image[crop_box.top : crop_box.bottom, crop_box.left : crop_box.right]
    return _row(record, width, height, bbox, crop_box), crop


def _require_distinct_ids(records: Sequence[SourceImage]) -> None:
    first: dict[int, SourceImage] = {}
    for record in records:
        other = first.setdefault(record.image_id, record)
        if other is not record:
            raise ValueError(
                f"{record.image_path} and {other.image_path} both have image_id {record.image_id}; give each its own"
            )


def _require_both_splits_left(rows: Sequence[Row], bad_images: Sequence[BadImage], raw_dir: Path) -> None:
    for split in ("train", "test"):
        if not any(row["split"] == split for row in rows):
            raise ValueError(
                f"{raw_dir}: no picture of the {split} split can be used; {len(bad_images)} were left out, the first "
                f"because {bad_images[0].reason}"
            )


def _row(record: SourceImage, width: int, height: int, bbox: Bbox, crop_box: CropBox) -> Row:
    return {
        "image_id": record.image_id,
        "class_id": record.class_id,
        "class_name": record.class_name,
        "split": record.split,
        "file_name": record.file_name,
        "width": width,
        "height": height,
        "bbox": list(bbox),
        "crop_box": list(crop_box),
        "object_area_ratio_before": object_area_ratio(bbox, CropBox(0, 0, width, height)),
        "object_area_ratio": object_area_ratio(bbox, crop_box),
        "captions": list(record.captions),
    }
