"""From published pictures to image shards: decode, check, crop around the object, resize, write.

The work is cut into shards, each a function of its own records alone, so its bytes do not depend on which worker wrote
it or on how many there were.
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from pipeline.data.cropping import Bbox, CropBox, CropRule, bbox_inside, crop_box_for, object_area_ratio
from pipeline.data.cub import SourceImage, SplitRule, read_cub
from pipeline.data.files import replaced_folder, write_json
from pipeline.data.shards import LOAD_SIZES, shard_path, write_shard
from pipeline.data.tables import IMAGES, write_table

MAX_PIXELS = 64_000_000
Row = dict[str, Any]  # of images.parquet
RATIO_EDGES = tuple(round(0.05 * step, 2) for step in range(21))


@dataclass(frozen=True, kw_only=True, slots=True)
class CropJob:
    """One shard's work."""

    records: tuple[SourceImage, ...]
    shard_path: Path
    rule: CropRule
    min_object_area: float


def crop_images(
    raw_dir: Path,
    crops_dir: Path,
    report_path: Path,
    *,
    split: SplitRule,
    captions_per_image: int,
    rule: CropRule,
    min_object_area: float,
    images_per_shard: int,
    map_jobs: Callable[[Callable[[CropJob], list[Row]], Sequence[CropJob]], Sequence[list[Row]]],
) -> None:
    """Crop a data set in CUB's layout: write its shards, images.parquet and the report.

    Args:
        raw_dir: see pipeline.data.cub.
        crops_dir: replaced whole; an error leaves it as it was.
        report_path: JSON with the distribution of object_area_ratio before and after.
        split: see read_cub, as is captions_per_image.
        captions_per_image: of each picture.
        rule: see pipeline.data.cropping, as is min_object_area.
        min_object_area: for rule `area`.
        images_per_shard: pictures a shard; a task's memory is about 300 kB for each.
        map_jobs: calls a function on every job and returns the results in their order.

    Raises:
        ValueError: the data set is not whole; the message names the file and the remedy.
    """
    records = read_cub(raw_dir, split=split, captions_per_image=captions_per_image)
    with replaced_folder(crops_dir) as partial_dir:
        jobs = plan_crops(
            records, partial_dir, rule=rule, min_object_area=min_object_area, images_per_shard=images_per_shard
        )
        rows = [row for shard_rows in map_jobs(write_crops, jobs) for row in shard_rows]
        write_table(partial_dir / "images.parquet", pa.Table.from_pylist(rows, schema=IMAGES))
    write_json(report_path, crop_report(rows, records, rule))


def plan_crops(
    records: Sequence[SourceImage], out_dir: Path, *, rule: CropRule, min_object_area: float, images_per_shard: int
) -> list[CropJob]:
    """Cut each split's records, in their order, into jobs of `images_per_shard`."""
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
                )
            )
    return jobs


def write_crops(job: CropJob) -> list[Row]:
    """Write one shard and return its rows of images.parquet.

    Raises:
        ValueError: a picture is missing, torn, too large, or its box is empty or outside; the message names the file.
    """
    resize = {size: _resizer(size) for size in LOAD_SIZES.values()}
    pixels: dict[int, list[npt.NDArray[np.uint8]]] = {size: [] for size in LOAD_SIZES.values()}
    rows: list[Row] = []
    for record in job.records:
        image = decode_image(record.image_path)
        height, width = image.shape[:2]
        try:
            bbox = bbox_inside(record.bbox, width, height)
        except ValueError as error:
            raise ValueError(f"{record.image_path}: {error}; correct its line in bounding_boxes.txt") from None
        crop_box = crop_box_for(record.bbox, width, height, rule=job.rule, min_object_area=job.min_object_area)
        crop = image[crop_box.top : crop_box.bottom, crop_box.left : crop_box.right]
        for size in LOAD_SIZES.values():
            pixels[size].append(resize[size](crop))
        rows.append(_row(record, width, height, bbox, crop_box))
    write_shard(job.shard_path, [r.image_id for r in job.records], {s: np.stack(p) for s, p in pixels.items()})
    return rows


def decode_image(path: Path) -> npt.NDArray[np.uint8]:
    """Decode a picture to (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the file is missing, torn, no picture, or larger than MAX_PIXELS.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing though images.txt lists it; bring it or remove its line")
    try:
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            Image.open(path) as image,
        ):
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width}x{image.height}"
                raise Image.DecompressionBombError(f"{size} pixels, more than {MAX_PIXELS}: shrink it")
            if image.mode.startswith("I;16"):  # converting would clip at 255
                return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path} cannot be decoded ({error}); bring a whole copy or remove its line") from None


def _resizer(size: int) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]:
    """Return a function that resizes a crop to (size, size, 3): sides that shrink are averaged, others grow bicubic."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks the internet for a newer release
    import albumentations as A
    import cv2

    cv2.setNumThreads(1)  # one task a CPU
    grow = A.Resize(size, size, interpolation=cv2.INTER_CUBIC)

    def resize(crop: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        height, width = min(crop.shape[0], size), min(crop.shape[1], size)
        shrunk = A.Resize(height, width, interpolation=cv2.INTER_AREA)(image=crop)["image"]
        return grow(image=shrunk)["image"]

    return resize


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


def crop_report(rows: Sequence[Row], records: Sequence[SourceImage], rule: CropRule) -> dict[str, object]:
    """Count the pictures and describe object_area_ratio before and after the crop."""
    inside = {row["image_id"]: row["bbox"] for row in rows}
    num_cut = sum(not np.allclose(record.bbox, inside[record.image_id]) for record in records)
    return {
        "rule": rule,
        "num_images": dict(Counter(str(row["split"]) for row in rows)),
        "num_classes": {
            split: len({r["class_id"] for r in rows if r["split"] == split}) for split in ("train", "test")
        },
        "num_captions": sum(len(row["captions"]) for row in rows),
        "num_boxes_cut_to_the_picture": num_cut,
        "object_area_ratio": {
            "before": _distribution([row["object_area_ratio_before"] for row in rows]),
            "after": _distribution([row["object_area_ratio"] for row in rows]),
        },
        "median_aspect_stretch": round(float(np.median([_stretch(row["crop_box"]) for row in rows])), 4),
    }


def _distribution(ratios: Sequence[float]) -> dict[str, object]:
    counts, _ = np.histogram(ratios, bins=RATIO_EDGES)
    return {
        "min": round(min(ratios), 4),
        "median": round(float(np.median(ratios)), 4),
        "max": round(max(ratios), 4),
        "share_below_0.5": round(float(np.mean(np.less(ratios, 0.5))), 4),
        "share_at_least_0.75": round(float(np.mean(np.greater_equal(ratios, 0.75))), 4),
        "histogram_edges": list(RATIO_EDGES),
        "histogram": counts.tolist(),
    }


def _stretch(crop_box: Sequence[int]) -> float:
    """Return by how much the longer side shrinks against the shorter one when the crop becomes a square."""
    sides = crop_box[2] - crop_box[0], crop_box[3] - crop_box[1]
    return max(sides) / min(sides)
