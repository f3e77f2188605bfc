"""DVC stage: what the raters' ballots say of the methods."""

from dataclasses import asdict
from pathlib import Path

from pipeline.evaluation.study.results import evaluate_human_rank
from pipeline.params import EvaluateHumanRankParams, load_params
from pipeline.tracking import run_stage, stage_run


def main(study_dir: Path, ballots_dir: Path, report_path: Path, table_path: Path, chart_path: Path) -> None:
    """Write reports/evaluate_human_rank.json, .csv and .png."""
    params = load_params("evaluate_human_rank", EvaluateHumanRankParams)
    with stage_run("evaluate_human_rank") as run:
        evaluate_human_rank(
            study_dir=study_dir, ballots_dir=ballots_dir, report_path=report_path, table_path=table_path,
            chart_path=chart_path, **asdict(params),
        )  # fmt: skip
        run.log_artifact(chart_path, "reports")


if __name__ == "__main__":
    run_stage(main)
