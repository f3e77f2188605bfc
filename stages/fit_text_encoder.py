"""DVC stage: train the char-CNN-RNN on the train classes, or freeze a pretrained text encoder into the same form."""

from pathlib import Path

from pipeline.evaluation.classifier import load_classifier
from pipeline.params import FitTextEncoderParams, HardwareParams, load_params
from pipeline.text.training import fit_on_crops
from pipeline.tracking import run_stage, stage_run


def main(crops_dir: Path, features_dir: Path, encoder_dir: Path, report_path: Path) -> None:
    """Write models/text_encoder."""
    params = load_params("fit_text_encoder", FitTextEncoderParams)
    hardware = load_params("hardware", HardwareParams)
    with stage_run("fit_text_encoder") as run:
        is_frozen = features_dir.name == "classifier"
        features = load_classifier(features_dir, hardware.device) if is_frozen else None
        fit_on_crops(crops_dir, encoder_dir, report_path, params, hardware.device, features)
        run.log_artifact(encoder_dir, "text_encoder")


if __name__ == "__main__":
    run_stage(main)
