"""DVC stage: crop every picture around its object, resize it, write image shards."""

from dataclasses import asdict
from functools import partial
from pathlib import Path

from pipeline.cluster import map_shards
from pipeline.data.crops import crop_images
from pipeline.params import CropImagesParams, HardwareParams, load_params
from pipeline.tracking import run_stage, stage_run


def main(raw_dir: Path, crops_dir: Path, report_path: Path, sheet_path: Path) -> None:
    """Write data/crops."""
    params = load_params("crop_images", CropImagesParams)
    hardware = load_params("hardware", HardwareParams)
    with stage_run("crop_images") as run:
        map_jobs = partial(map_shards, num_workers=hardware.num_workers)
        crop_images(raw_dir, crops_dir, report_path, sheet_path, **asdict(params), map_jobs=map_jobs)
        run.log_artifact(sheet_path, "reports")


if __name__ == "__main__":
    run_stage(main)
