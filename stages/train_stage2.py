"""DVC stage: train Stage-II on the frozen Stage-I, on Ray Train."""

from functools import partial
from pathlib import Path

from pipeline.cluster import fit
from pipeline.gan.job import TrainingJob
from pipeline.gan.results import export
from pipeline.gan.training import train
from pipeline.params import GanParams, HardwareParams, TrainParams, load_params
from pipeline.tracking import run_stage, stage_run


def main(crops_dir: Path, embeddings_dir: Path, stage1_dir: Path, models_dir: Path, *report_paths: Path) -> None:
    """Write models/stage2."""
    gan, train_params = load_params("gan", GanParams), load_params("train_stage2", TrainParams)
    hardware = load_params("hardware", HardwareParams)
    with stage_run("train_stage2") as run:
        job = TrainingJob(
            stage_number=2, crops_dir=crops_dir, embeddings_dir=embeddings_dir, stage1_dir=stage1_dir,
            storage_dir=run.claim_storage(), bucket=run.bucket, gan=gan, train=train_params,
            hardware=hardware, provenance=run.provenance,
        )  # fmt: skip
        fit(partial(train, job, run.for_rank), job, beside=run.node_metrics)
        export(job, models_dir, *report_paths)
        run.log_artifact(models_dir, "stage2")


if __name__ == "__main__":
    run_stage(main)
