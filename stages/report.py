"""DVC stage: one HTML page that a person opens: samples with their captions, scores, curves."""

from dataclasses import asdict
from pathlib import Path

from pipeline.evaluation.report import write_report
from pipeline.params import DatasetParams, ReportParams, load_params
from pipeline.tracking import run_stage, stage_run


def main(samples_dir: Path, crops_dir: Path, reports_dir: Path, sheet_path: Path, page_path: Path) -> None:
    """Write reports/index.html."""
    params, dataset = load_params("report", ReportParams), load_params("dataset", DatasetParams)
    with stage_run("report") as run:
        write_report(
            samples_dir=samples_dir, crops_dir=crops_dir, reports_dir=reports_dir, sheet_path=sheet_path,
            out_path=page_path, dataset_name=dataset.name, **asdict(params),
        )  # fmt: skip
        run.log_artifact(page_path, "reports")


if __name__ == "__main__":
    run_stage(main)
