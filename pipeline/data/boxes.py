"""Where the object is in a picture: boxes in fractions of its sides, (left, top, right, bottom) from 0 to 1.

For networks that are told it (gan.box_conditioned). A sentence without a picture has none: the object fills it all.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pipeline.data.shards import LOAD_SIZES

BOX_DIM = 4
WHOLE = (0.0, 0.0, 1.0, 1.0)


def boxes_of(rows: Iterable[dict[str, Any]]) -> Tensor:
    """Return each object's box within the stored crop of its picture.

    Args:
        rows: N rows of images.parquet: bbox is (x, y, width, height), crop_box (left, top, right, bottom), both in
            pixels of the original. What has no picture has None for its bbox.

    Returns:
        (N, 4) float32.
    """
    return torch.tensor([_box_of(row) for row in rows], dtype=torch.float32).clamp(0, 1)


def _box_of(row: dict[str, Any]) -> list[float]:
    if row["bbox"] is None:
        return list(WHOLE)
    x, y, box_width, box_height = row["bbox"]
    left, top, right, bottom = row["crop_box"]
    width, height = right - left, bottom - top
    return [(x - left) / width, (y - top) / height, (x + box_width - left) / width, (y + box_height - top) / height]


def boxes_in_windows(boxes: Tensor, corners: Tensor, mirrored: Tensor, share: float) -> Tensor:
    """Return the boxes within windows of their pictures, cut where they reach beyond.

    Args:
        boxes: (n, 4).
        corners: (n, 2) left and top of each window, in fractions of the picture.
        mirrored: (n,) bool, which windows are mirrored left to right.
        share: side of the windows, in fractions of the picture.
    """
    inside = ((boxes - corners.repeat(1, 2)) / share).clamp(0, 1)
    left, top, right, bottom = inside.unbind(1)
    flipped = torch.stack((1 - right, top, 1 - left, bottom), dim=1)
    return torch.where(mirrored[:, None], flipped, inside)


def boxes_in_centres(boxes: Tensor) -> Tensor:
    """Return (n, 4) boxes within the middle of their pictures, as large as the crops that a training sees."""
    share = min(size / load_size for size, load_size in LOAD_SIZES.items())
    corners = torch.full((len(boxes), 2), (1 - share) / 2)
    return boxes_in_windows(boxes, corners, torch.zeros(len(boxes), dtype=torch.bool), share)


def box_coverage(boxes: Tensor, size: int) -> Tensor:
    """Return how much of each cell of a map a box covers.

    Args:
        boxes: (n, 4).
        size: M, cells a side.

    Returns:
        (n, 1, M, M) in [0, 1], of the boxes' dtype.
    """
    edges = torch.arange(size, device=boxes.device, dtype=boxes.dtype)
    covered = [
        (torch.minimum(end * size, edges + 1) - torch.maximum(start * size, edges)).clamp(0, 1)
        for start, end in ((boxes[:, :1], boxes[:, 2:3]), (boxes[:, 1:2], boxes[:, 3:]))
    ]
    return (covered[1][:, :, None] * covered[0][:, None, :])[:, None]
