"""DVC stage: procedural birds in CUB's own layout, so that everything runs before a data set is at hand."""

from dataclasses import asdict
from pathlib import Path

from pipeline.data.demo import make_demo_dataset
from pipeline.data.files import write_json
from pipeline.params import MakeDemoDatasetParams, load_params
from pipeline.tracking import run_stage, stage_run


def main(raw_dir: Path, report_path: Path) -> None:
    """Write data/raw/demo."""
    params = load_params("make_demo_dataset", MakeDemoDatasetParams)
    with stage_run("make_demo_dataset"):
        summary = make_demo_dataset(raw_dir, **asdict(params))
        write_json(report_path, asdict(summary))


if __name__ == "__main__":
    run_stage(main)
