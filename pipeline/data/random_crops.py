"""Random crops and mirror images of a whole batch, on its device: the only augmentation of the paper."""

import torch
from torch import Tensor


def random_crops(pixels: Tensor, draws: Tensor, size: int) -> Tensor:
    """Crop, flip and scale a whole batch on its device.

    Args:
        pixels: (n, L, L, 3) uint8, contiguous, L >= size.
        draws: (n, 3) in [0, 1): top, left, and flipped where below 0.5. Each of the L - size + 1 offsets is as likely.
        size: S.

    Returns:
        (n, 3, S, S) float32 in [-1, 1], in channels_last memory order.
    """
    left, top = crop_offsets(draws, pixels.shape[1], size).unbind(1)
    cut = _cut_one_by_one if pixels.device.type == "cpu" else _cut_at_once
    crops = cut(pixels, top, left, is_mirrored(draws), size)
    return crops.permute(0, 3, 1, 2).div_(127.5).sub_(1)


def crop_offsets(draws: Tensor, load_size: int, size: int) -> Tensor:
    """(n, 3) draws as for `random_crops` -> (n, 2) int64: left and top of each crop in pixels."""
    return (draws[:, :2] * (load_size - size + 1)).long().flip(1)


def is_mirrored(draws: Tensor) -> Tensor:
    """(n, 3) draws as for `random_crops` -> (n,) bool."""
    return draws[:, 2] < 0.5


def _cut_one_by_one(pixels: Tensor, top: Tensor, left: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """Copy (n, S, S, 3) crops into float32, a window at a time: a processor copies faster than it gathers."""
    crops = torch.empty((len(pixels), size, size, 3))
    for index, (y, x, is_mirrored) in enumerate(zip(top.tolist(), left.tolist(), mirrored.tolist(), strict=True)):
        window = pixels[index, y : y + size, x : x + size]
        crops[index] = window.flip(1) if is_mirrored else window
    return crops


def _cut_at_once(pixels: Tensor, top: Tensor, left: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """Gather the same crops in one step, without a word from the device."""
    num_images, load_size = pixels.shape[:2]
    num_offsets = load_size - size + 1
    # Every window of every picture, as a view: (n, num_offsets, num_offsets, S, 3 * S).
    image, row, column, _ = pixels.stride()
    windows = pixels.as_strided((num_images, num_offsets, num_offsets, size, 3 * size), (image, row, column, row, 1))
    crops = windows[torch.arange(num_images, device=pixels.device), top, left].view(num_images, size, size, 3)
    return torch.where(mirrored[:, None, None, None], crops.flip(2), crops).float()
