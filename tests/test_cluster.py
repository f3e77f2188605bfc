"""Ray as it is: shards in order, a killed task tried again, people's mistakes told as they are."""

import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
import ray
import torch.distributed as dist
from ray.cluster_utils import Cluster
from ray.train import TrainingFailedError, WorkerGroupError

from pipeline.cluster import _own_error, fit, map_shards

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Group:
    num_workers: int = 2
    min_workers: int = 2
    use_gpu: bool = False
    max_failures: int = 1


PAIR = Group()
ALONE = Group(num_workers=1, min_workers=1)


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
    gpus = Group(num_workers=65, min_workers=64, use_gpu=True)
    with pytest.raises(ValueError, match=r"hardware\.min_workers asks for 64 GPUs and Ray sees \d+; lower it, or use"):
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


def count_run(folder: Path) -> None:
    """Leave one file more in `folder` for each time that a worker of this rank begins the loop."""
    os.close(tempfile.mkstemp(prefix=f"run_{dist.get_rank()}_", dir=folder)[0])


def num_runs(folder: Path, rank: int = 0) -> int:
    return len(list(folder.glob(f"run_{rank}_*")))


def test_a_worker_killed_while_its_group_starts_is_started_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(DiesOnArrival(tmp_path / "mark"), storage_dir=tmp_path / "training", hardware=PAIR)
    assert (tmp_path / "mark").exists()
    assert "try 1 of 2 of training failed: a starting worker died" in caplog.text


def test_a_killed_training_worker_is_started_again(tmp_path: Path) -> None:
    def loop() -> None:
        count_run(tmp_path)
        assert dist.get_world_size() == 2
        if dist.get_rank() == 1:
            die_once(tmp_path / "mark")
        (tmp_path / f"done_{dist.get_rank()}").write_text("done")
        dist.barrier()

    fit(loop, storage_dir=tmp_path / "training", hardware=PAIR)
    assert (tmp_path / "done_0").exists() and (tmp_path / "done_1").exists()
    assert num_runs(tmp_path, rank=1) == 2


def test_a_worker_that_always_dies_is_told_after_the_last_try(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def loop() -> None:
        count_run(tmp_path)
        dist.barrier()
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.barrier()

    with pytest.raises(TrainingFailedError):
        fit(loop, storage_dir=tmp_path / "training", hardware=PAIR)
    assert num_runs(tmp_path, rank=1) == 2
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "pipeline.cluster"]
    assert re.fullmatch(
        r"try 1 of 2 of training failed: (worker 1|a starting worker) died \(.*\); starting its workers again", warning
    )


@pytest.mark.parametrize(
    "error",
    [ValueError("batch_size 7 is odd"), FloatingPointError("d_loss is nan"), OSError(28, "No space left on device")],
    ids=repr,
)
def test_an_error_of_one_worker_is_told_at_once_in_its_own_words(error: Exception, tmp_path: Path) -> None:
    def loop() -> None:
        count_run(tmp_path)
        if dist.get_rank() == 1:
            raise error
        dist.barrier()

    with pytest.raises(type(error), match=f"^{re.escape(str(error))}$"):
        fit(loop, storage_dir=tmp_path / "training", hardware=PAIR)
    assert num_runs(tmp_path, rank=1) == 1


def test_a_lost_connection_is_tried_again_and_told_in_its_own_words(tmp_path: Path) -> None:
    def loop() -> None:
        count_run(tmp_path)
        raise ConnectionResetError("the store hung up")

    with pytest.raises(ConnectionResetError, match=r"^the store hung up$"):
        fit(loop, storage_dir=tmp_path / "training", hardware=ALONE)
    assert num_runs(tmp_path) == 2


def test_a_mistake_is_told_before_the_lost_connections_that_it_caused() -> None:
    mistake = ValueError("batch_size 7 is odd")
    assert _own_error(WorkerGroupError("", {0: ConnectionResetError(), 1: mistake, 2: TimeoutError()})) is mistake


def test_the_next_training_of_a_name_runs_again_whether_the_last_one_failed_or_not(tmp_path: Path) -> None:
    def loop() -> None:
        count_run(tmp_path)
        if num_runs(tmp_path) == 1:
            raise ValueError("the first one fails")

    with pytest.raises(ValueError, match="the first one fails"):
        fit(loop, storage_dir=tmp_path / "training", hardware=ALONE)
    for num_earlier in (1, 2):
        fit(loop, storage_dir=tmp_path / "training", hardware=ALONE)
        assert num_runs(tmp_path) == num_earlier + 1


@contextmanager
def in_its_own_ray(function: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Call a function of this file in a new process, whose lines can be read; a test that fails leaves none behind."""
    command = f"import sys; from pathlib import Path; from tests.test_cluster import *; {function}(Path(sys.argv[1]))"
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-c", command, str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**environment, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        yield process
        process.wait()
    finally:
        process.kill()
        process.communicate()


def train_where_there_is_one_cpu(folder: Path) -> None:
    def loop() -> None:
        (folder / "world_size").write_text(str(dist.get_world_size()))
        (folder / "heard").read_text()  # a pipe: waits until the test writes to it

    ray.init(address="local", num_cpus=1, num_gpus=1, include_dashboard=False)
    fit(loop, storage_dir=folder / "training", hardware=replace(PAIR, min_workers=1))


@pytest.mark.timeout(150)
def test_a_training_goes_on_with_fewer_workers_and_says_so(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "heard")
    with in_its_own_ray("train_where_there_is_one_cpu", tmp_path) as process:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if "training on 1 of 2 workers asked for" in line:
                (tmp_path / "heard").write_text("yes")
    assert process.returncode == 0, lines
    assert (tmp_path / "world_size").read_text() == "1"
    assert "GPUs that stay unused: 1; hardware=gpu trains on them\n" in lines


def train_on_a_cluster_that_grows(folder: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    os.environ |= {"RAY_ADDRESS": cluster.address, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1"}

    class Grow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "no room for training" in record.getMessage() and len(cluster.list_all_nodes()) == 1:
                cluster.add_node(num_cpus=1)

    logging.getLogger("pipeline.cluster").addHandler(Grow())
    logging.basicConfig()
    fit(lambda: count_run(folder), storage_dir=folder / "training", hardware=replace(PAIR, max_failures=0))
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.timeout(150)
def test_waiting_for_a_cluster_to_grow_is_said_and_is_no_failure(tmp_path: Path) -> None:
    with in_its_own_ray("train_on_a_cluster_that_grows", tmp_path) as process:
        assert process.stdout is not None
        said = process.stdout.read()
    assert process.returncode == 0, said
    assert num_runs(tmp_path, rank=0) == num_runs(tmp_path, rank=1) == 1
    assert "Ray has 1 CPUs; waiting until there are 2" in said and "Ray has no room for training yet" in said
