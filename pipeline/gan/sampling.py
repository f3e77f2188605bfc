"""Pictures out of trained generators: a picture is a function of its caption's embedding and its seed alone."""

import textwrap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline.data.shards import Images
from pipeline.gan.stages import Stage

BATCH_SIZE = 16
GRID_TILE = 128  # pixels a picture on a grid
GRID_TEXT = 260  # pixels for a caption


def paint(stage: Stage, text_embedding: Tensor, seeds: Sequence[int], batch_size: int = BATCH_SIZE) -> Images:
    """Paint one picture for each row of `text_embedding`.

    The networks are put into evaluation mode and back, so a picture does not depend on the others of its batch.

    Args:
        stage: trained networks, on any device.
        text_embedding: (N, text_dim) float32 (see `Architecture.text_dim`).
        seeds: N seeds of the noise, one a picture.
        batch_size: pictures at once; changes only the speed.

    Returns:
        (N, S, S, 3) uint8.
    """
    stage = stage.painting()
    device = next(stage.generator.parameters()).device
    networks = [network for network in (stage.generator, stage.stage1_generator) if network is not None]
    were_training = [network.training for network in networks]
    for network in networks:
        network.eval()
    images: list[Images] = []
    with torch.inference_mode():
        for start in range(0, len(seeds), batch_size):
            noise = noise_for(seeds[start : start + batch_size], stage.noise_dim).to(device)
            texts = text_embedding[start : start + batch_size].to(device)
            images.append(to_uint8(stage.generate(texts, noise).images))
    for network, was_training in zip(networks, were_training, strict=True):
        network.train(was_training)
    return np.concatenate(images)


def noise_for(seeds: Sequence[int], noise_dim: int) -> Tensor:
    """Return (len(seeds), noise_dim) standard normal float32; equal seeds give equal beginnings of a row."""
    rows = [np.random.default_rng(seed).standard_normal(noise_dim, np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(rows))


def to_uint8(images: Tensor) -> Images:
    """Turn (N, 3, H, W) in [-1, 1] into (N, H, W, 3) uint8, rounded to the nearest."""
    scaled = (images.float() + 1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).cpu().numpy()


def captioned_grid(images: npt.NDArray[np.uint8], captions: Sequence[str]) -> Image.Image:
    """Lay pictures out in rows with their captions to the left.

    Args:
        images: (num_rows, num_columns, H, W, 3) uint8, shown at GRID_TILE pixels.
        captions: one a row.
    """
    num_rows, num_columns = images.shape[:2]
    gap = 4
    tile = GRID_TILE + gap
    grid = Image.new("RGB", (GRID_TEXT + num_columns * tile + gap, num_rows * tile + gap), "white")
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(13)
    for row in range(num_rows):
        text = "\n".join(textwrap.wrap(captions[row], 36)[:7])
        draw.multiline_text((10, row * tile + tile // 2), text, fill="black", font=font, anchor="lm", spacing=3)
        for column in range(num_columns):
            picture = Image.fromarray(images[row, column]).resize((GRID_TILE, GRID_TILE), Image.Resampling.BICUBIC)
            grid.paste(picture, (GRID_TEXT + column * tile, row * tile + gap))
    return grid
