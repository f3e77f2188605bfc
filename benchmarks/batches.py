"""Ready batches a second, from real birds: ours against a torch DataLoader over files and over arrays in memory.

`files`   the pictures as published; each item is decoded, cropped to its box, resized and augmented by PIL and numpy
`arrays`  what the published code trains from: a list of arrays at the load size, out of its pickle; each item is
          cropped, mirrored and scaled by numpy
`ours`    BatchSource over shards; beside the pictures it gives both texts and the augmentation's draws

The baselines have two worker processes, persistent and warm; ours has one thread of this process. Then the peak memory
of a process that walks through 100,000 pictures of 76x76 (1.7 GB), torch's own half a gigabyte included.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import best_rate, real_cub, tell
from pipeline.data.batches import BatchSource, TrainingSet
from pipeline.data.crops import crop_images
from pipeline.data.shards import LOAD_SIZES, ImageShards, shard_path, write_shard
from pipeline.data.tables import read_images

BATCH_SIZE = 64
NUM_WORKERS = 2
NUM_CAPTIONS, EMBEDDING_DIM = 10, 1024
NUM_SYNTHETIC = 100_000


class FileItems(Dataset[Tensor]):
    """Decode, crop, resize and augment one file an item."""

    def __init__(self, paths: list[Path], crop_boxes: list[tuple[int, int, int, int]], image_size: int):
        self.paths, self.crop_boxes, self.image_size = paths, crop_boxes, image_size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        load_size = LOAD_SIZES[self.image_size]
        with Image.open(self.paths[index]) as image:
            crop = image.convert("RGB").crop(self.crop_boxes[index])
        return augmented(np.asarray(crop.resize((load_size, load_size), Image.Resampling.BILINEAR)), self.image_size)


class ArrayItems(Dataset[Tensor]):
    """Augment one array an item."""

    def __init__(self, arrays: list[npt.NDArray[np.uint8]], image_size: int):
        self.arrays, self.image_size = arrays, image_size

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> Tensor:
        return augmented(self.arrays[index], self.image_size)


def augmented(pixels: npt.NDArray[np.uint8], size: int) -> Tensor:
    """Return a random crop, mirrored or not, as (3, size, size) float32 in [-1, 1]."""
    top, left = np.random.randint(0, len(pixels) - size + 1, 2)
    crop = pixels[top : top + size, left : left + size]
    if np.random.random() < 0.5:
        crop = crop[:, ::-1]
    return torch.from_numpy((crop.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1))


def loader_rate(items: Dataset[Tensor], epochs: int) -> float:
    """Return the pictures a second of a DataLoader that is warm."""
    loader = DataLoader(
        items, BATCH_SIZE, shuffle=True, drop_last=True, num_workers=NUM_WORKERS, persistent_workers=True
    )
    for _ in loader:
        pass
    return best_rate(lambda: sum(len(batch) for _ in range(epochs) for batch in loader), repeats=3)


def our_rate(training_set: TrainingSet, image_size: int, num_steps: int) -> float:
    """Return the pictures a second of a BatchSource."""
    source = new_source(training_set, image_size)
    steps = iter(range(10**9))
    source.batch(next(steps))
    return best_rate(lambda: sum(len(source.batch(next(steps)).real) for _ in range(num_steps)), repeats=3)


def new_source(training_set: TrainingSet, image_size: int) -> BatchSource:
    """Return the source of one worker that has the whole batch."""
    return BatchSource(
        training_set, image_size=image_size, batch_size=BATCH_SIZE, captions_averaged=1, seed=0, rank=0, num_workers=1,
        device=torch.device("cpu"),
    )  # fmt: skip


def training_set_of(folder: Path, load_size: int, num_captions: int, embedding_dim: int) -> TrainingSet:
    """Return shards with random texts, in fifty classes."""
    shards = ImageShards(folder, load_size)
    texts = torch.randn(len(shards), num_captions, embedding_dim, generator=torch.Generator().manual_seed(0))
    return TrainingSet(
        shards=shards, class_ids=np.arange(len(shards)) % 50, embeddings=texts, boxes=torch.zeros(len(shards), 4)
    )


def synthetic_shards(folder: Path) -> None:
    """Write 100,000 pictures of noise at 76x76."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(NUM_SYNTHETIC // 1000):
        pixels = rng.integers(0, 256, (1000, 76, 76, 3), dtype=np.uint8)
        write_shard(shard_path(folder, index), range(index * 1000, index * 1000 + 1000), {76: pixels})


def walk(folder: Path) -> None:
    """Go through an epoch and print this process's peak of resident memory in MB."""
    source = new_source(training_set_of(folder, 76, 1, 16), 64)
    for step in range(source.steps_per_epoch):
        source.batch(step)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measured(work_dir: Path) -> Iterator[tuple[int, float, float, float]]:
    """Yield for each picture size its rates: files, arrays, ours."""
    root = real_cub()
    crop_images(
        root, work_dir / "crops", work_dir / "crops.json", work_dir / "crops.jpg", source="cub", split="zero_shot",
        captions_per_image=10, on_bad_image="fail", rule="area", min_object_area=0.75, images_per_shard=128,
        map_jobs=lambda work, jobs: [work(job) for job in jobs],
    )  # fmt: skip
    rows = read_images(work_dir / "crops", "train")
    paths = [root / "CUB_200_2011" / "images" / row["file_name"] for row in rows]
    for image_size, load_size in LOAD_SIZES.items():
        training_set = training_set_of(work_dir / "crops" / "train", load_size, NUM_CAPTIONS, EMBEDDING_DIM)
        is_small = image_size == min(LOAD_SIZES)
        yield (
            image_size,
            loader_rate(FileItems(paths, [tuple(row["crop_box"]) for row in rows], image_size), epochs=1),
            loader_rate(ArrayItems(list(training_set.shards.all()), image_size), epochs=20 if is_small else 2),
            our_rate(training_set, image_size, num_steps=500 if is_small else 20),
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--walk", type=Path, help=argparse.SUPPRESS)  # in the process whose memory is measured
    arguments = parser.parse_args()
    if arguments.walk:
        return walk(arguments.walk)
    torch.set_num_threads(1)
    results: dict[str, float] = {}
    table: list[list[str]] = []
    with tempfile.TemporaryDirectory() as name:
        for image_size, files, arrays, ours in measured(Path(name)):
            results[f"speedup_vs_dataloader_{image_size}"] = ours / files
            results[f"speedup_vs_pickled_{image_size}"] = ours / arrays
            for what, rate in (("files", files), ("arrays", arrays), ("ours", ours)):
                table.append([f"{image_size}x{image_size}", what, f"{rate:,.0f}", f"{ours / rate:.1f}x"])
        synthetic_shards(Path(name) / "synthetic")
        command = [sys.executable, "-m", "benchmarks.batches", "--walk", str(Path(name) / "synthetic")]
        walked = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
        results["peak_mb_100k"] = float(walked.stdout)
        table.append(["76x76", f"{NUM_SYNTHETIC:,} pictures, mapped", f"peak {results['peak_mb_100k']:.0f} MB", ""])
    tell("Ready batches of 64", ["pictures", "from", "pictures a second", "ours is"], table, results)
    return None


if __name__ == "__main__":
    main()
