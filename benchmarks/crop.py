"""Crops a second, from real birds: crop_images' tasks on Ray against a plain loop and against the ceiling of a core.

`plain PIL`   one process, a picture after the other: decode, crop, resize to 304 and 76 by PIL, one .npy a shard
`ceiling`     one process that decodes, cuts and resizes as ours does and keeps nothing: no file, table or check
`decode`      one process that decodes the same files by PIL and does nothing else
`ours`        map_shards over the jobs of crop_images, Ray and its workers being up; whole shards, synced to the disk

Beside the scaling of ours from one to two workers stands that of the ceiling in one and two processes: what the cores
of this machine can do (two threads of one core are no two cores).
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure import best_rate, real_cub, tell
from pipeline.cluster import map_shards
from pipeline.data.cropping import bbox_inside, crop_box_for
from pipeline.data.crops import CropJob, plan_crops, write_crops
from pipeline.data.decoding import decode_image, resize_crop
from pipeline.data.records import SourceImage
from pipeline.data.shards import LOAD_SIZES
from pipeline.data.sources import read_source

IMAGES_PER_SHARD = 65  # twelve shards: two workers end together
REPEATS = 5


def plain_pil(records: list[SourceImage], out_dir: Path) -> int:
    """Crop a picture after the other by PIL."""
    for start in range(0, len(records), IMAGES_PER_SHARD):
        pixels: dict[int, list[np.ndarray]] = {size: [] for size in LOAD_SIZES.values()}
        for record in records[start : start + IMAGES_PER_SHARD]:
            with Image.open(record.image_path) as image:
                crop = image.convert("RGB").crop(crop_box_of(record, *image.size))
                for size, arrays in pixels.items():
                    arrays.append(np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC)))
        for size, arrays in pixels.items():
            np.save(out_dir / f"{start}_{size}.npy", np.stack(arrays))
    return len(records)


def ceiling(records: list[SourceImage]) -> int:
    """Decode, cut and resize, and keep nothing."""
    for record in records:
        image = decode_image(record.image_path)
        left, top, right, bottom = crop_box_of(record, image.shape[1], image.shape[0])
        for size in LOAD_SIZES.values():
            resize_crop(image[top:bottom, left:right], size)
    return len(records)


def decode(records: list[SourceImage]) -> int:
    """Decode by PIL alone."""
    for record in records:
        with Image.open(record.image_path) as image:
            np.asarray(image.convert("RGB"))
    return len(records)


def crop_box_of(record: SourceImage, width: int, height: int) -> tuple[int, int, int, int]:
    """Return the crop by rule `area`."""
    assert record.bbox is not None
    bbox = bbox_inside(record.bbox, width, height)
    return crop_box_for(bbox, width, height, rule="area", min_object_area=0.75)


def ours(records: list[SourceImage], out_dir: Path, num_workers: int) -> int:
    """Write the shards through Ray."""
    jobs: list[CropJob] = plan_crops(
        records, out_dir, rule="area", min_object_area=0.75, images_per_shard=IMAGES_PER_SHARD, on_bad_image="fail"
    )
    return sum(len(shard.rows) for shard in map_shards(write_crops, jobs, num_workers=num_workers))


def timed_in_a_process(work: Callable[[list[SourceImage]], int], records: list[SourceImage], seconds: float) -> float:
    """Return the pictures a second of `work` done again and again for so long, after a first time to warm up."""
    work(records[:20])
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        count += work(records[:100])
    return count / (time.perf_counter() - started)


def rate_of_processes(work: Callable[[list[SourceImage]], int], records: list[SourceImage], processes: int) -> float:
    """Return the pictures a second of several processes together, side by side for the same seconds."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return sum(pool.starmap(timed_in_a_process, [(work, records, 5.0)] * processes, chunksize=1))


def main() -> None:
    """Measure and print."""
    source = read_source(real_cub(), source="cub", split="zero_shot", captions_per_image=10, on_bad_image="fail")
    records = source.records
    with tempfile.TemporaryDirectory() as name:
        out_dir = Path(name)
        ours(records, out_dir, 2)  # starts Ray and its workers
        one_worker = best_rate(lambda: ours(records, out_dir, 1), REPEATS)
        two_workers = best_rate(lambda: ours(records, out_dir, 2), REPEATS)
        ceiling(records[:20])
        top = best_rate(lambda: ceiling(records), REPEATS)
        pil = best_rate(lambda: plain_pil(records, out_dir), REPEATS)
        bare = best_rate(lambda: decode(records), REPEATS)
        top_one, top_two = rate_of_processes(ceiling, records, 1), rate_of_processes(ceiling, records, 2)
    rows = [
        ["ours, 1 worker", f"{one_worker:,.0f}", f"{one_worker / pil:.2f}", f"{one_worker / top:.2f}"],
        ["ours, 2 workers", f"{two_workers:,.0f}", f"{two_workers / pil:.2f}", f"{two_workers / top / 2:.2f} a core"],
        ["plain PIL", f"{pil:,.0f}", "1.00", f"{pil / top:.2f}"],
        ["ceiling", f"{top:,.0f}", f"{top / pil:.2f}", "1.00"],
        ["ceiling, 2 processes / 1", f"{top_two:,.0f} / {top_one:,.0f}", "", f"scales {top_two / top_one:.2f}x"],
        ["decode by PIL", f"{bare:,.0f}", f"{bare / pil:.2f}", f"{bare / top:.2f}"],
    ]
    results = {
        "speedup_vs_pil": one_worker / pil,
        "share_of_ceiling": one_worker / top,
        "scaling_1_to_2": two_workers / one_worker,
        "machine_scaling_1_to_2": top_two / top_one,
    }
    tell(f"Crops of {len(records)} real birds", ["", "pictures a second", "of plain PIL", "of ceiling"], rows, results)


if __name__ == "__main__":
    main()
