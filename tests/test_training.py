"""Training: golden losses, exact resume after a kill, one and two workers, refusals before the first step."""

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

from pipeline.data.batches import BatchSource, load_training_set
from pipeline.data.snapshots import load_snapshot
from pipeline.gan.checkpoints import checkpoint_dirs, latest_checkpoint
from pipeline.gan.trainer import LOSSES, autocast_dtype
from pipeline.gan.training import export, new_stage_for, new_trainer, train
from pipeline.tracking import NullRun
from tests.gan_data import EMBEDDING_DIM, GAN, TRAIN, training_job, write_training_set

GOLDEN = Path(__file__).parent / "golden" / "training_losses.json"


class Recorded(NullRun):
    """Keeps what a training tells."""

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []
        self.artifacts: list[Path] = []

    def log_history(self, rows: Sequence[Mapping[str, float]]) -> None:
        self.history = [dict(row) for row in rows]

    def log_artifact(self, path: Path, folder: str = "") -> None:
        self.artifacts.append(path)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_training_set(folder)
    return folder


@pytest.fixture(scope="module")
def stage1_dir(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the snapshots of a trained Stage-I."""
    folder = tmp_path_factory.mktemp("stage1")
    job = training_job(data_dir, folder / "storage")
    train(job, lambda rank: NullRun())
    export(job, folder / "models", folder / "report.json", folder / "history.csv")
    return folder / "models"


def final_tensors(storage_dir: Path) -> dict[str, Tensor]:
    checkpoint = latest_checkpoint(storage_dir)
    assert checkpoint is not None
    return checkpoint.tensors


def losses_of(storage_dir: Path) -> list[list[float]]:
    checkpoint = latest_checkpoint(storage_dir)
    assert checkpoint is not None
    return [[row[name] for name in LOSSES] for row in checkpoint.history]


@pytest.mark.parametrize("stage_number", [1, 2])
def test_losses_are_the_golden_ones(stage_number: int, data_dir: Path, stage1_dir: Path, tmp_path: Path) -> None:
    job = training_job(data_dir, tmp_path, stage_number=stage_number, stage1_dir=stage1_dir)
    train(replace(job, train=replace(TRAIN, num_epochs=1)), lambda rank: NullRun())
    golden = json.loads(GOLDEN.read_text())[f"stage{stage_number}"]
    np.testing.assert_allclose(losses_of(tmp_path), golden, rtol=0.03)  # other processors round otherwise


def test_learning_changes_both_networks_and_the_rate_halves(data_dir: Path, tmp_path: Path) -> None:
    progress = Recorded()
    job = training_job(data_dir, tmp_path)
    before = new_stage_for(job)
    train(job, lambda rank: progress)
    tensors = final_tensors(tmp_path)
    for name, network in (("G", before.generator), ("D", before.discriminator)):
        for key, value in network.named_parameters():
            assert not torch.equal(tensors[f"{name}.{key}"], value), f"{name}.{key} did not move"
    assert [row["learning_rate"] for row in progress.history] == [2e-4, 2e-4, 1e-4]
    assert [row["epoch"] for row in progress.history] == [1, 2, 3]
    assert progress.history[-1]["step"] == 3 * (13 // TRAIN.batch_size)


def test_grids_are_pictures_at_the_epochs_asked_for(data_dir: Path, tmp_path: Path) -> None:
    progress = Recorded()
    train(training_job(data_dir, tmp_path), lambda rank: progress)
    assert [path.name for path in progress.artifacts] == ["epoch_00002.png", "epoch_00003.png"]
    with Image.open(progress.artifacts[-1]) as grid:
        assert min(grid.size) > 300


@pytest.mark.parametrize("stage_number", [1, 2])
def test_a_killed_training_ends_bit_for_bit_as_an_undisturbed_one(
    stage_number: int, data_dir: Path, stage1_dir: Path, tmp_path: Path
) -> None:
    job = training_job(data_dir, tmp_path / "whole", stage_number=stage_number, stage1_dir=stage1_dir)
    train(job, lambda rank: NullRun())

    # The same job in a process of its own that kills itself before its fifth step: after a checkpoint, in an epoch.
    killed = replace(job, storage_dir=tmp_path / "killed")
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from pipeline.gan.trainer import Trainer\n"
        "from pipeline.tracking import NullRun\n"
        "from pipeline.gan.training import train\n"
        "from tests.gan_data import training_job\n"
        "data, storage, number, stage1 = sys.argv[1:]\n"
        "steps, whole_step = [], Trainer.step\n"
        "def step(self, batch, noise):\n"
        "    steps.append(1)\n"
        "    if len(steps) == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return whole_step(self, batch, noise)\n"
        "Trainer.step = step\n"
        "job = training_job(Path(data), Path(storage), stage_number=int(number), stage1_dir=Path(stage1))\n"
        "train(job, lambda rank: NullRun())\n"
    )
    arguments = [str(data_dir), str(killed.storage_dir), str(stage_number), str(stage1_dir)]
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in checkpoint_dirs(killed.storage_dir)] == ["checkpoint_00000003"]

    progress = Recorded()
    train(killed, lambda rank: progress)
    whole, resumed = final_tensors(job.storage_dir), final_tensors(killed.storage_dir)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert losses_of(job.storage_dir) == losses_of(killed.storage_dir)
    assert [row["epoch"] for row in progress.history] == [1, 2, 3]


def test_a_finished_training_is_not_trained_again(data_dir: Path, tmp_path: Path) -> None:
    job = training_job(data_dir, tmp_path)
    train(job, lambda rank: NullRun())
    before = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors"))
    train(job, lambda rank: NullRun())
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")) == before


def _train_as_worker(rank: int, data_dir: Path, storage_dir: Path, meeting: Path, num_epochs: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=2)
    train(training_job(data_dir, storage_dir, train=replace(TRAIN, num_epochs=num_epochs)), lambda rank: NullRun())
    dist.destroy_process_group()


def train_with_two_workers(data_dir: Path, storage_dir: Path, num_epochs: int) -> None:
    context = multiprocessing.get_context("spawn")
    meeting = storage_dir.with_name(f"{storage_dir.name}_meeting_{num_epochs}")
    arguments = (data_dir, storage_dir, meeting, num_epochs)
    workers = [context.Process(target=_train_as_worker, args=(rank, *arguments)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_two_workers_share_a_batch_and_resume_bit_for_bit(data_dir: Path, tmp_path: Path) -> None:
    train_with_two_workers(data_dir, tmp_path / "whole", 2)
    train_with_two_workers(data_dir, tmp_path / "resumed", 1)
    train_with_two_workers(data_dir, tmp_path / "resumed", 2)
    whole, resumed = final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "resumed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    train(training_job(data_dir, tmp_path / "one", train=replace(TRAIN, num_epochs=2)), lambda rank: NullRun())
    # Each worker's BatchNorm sees half of the batch, so one worker's losses are near, not equal.
    np.testing.assert_allclose(losses_of(tmp_path / "whole"), losses_of(tmp_path / "one"), atol=0.1)


def test_export_writes_snapshots_report_and_curves(data_dir: Path, stage1_dir: Path, tmp_path: Path) -> None:
    job = training_job(data_dir, tmp_path / "storage", stage_number=2, stage1_dir=stage1_dir)
    train(job, lambda rank: NullRun())
    export(job, tmp_path / "models", tmp_path / "report.json", tmp_path / "curves.csv")
    tensors = final_tensors(job.storage_dir)
    snapshot = load_snapshot(tmp_path / "models", "generator")
    assert all(torch.equal(value, tensors[f"G.{key}"]) for key, value in snapshot.state.items())
    assert snapshot.config["embedding_dim"] == EMBEDDING_DIM
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["num_steps"] == 9 and report["images_seen"] == 36
    rows = list(csv.DictReader((tmp_path / "curves.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"] and "images_per_sec" not in rows[0]


def test_export_writes_the_same_bytes_again(data_dir: Path, stage1_dir: Path, tmp_path: Path) -> None:
    job = training_job(data_dir, tmp_path / "storage")
    train(job, lambda rank: NullRun())
    contents = []
    for name in ("first", "second"):
        folder = tmp_path / name
        export(job, folder, folder / "report.json", folder / "curves.csv")
        contents.append([path.read_bytes() for path in sorted(folder.iterdir())])
    assert contents[0] == contents[1]


def test_the_frozen_stage1_does_not_move(data_dir: Path, stage1_dir: Path, tmp_path: Path) -> None:
    job = training_job(data_dir, tmp_path / "storage", stage_number=2, stage1_dir=stage1_dir)
    train(job, lambda rank: NullRun())
    export(job, tmp_path / "models", tmp_path / "report.json", tmp_path / "curves.csv")
    before, after = load_snapshot(stage1_dir, "generator"), load_snapshot(tmp_path / "models", "stage1_generator")
    assert all(torch.equal(before.state[key], after.state[key]) for key in before.state)


def test_a_step_shares_the_features_of_real_and_wrong_pairs_without_changing_the_loss(
    data_dir: Path, tmp_path: Path
) -> None:
    job = training_job(data_dir, tmp_path)
    source = BatchSource(
        load_training_set(job.crops_dir, job.embeddings_dir / "train.parquet", "train", 76),
        image_size=64, batch_size=4, captions_averaged=2, seed=0, rank=0, num_workers=1, device=torch.device("cpu"),
    )  # fmt: skip
    batch, stage = source.batch(0), new_stage_for(job)
    noise = source.noise(0, stage.noise_dim)
    values = dict(zip(LOSSES, new_trainer(job, stage, None).step(batch, noise).tolist(), strict=True))

    plain = new_stage_for(job)  # the same weights; every pair judged on its own
    fakes = plain.generate(batch.text_embedding, noise)
    bce = nn.BCEWithLogitsLoss()
    real = plain.discriminator(batch.real, batch.text_embedding)
    wrong = plain.discriminator(batch.real, batch.wrong_text_embedding)
    fake = plain.discriminator(fakes.images.detach(), batch.text_embedding)
    ones, zeros = torch.ones_like(real), torch.zeros_like(real)
    d_loss = bce(real, ones) + 0.5 * (bce(wrong, zeros) + bce(fake, zeros))
    assert values["d_loss"] == pytest.approx(d_loss.item(), rel=1e-5)
    assert fakes.logvar is not None
    kl = 0.5 * (fakes.mu**2 + fakes.logvar.exp() - 1 - fakes.logvar).mean()
    assert values["kl"] == pytest.approx(kl.item(), rel=1e-5)


def test_a_loss_that_is_no_number_stops_and_names_the_checkpoints(data_dir: Path, tmp_path: Path) -> None:
    job = training_job(data_dir, tmp_path, train=replace(TRAIN, learning_rate=1e30))
    with pytest.raises(FloatingPointError, match=str(tmp_path)):
        train(job, lambda rank: NullRun())


def test_a_batch_larger_than_the_data_is_refused(data_dir: Path, tmp_path: Path) -> None:
    job = training_job(data_dir, tmp_path, train=replace(TRAIN, batch_size=64))
    with pytest.raises(ValueError, match="batch_size 64 is larger than the 13"):
        train(job, lambda rank: NullRun())


def test_a_stage1_of_another_width_is_refused(data_dir: Path, stage1_dir: Path, tmp_path: Path) -> None:
    job = training_job(data_dir, tmp_path, stage_number=2, stage1_dir=stage1_dir)
    with pytest.raises(ValueError, match=r"gf_dim = 8, Stage-II asks for 16.*rerun train_stage1"):
        train(replace(job, gan=replace(GAN, generator_dim=16)), lambda rank: NullRun())


def test_precision_is_as_asked() -> None:
    cpu = torch.device("cpu")
    assert autocast_dtype("float32", cpu) is None
    assert autocast_dtype("bfloat16", cpu) is torch.bfloat16


def write_golden() -> None:
    """Write the golden losses anew: `python -m tests.test_training`; only with a change that should move numbers."""
    import tempfile

    folder = Path(tempfile.mkdtemp())
    write_training_set(folder)
    stage1 = training_job(folder, folder / "stage1")
    train(stage1, lambda rank: NullRun())
    export(stage1, folder / "models", folder / "report.json", folder / "history.csv")
    golden = {}
    for number in (1, 2):
        job = training_job(folder, folder / f"golden{number}", stage_number=number, stage1_dir=folder / "models")
        train(replace(job, train=replace(TRAIN, num_epochs=1)), lambda rank: NullRun())
        golden[f"stage{number}"] = losses_of(job.storage_dir)
    GOLDEN.write_text(json.dumps(golden, indent=2) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    write_golden()
