"""DVC stage: the classifier behind the Inception score, trained on this data set's classes."""

from dataclasses import asdict
from pathlib import Path

from pipeline.data.files import write_json
from pipeline.evaluation.classifier_training import train_classifier
from pipeline.params import HardwareParams, TrainClassifierParams, load_params
from pipeline.tracking import run_stage, stage_run


def main(crops_dir: Path, classifier_dir: Path, report_path: Path) -> None:
    """Write models/classifier."""
    params = load_params("train_classifier", TrainClassifierParams)
    hardware = load_params("hardware", HardwareParams)
    with stage_run("train_classifier"):
        report = train_classifier(
            crops_dir=crops_dir, models_dir=classifier_dir, device=hardware.device, **asdict(params)
        )
        write_json(report_path, report)


if __name__ == "__main__":
    run_stage(main)
