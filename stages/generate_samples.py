"""DVC stage: one frozen set of pictures a method, for the captions of the test split."""

from dataclasses import asdict
from functools import partial
from pathlib import Path

from pipeline.cluster import map_shards
from pipeline.gan.samples import generate_samples
from pipeline.params import GenerateSamplesParams, HardwareParams, load_params
from pipeline.tracking import run_stage, stage_run


def main(stage1_dir: Path, stage2_dir: Path, crops_dir: Path, embeddings_dir: Path, samples_dir: Path) -> None:
    """Write samples/."""
    params = load_params("generate_samples", GenerateSamplesParams)
    hardware = load_params("hardware", HardwareParams)
    with stage_run("generate_samples") as run:
        generate_samples(
            stage1_dir=stage1_dir, stage2_dir=stage2_dir, crops_dir=crops_dir, embeddings_dir=embeddings_dir,
            out_dir=samples_dir, device=hardware.device, **asdict(params),
            map_jobs=partial(map_shards, num_workers=hardware.num_workers, use_gpu=hardware.use_gpu),
        )  # fmt: skip
        for grid_path in sorted(samples_dir.glob("*.png")):
            run.log_artifact(grid_path, "grids")
        run.log_artifact(samples_dir / "gallery", "gallery")


if __name__ == "__main__":
    run_stage(main)
