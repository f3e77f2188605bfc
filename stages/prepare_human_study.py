"""DVC stage: a blinded study out of the frozen samples, for people to rank the methods."""

from dataclasses import asdict
from pathlib import Path

from pipeline.evaluation.study.preparing import prepare_study
from pipeline.params import PrepareHumanStudyParams, load_params
from pipeline.tracking import run_stage, stage_run


def main(samples_dir: Path, systems_dir: Path, crops_dir: Path, study_dir: Path) -> None:
    """Write study/."""
    params = load_params("prepare_human_study", PrepareHumanStudyParams)
    with stage_run("prepare_human_study") as run:
        prepare_study(
            samples_dir=samples_dir, systems_dir=systems_dir, crops_dir=crops_dir, out_dir=study_dir, **asdict(params)
        )  # fmt: skip
        run.log_artifact(study_dir / "study.json")


if __name__ == "__main__":
    run_stage(main)
