"""What a finished training leaves: snapshots, a report and curves, all out of its last checkpoint."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from pipeline.data.files import replaced_file, write_json
from pipeline.gan.checkpoints import latest_checkpoint
from pipeline.gan.guards import warnings_of
from pipeline.gan.job import TrainingJob, binding_params, new_stage_for, new_trainer
from pipeline.gan.mirror import Mirror
from pipeline.gan.trainer import LOSSES

CURVES = ("step", "epoch", *LOSSES, "learning_rate")


def export(job: TrainingJob, models_dir: Path, report_path: Path, curves_path: Path) -> None:
    """Write the snapshots, the report and the curves of a finished training.

    The Stage-II of a GAN of one stage hands on the snapshots of its Stage-I, so that whatever paints with Stage-II's
    folder need not know.

    Raises:
        ValueError: there is no whole checkpoint, or it is of other params.
    """
    if job.has_nothing_to_train:
        assert job.stage1_dir is not None
        shutil.copytree(job.stage1_dir, models_dir, dirs_exist_ok=True)
        _write_curves(curves_path, [])
        write_json(report_path, {"stage": 2, "num_steps": 0, "note": "one stage (gan.stage2_size: none)"})
        return
    if job.bucket:
        Mirror(job.bucket).fetch(job.storage_dir)
    checkpoint = latest_checkpoint(job.storage_dir, binding_params(job))
    if checkpoint is None:
        raise ValueError(f"{job.storage_dir} holds no whole checkpoint; rerun the training")
    stage = new_stage_for(job)
    new_trainer(job, stage, None).load_tensors(checkpoint.tensors)
    stage.save(models_dir)
    _write_curves(curves_path, checkpoint.history)
    last = checkpoint.history[-1]
    report = {
        "stage": job.stage_number,
        "num_steps": checkpoint.step,
        "images_seen": checkpoint.step * job.train.batch_size,
        "num_parameters": {
            "generator": _num_parameters(stage.generator),
            "discriminator": _num_parameters(stage.discriminator),
        },
        "last_epoch": {name: round(last[name], 6) for name in (*LOSSES, "sample_distance")},
        "num_epochs_with_warnings": {
            kind: sum(kind in warnings_of(row) for row in checkpoint.history)
            for kind in ("discriminator", "mode_collapse")
        },
    }
    write_json(report_path, report)


def _num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _write_curves(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    lines = [",".join(CURVES), *(",".join(f"{row[name]:.6g}" for name in CURVES) for row in history)]
    with replaced_file(path) as partial_path:
        partial_path.write_text("\n".join(lines) + "\n")
