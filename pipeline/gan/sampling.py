"""Pictures out of trained generators: a picture is a function of its caption's embedding and its seed alone."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pipeline.data.choosing import chosen_rows
from pipeline.data.files import replaced_folder, write_json
from pipeline.data.shards import Images, shard_path, write_shard
from pipeline.data.tables import SAMPLES, read_embeddings, read_images, write_table
from pipeline.gan.stages import Stage, load_stage, new_stage

BATCH_SIZE = 16
GRID_TILE = 128  # pixels a picture on a grid
GRID_TEXT = 260  # pixels for a caption
GRID_ROWS = 8  # captions on the grid of a method
IMAGES_PER_SHARD = 500
SEEDS_PER_SEED = 1_000_000  # noises of one `seed`: as many pictures have a noise of their own


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


def generate_samples(
    *,
    stage1_dir: Path,
    stage2_dir: Path,
    crops_dir: Path,
    embeddings_dir: Path,
    out_dir: Path,
    captions_per_image: int,
    num_varied_captions: int,
    variations_per_caption: int,
    batch_size: int,
    seed: int,
) -> None:
    """Paint every test picture's first captions with each method, and write samples/.

    Methods: `untrained` (all stages as initialised), `stage1`, and `stackgan`, the final pictures of every system, so
    that their scores have one name: of a GAN of one stage these are Stage-I's. The same caption has the same seed, and
    so the same z, in all of them. grid_<method>.png shows some, for captions spread over the split, which gallery/
    holds one by one. variations/ is a folder like samples/ itself, with `variations_per_caption` pictures of each of
    `num_varied_captions` captions (all of them where the split has fewer), of as many classes as there are.

    Raises:
        ValueError: snapshots or embeddings are missing or do not fit together.
    """
    images = read_images(crops_dir, "test")
    embeddings = read_embeddings(embeddings_dir / "test.parquet")
    if embeddings.image_ids != [image["image_id"] for image in images]:
        raise ValueError(f"{embeddings_dir} does not hold the test pictures of {crops_dir}; rerun `dvc repro`")
    num_captions, embedding_dim = embeddings.vectors.shape[1:]
    if captions_per_image > num_captions:
        raise ValueError(
            f"generate_samples.captions_per_image is {captions_per_image}; a picture has {num_captions} captions"
        )
    stackgan, _ = load_stage(stage2_dir)
    untrained = new_stage(2 if stackgan.stage1_generator else 1, stackgan.architecture, seed=seed)
    for module in untrained.modules():
        module.eval()
    methods = {"untrained": untrained, "stage1": load_stage(stage1_dir)[0], "stackgan": stackgan}
    rows, of_images = _captions_of(images, captions_per_image)
    vectors = torch.tensor(embeddings.vectors[:, :captions_per_image].reshape(-1, embedding_dim))
    texts = stackgan.texts_of(vectors, of_images)
    for index, row in enumerate(rows):
        row["seed"] = seed * SEEDS_PER_SEED + index
    shown = np.linspace(0, len(rows) - 1, num=min(GRID_ROWS, len(rows)), dtype=int).tolist()
    varied = chosen_rows([row["class_id"] for row in rows], num_varied_captions, seed)
    varied = [index for index in varied for _ in range(variations_per_caption)]
    first_seed = (seed + 1) * SEEDS_PER_SEED - len(varied)  # no other picture of this seed comes near it
    variations = [{**rows[index], "seed": first_seed + number} for number, index in enumerate(varied)]

    with replaced_folder(out_dir) as partial_dir:
        pictures = _write_set(partial_dir, methods, rows, texts, batch_size, shown)
        _write_gallery(partial_dir, pictures, [rows[index] for index in shown])
        _write_set(partial_dir / "variations", methods, variations, texts[varied], batch_size)


def _captions_of(
    images: Sequence[dict[str, Any]], captions_per_image: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a row for each picture's first captions, and the picture that it is of."""
    of_images = [image for image in images for _ in range(captions_per_image)]
    rows = [
        {
            "image_id": image["image_id"],
            "class_id": image["class_id"],
            "caption_id": index % captions_per_image,
            "caption": image["captions"][index % captions_per_image],
        }
        for index, image in enumerate(of_images)
    ]
    return rows, of_images


def _write_set(
    folder: Path,
    methods: Mapping[str, Stage],
    rows: Sequence[dict[str, Any]],
    texts: Tensor,
    batch_size: int,
    shown: Sequence[int] = (),
) -> dict[str, list[Images]]:
    """Paint each row with each method, write samples.parquet and the shards, and return those that are to be shown."""
    records: list[dict[str, Any]] = []
    pictures: dict[str, list[Images]] = {}
    for method, stage in methods.items():
        of_method = [{**row, "sample_id": len(records) + index, "method": method} for index, row in enumerate(rows)]
        pictures[method] = _write_pictures(folder / method, stage, texts, of_method, batch_size, shown)
        records += of_method
    write_table(folder / "samples.parquet", pa.Table.from_pylist(records, schema=SAMPLES))
    return pictures


def _write_gallery(folder: Path, pictures: Mapping[str, Sequence[Images]], rows: Sequence[dict[str, Any]]) -> None:
    """Write the pictures that are shown, one by one and as a grid a method."""
    (folder / "gallery").mkdir()
    write_json(folder / "gallery" / "captions.json", {"captions": rows})
    for method, of_method in pictures.items():
        for number, picture in enumerate(of_method):
            Image.fromarray(picture).save(folder / "gallery" / f"{method}_{number}.png")
        grid = captioned_grid(np.stack(of_method)[:, None], [str(row["caption"]) for row in rows])
        grid.save(folder / f"grid_{method}.png")


def _write_pictures(
    folder: Path, stage: Stage, texts: Tensor, rows: Sequence[dict[str, Any]], batch_size: int, shown: Sequence[int]
) -> list[Images]:
    """Paint a picture for each row into shards, and return those of the rows that are to be shown."""
    pictures: list[Images] = []
    # A shard at a time, for 30,000 pictures of 256x256 are 6 GB.
    for number, start in enumerate(range(0, len(rows), IMAGES_PER_SHARD)):
        part = slice(start, start + IMAGES_PER_SHARD)
        painted = paint(stage, texts[part], [row["seed"] for row in rows[part]], batch_size)
        write_shard(shard_path(folder, number), [row["sample_id"] for row in rows[part]], {stage.image_size: painted})
        pictures += [painted[index - start] for index in shown if start <= index < start + len(painted)]
    return pictures
