"""Ray as it is: shards in order, a killed task tried again, people's mistakes told as they are."""

import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

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
    fewest_workers: int = 2
    use_gpu: bool = False
    max_failures: int = 1


@dataclass(frozen=True)
class Training:
    storage_dir: Path
    hardware: Group
    bucket: str | None = None
    reads: tuple[Path, ...] = ()
    reason: str = ""

    def require_possible(self) -> None:
        if self.reason:
            raise ValueError(self.reason)


PAIR = Group()
ALONE = Group(num_workers=1, fewest_workers=1)


@pytest.fixture(autouse=True, scope="module")
def a_quick_ray() -> Iterator[None]:
    """Let Ray Train look after its workers often; the first test stops a Ray that is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        yield


def square(number: int) -> int:
    return number * number


def refuse(number: int) -> int:
    raise ValueError(f"file {number} is torn; bring a whole one")


def die_once(path: Path) -> str:
    if not path.exists():
        path.write_text("died")
        os.kill(os.getpid(), signal.SIGKILL)
    return path.read_text()


def test_a_training_that_is_not_possible_is_refused_before_ray_is_asked(tmp_path: Path) -> None:
    ray.shutdown()
    with pytest.raises(ValueError, match="a batch of 7"):
        fit(die_once, Training(tmp_path / "job", PAIR, reason="a batch of 7"))
    assert not ray.is_initialized()


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
    gpus = Group(num_workers=65, fewest_workers=64, use_gpu=True)
    with pytest.raises(ValueError, match=r"min_workers ask for 64 GPUs and Ray sees \d+; lower them, or use"):
        fit(lambda: None, Training(tmp_path, gpus))


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


@pytest.mark.slow
def test_a_worker_killed_while_its_group_starts_is_started_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(DiesOnArrival(tmp_path / "mark"), Training(tmp_path / "training", PAIR))
    assert (tmp_path / "mark").exists()
    assert "try 1 of 2 of training failed: a starting worker died" in caplog.text


@pytest.mark.slow
def test_a_dead_worker_and_a_lost_connection_are_tried_again_and_a_mistake_is_told_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def loop() -> None:
        count_run(tmp_path)
        dist.barrier()
        if dist.get_rank() == 1:
            match num_runs(tmp_path, rank=1):
                case 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                case 2:
                    raise ConnectionResetError("the store hung up")
                case _:
                    raise ValueError("batch_size 7 is odd")
        dist.barrier()

    with pytest.raises(ValueError, match=r"^batch_size 7 is odd$"):
        fit(loop, Training(tmp_path / "training", replace(PAIR, max_failures=5)))
    assert num_runs(tmp_path, rank=1) == 3
    dead, lost = (record.getMessage() for record in caplog.records if record.name == "pipeline.cluster")
    again = "; starting its workers again"
    assert re.fullmatch(rf"try 1 of 6 of training failed: (worker 1|a starting worker) died \(.*\){again}", dead)
    assert re.fullmatch(rf"try 2 of 6 of training failed: worker [01]: .*{again}", lost)


@pytest.mark.slow
def test_a_death_in_the_last_try_and_a_full_disk_are_told_and_the_name_runs_again(tmp_path: Path) -> None:
    def loop() -> None:
        count_run(tmp_path)
        if num_runs(tmp_path) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(28, "No space left on device")

    with pytest.raises(TrainingFailedError):
        fit(loop, Training(tmp_path / "training", replace(ALONE, max_failures=0)))
    assert num_runs(tmp_path) == 1
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device$"):
        fit(loop, Training(tmp_path / "training", replace(ALONE, max_failures=2)))
    assert num_runs(tmp_path) == 2


@pytest.mark.parametrize("mistake", [ValueError("odd"), FloatingPointError("d_loss is nan"), OSError("full")], ids=repr)
def test_a_mistake_is_told_before_the_lost_connections_that_it_caused(mistake: Exception) -> None:
    assert _own_error(WorkerGroupError("", {0: ConnectionResetError(), 1: mistake, 2: TimeoutError()})) is mistake


def train_on_a_small_cluster(folder: Path) -> None:
    """Train twice on one CPU: where one worker is enough, and where two are needed and a CPU is added in time."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1, "include_dashboard": False})
    os.environ |= {"RAY_ADDRESS": cluster.address, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1"}

    class Grow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "no room for patient" in record.getMessage() and len(cluster.list_all_nodes()) == 1:
                cluster.add_node(num_cpus=1)

    def patient_loop() -> None:
        (folder / f"patient_{dist.get_rank()}_of_{dist.get_world_size()}").touch(exist_ok=False)

    def content_loop() -> None:
        (folder / f"content_{dist.get_rank()}_of_{dist.get_world_size()}").touch(exist_ok=False)
        (folder / "heard").read_text()  # a pipe: waits until what Ray brings from here has been read

    logging.basicConfig()
    logging.getLogger("pipeline.cluster").addHandler(Grow())
    for name, loop, fewest_workers in (("content", content_loop, 1), ("patient", patient_loop, 2)):
        print(f"{name}:", flush=True)
        fit(loop, Training(folder / name, Group(fewest_workers=fewest_workers, max_failures=0)))
    ray.shutdown()
    cluster.shutdown()


class Told(NamedTuple):
    content: str  # what was said of the training that is content with one worker
    patient: str  # and of the one that waits for the second
    names: set[str]  # of the files that the workers left, each its rank and how many they were


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Run train_on_a_small_cluster in a process of its own and return what it said and did."""
    folder = tmp_path_factory.mktemp("small")
    os.mkfifo(folder / "heard")
    command = "import sys; from pathlib import Path; from tests.test_cluster import train_on_a_small_cluster as train"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{command}; train(Path(sys.argv[1]))", str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line)
            if "training on 1 of 2" in line:
                (folder / "heard").write_text("yes")
        assert process.wait() == 0, "".join(lines)
    finally:
        process.kill()
        process.communicate()
    content, _, patient = "".join(lines).partition("patient:")
    return Told(content, patient, {path.name for path in folder.iterdir() if "_of_" in path.name})


@pytest.mark.slow
def test_a_training_goes_on_with_fewer_workers_and_says_so(told: Told) -> None:
    assert "content_0_of_1" in told.names
    assert "training on 1 of 2 workers asked for" in told.content


@pytest.mark.slow
def test_gpus_that_lie_idle_are_told_with_the_remedy(told: Told) -> None:
    assert "GPUs that stay unused: 1; hardware=gpu trains on them" in told.content


@pytest.mark.slow
def test_waiting_for_a_cluster_to_grow_is_said_and_is_no_failure(told: Told) -> None:
    assert {"patient_0_of_2", "patient_1_of_2"} < told.names
    assert "Ray has 1 CPUs; waiting until there are 2" in told.patient
    assert "Ray has no room for patient yet" in told.patient and "training on 1 of 2" not in told.patient
