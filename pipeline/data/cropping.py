"""The crop rules: which rectangle of a picture is kept, given the box of its object. Pure geometry.

`area`       the object fills at least 0.75 of the crop's area (the paper's wording, section 4.2 of Zhang et al. 2017)
`published`  the published code's square of half side int(0.75 * longest box side), cut at the border: its objects fill
             about 0.41 of the crop; kept for comparison with published figures
`none`       the whole picture (Oxford-102, COCO)
"""

import math
from typing import Literal, NamedTuple

CropRule = Literal["area", "published", "none"]


class Bbox(NamedTuple):
    """An object's box in pixels: left and top edge, width and height, as CUB's bounding_boxes.txt has them."""

    x: float
    y: float
    width: float
    height: float


class CropBox(NamedTuple):
    """A crop in whole pixels; right and bottom are the first column and row that are not kept."""

    left: int
    top: int
    right: int
    bottom: int


def bbox_inside(bbox: Bbox, width: int, height: int) -> Bbox:
    """Return the part of `bbox` that lies inside a picture of `width` x `height` pixels.

    Raises:
        ValueError: the box is not finite, is empty, or lies outside the picture.
    """
    if not all(math.isfinite(value) for value in bbox):
        raise ValueError(f"its box {tuple(bbox)} is not finite")
    left, top = max(bbox.x, 0.0), max(bbox.y, 0.0)
    right, bottom = min(bbox.x + bbox.width, float(width)), min(bbox.y + bbox.height, float(height))
    if bbox.width <= 0 or bbox.height <= 0 or right <= left or bottom <= top:
        raise ValueError(f"its box {tuple(bbox)} is empty or outside the picture of {width}x{height} pixels")
    return Bbox(left, top, right - left, bottom - top)


def object_area_ratio(bbox: Bbox, crop_box: CropBox) -> float:
    """Return the share of the crop's area that the part of `bbox` inside it fills, in [0, 1]."""
    width = min(bbox.x + bbox.width, crop_box.right) - max(bbox.x, crop_box.left)
    height = min(bbox.y + bbox.height, crop_box.bottom) - max(bbox.y, crop_box.top)
    crop_area = (crop_box.right - crop_box.left) * (crop_box.bottom - crop_box.top)
    return max(width, 0.0) * max(height, 0.0) / crop_area


def crop_box_for(bbox: Bbox, width: int, height: int, *, rule: CropRule, min_object_area: float) -> CropBox:
    """Return the crop of a picture.

    Args:
        bbox: the object, as published; `area` takes its part inside the picture, `published` takes it as it stands.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        rule: see the module's text.
        min_object_area: for `area`: the least share of the crop that the object fills, in (0, 1].

    Raises:
        ValueError: see bbox_inside.
    """
    inside = bbox_inside(bbox, width, height)
    if rule == "none":
        return CropBox(0, 0, width, height)
    if rule == "published":
        return _published_crop_box(bbox, width, height)
    return _area_crop_box(inside, width, height, min_object_area)


def _published_crop_box(bbox: Bbox, width: int, height: int) -> CropBox:
    x, y, box_width, box_height = (int(value) for value in bbox)
    half_side = int(max(box_width, box_height) * 0.75)
    center_x, center_y = int((2 * x + box_width) / 2), int((2 * y + box_height) / 2)
    left, right = max(0, center_x - half_side), min(width, center_x + half_side)
    top, bottom = max(0, center_y - half_side), min(height, center_y + half_side)
    # A box of one pixel has a half side of 0; the published code fails on it, we keep that pixel.
    return CropBox(left, top, max(right, left + 1), max(bottom, top + 1))


def _area_crop_box(bbox: Bbox, width: int, height: int, min_object_area: float) -> CropBox:
    """Of the crops that contain the box and meet the ratio, the one nearest to a square.

    The longer side of the box stays as it is (making it longer would only cost area); the shorter one grows until the
    crop is square or the object's share reaches its least value. The box's edges are taken outwards to whole pixels.
    """
    left, right = _whole_pixels(bbox.x, bbox.x + bbox.width, width)
    top, bottom = _whole_pixels(bbox.y, bbox.y + bbox.height, height)
    max_area = bbox.width * bbox.height / min_object_area
    if (right - left) * (bottom - top) > max_area:
        # A box of few pixels with fractional edges: the tightest whole-pixel crop is all that can be had.
        return CropBox(left, top, right, bottom)
    if right - left < bottom - top:
        side = min(bottom - top, math.floor(max_area / (bottom - top)), width)
        left, right = _widened(left, right, side, bbox.x + bbox.width / 2, width)
    else:
        side = min(right - left, math.floor(max_area / (right - left)), height)
        top, bottom = _widened(top, bottom, side, bbox.y + bbox.height / 2, height)
    return CropBox(left, top, right, bottom)


def _whole_pixels(low: float, high: float, limit: int) -> tuple[int, int]:
    """Return the smallest whole-pixel interval around [low, high] inside [0, limit]."""
    return max(math.floor(low), 0), min(math.ceil(high), limit)


def _widened(low: int, high: int, length: int, center: float, limit: int) -> tuple[int, int]:
    """Return an interval of `length` >= high - low that contains [low, high], centred, shifted inside [0, limit]."""
    start = round(center - length / 2)
    start = min(max(start, high - length), low)  # contains the box
    start = min(max(start, 0), limit - length)  # inside the picture
    return start, start + length
