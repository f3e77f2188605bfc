"""Ray as it is: shards in order, a killed task tried again, people's mistakes told as they are."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from pipeline.cluster import fit, map_shards
from pipeline.params import HardwareParams

CPU = HardwareParams(num_workers=2, use_gpu=False, precision="float32", max_failures=1, device_data_mb=0)


@pytest.fixture(autouse=True, scope="module")
def ray_ends_with_these_tests() -> Iterator[None]:
    """Stop Ray after the last test, so that its lines do not trail behind the summary."""
    yield
    ray.shutdown()


def square(number: int) -> int:
    return number * number


def refuse(number: int) -> int:
    raise ValueError(f"file {number} is torn; bring a whole one")


def die_once(path: Path) -> str:
    if not path.exists():
        path.write_text("died")
        os.kill(os.getpid(), signal.SIGKILL)
    return path.read_text()


def test_results_come_in_the_order_of_the_jobs() -> None:
    assert map_shards(square, list(range(7)), num_workers=2) == [number * number for number in range(7)]


def test_a_killed_task_is_tried_again(tmp_path: Path) -> None:
    assert map_shards(die_once, [tmp_path / "mark"], num_workers=1) == ["died"]


def test_a_mistake_is_told_in_its_own_words() -> None:
    with pytest.raises(ValueError, match=r"^file \d is torn; bring a whole one$"):
        map_shards(refuse, [1, 2], num_workers=2)


def fill_the_disk(path: Path) -> None:
    raise OSError(28, "No space left on device", str(path))


def test_a_full_disk_is_told_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device: .*shard"):
        map_shards(fill_the_disk, [tmp_path / "shard"], num_workers=1)


def write_slowly(path: Path) -> None:
    """Write 200 files one after the other, or refuse at once where the folder is named so."""
    if path.name == "torn":
        raise ValueError("file torn is torn; bring a whole one")
    for number in range(200):
        (path / f"{number}").write_bytes(os.urandom(10_000))


def test_when_a_mistake_is_told_no_task_is_writing_any_more(tmp_path: Path) -> None:
    for attempt in range(5):
        folder = tmp_path / f"{attempt}"
        folder.mkdir()
        with pytest.raises(ValueError, match="file torn is torn"):
            map_shards(write_slowly, [folder, tmp_path / "torn", folder], num_workers=2)
        assert len(list(folder.iterdir())) == 200


def test_more_gpus_than_there_are_is_refused_before_anything_starts(tmp_path: Path) -> None:
    gpus = HardwareParams(num_workers=64, use_gpu=True, precision="float32", max_failures=0, device_data_mb=0)
    with pytest.raises(ValueError, match="asks for 64 GPUs and Ray sees"):
        fit(lambda: None, storage_dir=tmp_path, hardware=gpus)


class DiesOnArrival:
    """A loop that kills the first training worker that receives it, before it can run."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return arrive, (self.mark,)

    def __call__(self) -> None:
        """Do nothing."""


def arrive(mark: Path) -> DiesOnArrival:
    if "RayTrainWorker" in " ".join(psutil.Process().cmdline()):
        die_once(mark)
    return DiesOnArrival(mark)


def test_a_worker_killed_while_its_group_starts_is_started_again(tmp_path: Path) -> None:
    fit(DiesOnArrival(tmp_path / "mark"), storage_dir=tmp_path / "training", hardware=CPU)
    assert (tmp_path / "mark").exists()


def test_a_killed_training_worker_is_started_again(tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    def loop() -> None:
        import torch.distributed as dist

        assert dist.get_world_size() == 2
        if dist.get_rank() == 1:
            die_once(mark)
        (tmp_path / f"done_{dist.get_rank()}").write_text("done")
        dist.barrier()

    fit(loop, storage_dir=tmp_path / "training", hardware=CPU)
    assert mark.exists() and (tmp_path / "done_0").exists() and (tmp_path / "done_1").exists()


@pytest.mark.parametrize("error", [ValueError("batch_size 7 is odd"), FloatingPointError("d_loss is nan")], ids=repr)
def test_an_error_in_a_training_is_told_in_its_own_words(error: Exception, tmp_path: Path) -> None:
    def loop() -> None:
        raise error

    with pytest.raises(type(error), match=f"^{error}$"):
        fit(loop, storage_dir=tmp_path / "training", hardware=CPU)
