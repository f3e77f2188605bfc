"""DVC stage: score the frozen samples of every method, and the real pictures beside them."""

from dataclasses import asdict
from functools import partial
from pathlib import Path

from pipeline.cluster import map_shards
from pipeline.data.files import write_json
from pipeline.evaluation.scores import evaluate_samples
from pipeline.params import EvaluateInceptionParams, HardwareParams, load_params
from pipeline.tracking import run_stage, stage_run


def main(samples_dir: Path, crops_dir: Path, classifier_dir: Path, text_encoder_dir: Path, report_path: Path) -> None:
    """Write reports/evaluate_inception.json."""
    params = load_params("evaluate_inception", EvaluateInceptionParams)
    hardware = load_params("hardware", HardwareParams)
    with stage_run("evaluate_inception"):
        scores = evaluate_samples(
            samples_dir=samples_dir, crops_dir=crops_dir, classifier_dir=classifier_dir,
            text_encoder_dir=text_encoder_dir, device=hardware.device, **asdict(params),
            map_jobs=partial(map_shards, num_workers=hardware.num_workers, use_gpu=hardware.use_gpu),
        )  # fmt: skip
        write_json(report_path, scores)


if __name__ == "__main__":
    run_stage(main)
