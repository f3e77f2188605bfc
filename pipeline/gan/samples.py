"""samples/: the frozen pictures of every method, for the captions of the test split.

A shard is painted alone, in batches of its own, so a picture does not depend on how many workers there are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from pipeline.allocation import keep_freed_memory
from pipeline.data.choosing import chosen_rows
from pipeline.data.files import replaced_folder, write_json
from pipeline.data.shards import ImageShards, shard_path, write_shard
from pipeline.data.tables import SAMPLES, read_embeddings, read_images, write_table
from pipeline.gan.sampling import captioned_grid, paint
from pipeline.gan.stages import load_stage, new_stage

GRID_ROWS = 8  # captions on the grid of a method
IMAGES_PER_SHARD = 128
SEEDS_PER_SEED = 1_000_000  # noises of one `seed`: as many pictures have a noise of their own


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """Whose pictures they are."""

    name: str
    models_dir: Path
    image_size: int
    initialised_with: int | None = None  # a seed: the networks as they are before training, not the snapshot's weights


@dataclass(frozen=True, kw_only=True, slots=True)
class PaintJob:
    """One shard's work."""

    method: Method
    texts: Tensor  # (N, text_dim) float32
    seeds: tuple[int, ...]  # N
    sample_ids: tuple[int, ...]  # N
    batch_size: int
    device: str
    shard_path: Path

    @property
    def reads(self) -> list[Path]:
        """List the snapshot's folder."""
        return [self.method.models_dir]

    @property
    def writes(self) -> list[Path]:
        """List the shard."""
        return [self.shard_path]


MapJobs = Callable[[Callable[[PaintJob], None], Sequence[PaintJob]], Sequence[None]]


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
    device: str,
    map_jobs: MapJobs,
) -> None:
    """Paint every test picture's first captions with each method, and write samples/.

    Methods: `untrained` (all stages as initialised), `stage1`, and `stackgan`, the final pictures of every system, so
    that their scores have one name: of a GAN of one stage these are Stage-I's. The same caption has the same seed, and
    so the same z, in all of them. grid_<method>.png shows some, for captions spread over the split, which gallery/
    holds one by one. variations/ is a folder like samples/ itself, with `variations_per_caption` pictures of each of
    `num_varied_captions` captions (all of them where the split has fewer), of as many classes as there are. `map_jobs`
    calls a function on every job, in any order, where there is `device`.

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
    stage1, stackgan = (load_stage(folder)[0] for folder in (stage1_dir, stage2_dir))
    methods = [
        Method(name="untrained", models_dir=stage2_dir, image_size=stackgan.image_size, initialised_with=seed),
        Method(name="stage1", models_dir=stage1_dir, image_size=stage1.image_size),
        Method(name="stackgan", models_dir=stage2_dir, image_size=stackgan.image_size),
    ]
    rows, of_images = _captions_of(images, captions_per_image)
    vectors = torch.tensor(embeddings.vectors[:, :captions_per_image].reshape(-1, embedding_dim))
    texts = stackgan.texts_of(vectors, of_images)
    for index, row in enumerate(rows):
        row["seed"] = seed * SEEDS_PER_SEED + index
    varied = chosen_rows([row["class_id"] for row in rows], num_varied_captions, seed)
    varied = [index for index in varied for _ in range(variations_per_caption)]
    first_seed = (seed + 1) * SEEDS_PER_SEED - len(varied)  # no other picture of this seed comes near it
    variations = [{**rows[index], "seed": first_seed + number} for number, index in enumerate(varied)]

    with replaced_folder(out_dir) as partial_dir:
        jobs = [
            *_planned_set(partial_dir, methods, rows, texts, batch_size, device),
            *_planned_set(partial_dir / "variations", methods, variations, texts[varied], batch_size, device),
        ]
        map_jobs(paint_shard, jobs)
        _write_gallery(partial_dir, methods, rows)


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


def _planned_set(
    folder: Path,
    methods: Sequence[Method],
    rows: Sequence[dict[str, Any]],
    texts: Tensor,
    batch_size: int,
    device: str,
) -> list[PaintJob]:
    """Write samples.parquet, with a picture of each method for each row, and return who paints what."""
    records: list[dict[str, Any]] = []
    jobs: list[PaintJob] = []
    for method in methods:
        for number, start in enumerate(range(0, len(rows), IMAGES_PER_SHARD)):
            part = slice(start, start + IMAGES_PER_SHARD)
            of_shard: list[dict[str, Any]] = [
                {**row, "sample_id": len(records) + index, "method": method.name}
                for index, row in enumerate(rows[part])
            ]
            job = PaintJob(
                method=method,
                texts=texts[part].clone(),  # a slice would be sent with the whole that it is of
                seeds=tuple(row["seed"] for row in of_shard),
                sample_ids=tuple(row["sample_id"] for row in of_shard),
                batch_size=batch_size,
                device=device,
                shard_path=shard_path(folder / method.name, number),
            )
            records += of_shard
            jobs.append(job)
    write_table(folder / "samples.parquet", pa.Table.from_pylist(records, schema=SAMPLES))
    return jobs


def paint_shard(job: PaintJob) -> None:
    """Paint the pictures of a shard and write it.

    Raises:
        ValueError: the snapshot is missing or altered.
    """
    if job.device == "cpu":
        keep_freed_memory()
    stage, _ = load_stage(job.method.models_dir)
    if job.method.initialised_with is not None:
        stage = new_stage(2 if stage.stage1_generator else 1, stage.architecture, seed=job.method.initialised_with)
    for network in stage.modules():
        network.to(job.device)
    painted = paint(stage, job.texts, job.seeds, job.batch_size)
    write_shard(job.shard_path, job.sample_ids, {job.method.image_size: painted})


def _write_gallery(folder: Path, methods: Sequence[Method], rows: Sequence[dict[str, Any]]) -> None:
    """Write pictures of captions spread over the split, one by one and as a grid a method."""
    shown = np.linspace(0, len(rows) - 1, num=min(GRID_ROWS, len(rows)), dtype=np.int64)
    captions = [rows[index] for index in shown]
    (folder / "gallery").mkdir()
    write_json(folder / "gallery" / "captions.json", {"captions": captions})
    for method in methods:
        pictures = ImageShards(folder / method.name, method.image_size).gather(shown)
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / "gallery" / f"{method.name}_{number}.png")
        grid = captioned_grid(pictures[:, None], [str(row["caption"]) for row in captions])
        grid.save(folder / f"grid_{method.name}.png")
