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
        draws: (N, 4) in [0, 1), on the CPU: shift down, shift right, centre of the square from the top, from the left.

    Returns:
        (N, 3, S, S).
    """
    size = images.shape[-1]
    margin = round(size * MAX_SHIFT)
    offsets = (draws[:, :2] * (2 * margin + 1)).long().tolist()
    padded = F.pad(images, (margin, margin, margin, margin))
    shifted = torch.stack(
        [padded[index, :, top : top + size, left : left + size] for index, (top, left) in enumerate(offsets)]
    )
    centers = (draws[:, 2:] * size).long().to(images.device)
    distance = (torch.arange(size, device=images.device) - centers[:, :, None]).abs()  # (N, 2, S)
    inside = distance < round(size * CUT_SIDE / 2)
    cut = inside[:, 0, :, None] & inside[:, 1, None, :]  # (N, S, S)
    return shifted.masked_fill(cut[:, None], 0).contiguous(memory_format=torch.channels_last)
