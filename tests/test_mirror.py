"""A training's checkpoints in a bucket: the newest whole one is what a worker that starts gets."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
import torch

from pipeline import storage
from pipeline.gan.checkpoints import Checkpoint, CheckpointWriter, latest_checkpoint
from pipeline.gan.mirror import Mirror
from tests.bucket import bucket_server


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with bucket_server("stackgan"):
        yield


@pytest.fixture
def bucket(tmp_path: Path) -> str:
    return f"s3://stackgan/{tmp_path.name}"


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step=step, tensors={"weights": torch.full((3,), float(step))}, history=[])


def train(folder: Path, bucket: str, *steps: int) -> None:
    mirror = Mirror(bucket)
    with CheckpointWriter(folder, params={}, publish=lambda path: mirror.push(path, num_kept=2)) as writer:
        for step in steps:
            writer.save(checkpoint(step), {})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint_*"))


def step_on(folder: Path) -> int:
    found = latest_checkpoint(folder, params={})
    assert found is not None
    return found.step


def test_another_machine_has_the_newest_checkpoint(tmp_path: Path, bucket: str) -> None:
    train(tmp_path / "one", bucket, 1, 2, 3)
    Mirror(bucket).fetch(tmp_path / "other")
    assert names(tmp_path / "other") == ["checkpoint_00000003"] and step_on(tmp_path / "other") == 3


def test_the_workers_of_a_machine_take_turns(tmp_path: Path, bucket: str) -> None:
    """Each round begins with nothing, with a stale checkpoint, or with a torn one."""
    train(tmp_path / "one", bucket, 1, 2)
    train(tmp_path / "stale", f"{bucket}-stale", 2, 3)
    other = tmp_path / "other"
    with ThreadPoolExecutor(4) as workers:
        for number in range(12):
            if number % 3 == 1:
                shutil.copytree(tmp_path / "stale" / "checkpoint_00000003", other / "checkpoint_00000003")
            elif number % 3 == 2:
                (other / "checkpoint_00000002" / "manifest.json").write_text("{}")
            else:
                shutil.rmtree(other, ignore_errors=True)
            list(workers.map(Mirror(bucket).fetch, [other] * 4))
            assert names(other) == ["checkpoint_00000002"] and step_on(other) == 2


def test_a_training_that_has_not_begun_has_none(tmp_path: Path, bucket: str) -> None:
    Mirror(bucket).fetch(tmp_path / "other")
    assert latest_checkpoint(tmp_path / "other", params={}) is None


def test_the_bucket_keeps_the_newest_ones(tmp_path: Path, bucket: str) -> None:
    train(tmp_path / "one", bucket, 1, 2, 3, 4)
    assert Mirror(bucket)._names() == ["checkpoint_00000003", "checkpoint_00000004"]


def test_what_the_bucket_does_not_have_is_forgotten(tmp_path: Path, bucket: str) -> None:
    """A worker that was cut off while it trained on alone must start where the others start."""
    train(tmp_path / "one", bucket, 1, 2)
    with CheckpointWriter(tmp_path / "one", params={}) as writer:
        writer.save(checkpoint(3), {})
    Mirror(bucket).fetch(tmp_path / "one")
    assert step_on(tmp_path / "one") == 2


@pytest.mark.parametrize("damage", ["cut off", "altered"])
def test_a_torn_upload_is_skipped_for_the_one_before(
    tmp_path: Path, bucket: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path / "one", bucket, 1, 2)
    client, key = boto3.client("s3"), f"{tmp_path.name}/checkpoint_00000002"
    if damage == "cut off":
        client.delete_object(Bucket="stackgan", Key=f"{key}/manifest.json")
    else:
        client.put_object(Bucket="stackgan", Key=f"{key}/state.safetensors", Body=b"something else")
    shutil.rmtree(tmp_path / "one")
    Mirror(bucket).fetch(tmp_path / "one")
    assert step_on(tmp_path / "one") == 1
    assert "checkpoint_00000002" in caplog.text


def test_a_storage_that_refuses_for_a_while_loses_nothing(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storage, "AGAIN_SEC", 0)
    mirror, refusals = Mirror(bucket), iter([True, True, True, False])

    def push(path: Path) -> None:
        Mirror(bucket if not next(refusals, False) else "s3://nowhere/at-all").push(path, num_kept=2)

    with CheckpointWriter(tmp_path / "one", params={}, publish=push) as writer:
        writer.save(checkpoint(1), {})
        writer.save(checkpoint(2), {})
    assert caplog.text.count("training goes on") == 2 and "trying again" in caplog.text
    mirror.fetch(tmp_path / "other")
    assert step_on(tmp_path / "other") == 2


def test_a_storage_that_refuses_to_the_end_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "AGAIN_SEC", 0)
    monkeypatch.setattr(storage, "PATIENCE_SEC", 0)
    with pytest.raises(OSError, match="nowhere"):
        train(tmp_path / "one", "s3://nowhere/at-all", 1)
    assert step_on(tmp_path / "one") == 1  # on the disk it is
