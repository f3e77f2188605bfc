"""What is told of the crops: how many, how much of them the objects fill, which pictures were left out and why."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.cropping import Bbox
from pipeline.data.records import BadImage

RATIO_EDGES = tuple(round(0.05 * step, 2) for step in range(21))


def crop_report(rows: Sequence[Mapping[str, Any]], published: Mapping[int, Bbox | None]) -> dict[str, object]:
    """Count the pictures and describe object_area_ratio before and after the crop.

    Args:
        rows: of images.parquet.
        published: the box of each image_id as the data set has it, which a row's is cut from.
    """
    num_cut = sum(not np.allclose(published[row["image_id"]] or row["bbox"], row["bbox"]) for row in rows)
    return {
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


def bad_image_report(bad_images: Sequence[BadImage], raw_dir: Path) -> dict[str, object]:
    """Count and list the pictures that were left out, with paths from `raw_dir` on, wherever that lies."""
    return {
        "num_bad_images": len(bad_images),
        "bad_images": [{"file": bad.file_name, "reason": _without_folder(bad.reason, raw_dir)} for bad in bad_images],
    }


def _without_folder(text: str, folder: Path) -> str:
    """Cut `folder` from the paths in `text`; where it stands alone, leave its name."""
    if not folder.name:  # it is where we run, or the root: paths do not show it
        return text
    path = rf"(?<![\w./-]){re.escape(str(folder))}"
    return re.sub(rf"{path}(?![\w.-])", lambda _: folder.name, re.sub(rf"{path}/", "", text))


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
