"""Differentiable augmentation of what the discriminator sees (Zhao et al., NeurIPS 2020: DiffAugment).

With few training pictures D soon knows them by heart and teaches G nothing more. Shifting and cutting every picture
that D sees, real and generated alike, keeps it from that; gradients flow to G. Colours stay: captions name them.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_SHIFT = 1 / 8  # of the side
CUT_SIDE = 1 / 2  # of the side


def shifted_and_cut(images: Tensor, draws: Tensor) -> Tensor:
    """Shift each picture by up to MAX_SHIFT, zeros flowing in, and blank out a square of CUT_SIDE.

    Args:
        images: (N, 3, S, S).
        draws: (N, 4) in [0, 1): shift down, shift right, centre of the square from the top, from the left.

    Returns:
        (N, 3, S, S).
    """
    size = images.shape[-1]
    margin = round(size * MAX_SHIFT)
    offsets = (draws[:, :2] * (2 * margin + 1)).long()
    padded = F.pad(images, (margin, margin, margin, margin))
    cut_out = _cut_one_by_one if offsets.device.type == "cpu" else _cut_at_once
    shifted = cut_out(padded, offsets, size)
    centers = (draws[:, 2:] * size).long().to(images.device)
    distance = (torch.arange(size, device=images.device) - centers[:, :, None]).abs()  # (N, 2, S)
    inside = distance < round(size * CUT_SIDE / 2)
    cut = inside[:, 0, :, None] & inside[:, 1, None, :]  # (N, S, S)
    return shifted.masked_fill(cut[:, None], 0).contiguous(memory_format=torch.channels_last)


def _cut_one_by_one(padded: Tensor, offsets: Tensor, size: int) -> Tensor:
    """Copy a window of each picture: a processor copies faster than it gathers."""
    pairs = zip(padded.unbind(), offsets.tolist(), strict=True)
    return torch.stack([picture[:, top : top + size, left : left + size] for picture, (top, left) in pairs])


def _cut_at_once(padded: Tensor, offsets: Tensor, size: int) -> Tensor:
    """Gather the same windows in two steps, without a word from the device."""
    places = offsets[:, :, None] + torch.arange(size, device=offsets.device)  # (N, 2, S)
    rows, columns = places[:, 0, None, :, None], places[:, 1, None, None, :]
    n, channels, _, width = padded.shape
    return padded.gather(2, rows.expand(n, channels, size, width)).gather(3, columns.expand(n, channels, size, size))
