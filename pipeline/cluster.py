"""Ray: data-parallel work over shards, and training on several workers.

Without RAY_ADDRESS, Ray starts inside this process; with it, the work goes to that cluster. Ray listens on the
machine's own address (it refuses loopback) and asks for a token, which it keeps in the home folder, by default.

The machines of a cluster need not share a disk: see pipeline/carrying.py.
"""

import logging
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pipeline.carrying import FileCarrier, Luggage, Travelling, fetch, is_elsewhere, run_job, write_whole
from pipeline.storage import Store, patiently

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

Job = TypeVar("Job")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)

MAY_PASS = (ConnectionError, TimeoutError)  # those OSErrors of a training for which it is tried again


def start(num_workers: int) -> None:
    """Connect to Ray, or start it here with at least `num_workers` CPUs."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    in_process = "RAY_ADDRESS" not in os.environ
    if in_process:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away
    for part in ("CONTROLLER", "WORKER"):  # else Ray Train sets up its own logging there, over quieten_logs
        os.environ.setdefault(f"RAY_TRAIN_ENABLE_{part}_STRUCTURED_LOGGING", "0")
    import ray

    if ray.is_initialized():
        return
    if in_process:
        num_cpus = max(num_workers, os.cpu_count() or 1)
        where: dict[str, Any] = {"address": "local", "num_cpus": num_cpus, "include_dashboard": False}
    else:
        where = {}
    hook = quieten_logs if in_process else prepare_worker_elsewhere
    on_stop = signal.getsignal(signal.SIGTERM)
    ray.init(runtime_env={"worker_process_setup_hook": hook}, logging_level=logging.ERROR, **where)
    signal.signal(signal.SIGTERM, on_stop)  # Ray's own prints a stack and ends the process where it stands


def quieten_logs() -> None:
    """Leave a Ray process our own lines and Ray's errors."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in ("ray", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


def prepare_worker_elsewhere() -> None:
    """Quieten a worker of a cluster, and let torch.distributed talk over the network that Ray talks over.

    Gloo and NCCL else ask what the machine's own name means, which on many is 127.0.0.1.
    """
    quieten_logs()
    import psutil
    import ray

    address = ray.util.get_node_ip_address()
    for interface, addresses in psutil.net_if_addrs().items():
        if any(it.address == address for it in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)


def map_shards(
    work: Callable[[Job], Result], jobs: Sequence[Job], *, num_workers: int, use_gpu: bool = False
) -> list[Result]:
    """Run `work` on every job as a Ray task on one CPU, and return the results in the order of the jobs.

    A task whose worker died is tried again; no more jobs are handed out than run, so memory is bounded by those.

    Args:
        work: a module's function; it must write its output under a temporary name, since it may run twice.
        jobs: what it is called with; see Travelling for files on a cluster.
        num_workers: how many tasks run at once.
        use_gpu: give each task a GPU.

    Raises:
        ValueError: raised by `work`, once the tasks under way have ended; no further ones are started.
        OSError: likewise; a full disk, say.
    """
    import ray
    from ray.exceptions import RayTaskError
    from rich.console import Console
    from rich.progress import Progress

    start(num_workers)
    task = ray.remote(num_cpus=1, num_gpus=int(use_gpu), max_retries=3)(run_job)
    files = FileCarrier() if "RAY_ADDRESS" in os.environ else None
    results: dict[int, Result] = {}
    running: dict[Any, int] = {}
    waiting = list(enumerate(jobs))[::-1]
    console = Console(stderr=True)
    try:
        with Progress(console=console, disable=not console.is_terminal) as bar:
            bar_task = bar.add_task(work.__name__, total=len(jobs))
            while waiting or running:
                while waiting and len(running) < num_workers:
                    index, job = waiting.pop()
                    luggage = files.luggage_of(job) if files and isinstance(job, Travelling) else None
                    running[task.options(name=work.__name__).remote(work, job, luggage)] = index
                done, _ = ray.wait(list(running), num_returns=1)
                index = running.pop(done[0])
                results[index], written = ray.get(done[0])
                for path, content in written.items():
                    write_whole(path, [content])
                bar.advance(bar_task)
                if not console.is_terminal:
                    logger.info("%s: shard %d of %d", work.__name__, len(results), len(jobs))
    except RayTaskError as error:
        if running:  # tasks under way finish first, so that the caller can remove what they write
            ray.wait(list(running), num_returns=len(running))
        raise (error.cause if isinstance(error.cause, ValueError | OSError) else error) from None
    return [results[index] for index in range(len(jobs))]


def on_every_machine(work: Callable[[Job], None], job: Job) -> None:
    """Run `work` of a job once on each machine of Ray's; one that goes away meanwhile is let go."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(work)
    there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes() if node["Alive"]]
    for answer in [task.options(scheduling_strategy=it, name=work.__name__).remote(job) for it in there]:
        try:
            ray.get(answer)
        except RayError as error:
            logger.warning("a machine did not do its part: %s", str(error).partition("\n")[0])


class Hardware(Protocol):
    """Where a training runs (section `hardware` of params.yaml)."""

    @property
    def num_workers(self) -> int:
        """One CPU or GPU each."""
        ...

    @property
    def fewest_workers(self) -> int:
        """With how few a training is content where Ray has no more; it grows when Ray does."""
        ...

    @property
    def use_gpu(self) -> bool:
        """Whether each has a GPU."""
        ...

    @property
    def max_failures(self) -> int:
        """How many times the group is started again."""
        ...


class Training(Protocol):
    """What `fit` needs to know of a training."""

    @property
    def storage_dir(self) -> Path:
        """A folder of its own that all workers see, unless there is a bucket."""
        ...

    @property
    def bucket(self) -> str | None:
        """In its place where machines share no disk: s3://bucket/prefix."""
        ...

    @property
    def hardware(self) -> Hardware:
        """How many workers, and on what."""
        ...

    @property
    def reads(self) -> Sequence[Path]:
        """Files and folders that `loop` reads."""
        ...

    def require_possible(self) -> None:
        """Raise ValueError where no worker could do it."""
        ...


Beside = Callable[[str], AbstractContextManager[object]]


def fit(loop: Callable[[], None], training: Training, *, beside: Beside | None = None) -> None:
    """Run `loop` on every worker of a Ray Train group, with torch.distributed set up between them.

    A worker that dies takes the group down; the group is started again and `loop` continues from its own checkpoint.
    A group of fewer workers than asked for is likewise started again, larger, when Ray finds room for more.

    Args:
        loop: takes no argument (see functools.partial), learns from torch.distributed how many workers there are, and
            keeps its state in its own checkpoints. One that ran to its end or failed runs again in the next call.
        training: Ray keeps its own state in its storage, under its name.
        beside: what runs beside the loop, once on each machine other than this one, called with the machine's name.

    Raises:
        ValueError: the training is not possible, before any worker is started; raised by `loop`, and told at once; or
            more GPUs were asked for than there are, or the bucket cannot be written.
        FloatingPointError: raised by `loop`, and told at once.
        OSError: likewise, such as a full disk; but for a lost connection, which may come back, the group is started
            again first.
        TrainingFailedError: of Ray Train; the last try failed too.
    """
    import ray
    from ray.train import ControllerError, TrainingFailedError

    training.require_possible()
    hardware, name = training.hardware, training.storage_dir.name
    start(hardware.num_workers)
    check_gpus(hardware)
    if training.bucket:
        Store(training.bucket).require_writable()
    num_failures = 0
    while True:
        start(hardware.num_workers)
        _say_if_too_few(hardware)
        try:
            _trainer(loop, training, beside).fit()
            return
        except TrainingFailedError as error:
            # A worker that dies while its group starts is a failure of Ray Train's controller, which may leave the
            # group's CPUs or GPUs taken: the next group would wait for ever. Leaving Ray frees them, on a cluster too.
            if isinstance(error, ControllerError):
                ray.shutdown()
            if _waits_for_cluster(error):
                logger.warning("Ray has no room for %s yet; waiting for its cluster to grow", name)
                continue
            own_error = _own_error(error)
            num_failures += 1
            if num_failures > hardware.max_failures or (own_error and not isinstance(own_error, MAY_PASS)):
                raise own_error or error from None
            logger.warning(
                "try %d of %d of %s failed: %s; starting its workers again",
                num_failures, 1 + hardware.max_failures, name, _reason(error),
            )  # fmt: skip
            if training.bucket:  # Ray Train keeps its own state there
                patiently(Store(training.bucket).probe, f"use {training.bucket}")


def check_gpus(hardware: Hardware) -> None:
    """Say how many GPUs lie idle.

    Raises:
        ValueError: fewer are there than are asked for.
    """
    import ray

    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    if hardware.use_gpu and num_gpus < hardware.fewest_workers:
        raise ValueError(
            f"hardware.num_workers and min_workers ask for {hardware.fewest_workers} GPUs and Ray sees {num_gpus}; "
            "lower them, or use hardware=cpu"
        )
    if num_gpus and not hardware.use_gpu:
        logger.warning("GPUs that stay unused: %d; hardware=gpu trains on them", num_gpus)


def _say_if_too_few(hardware: Hardware) -> None:
    """Say what Ray does not: a group that takes what there is waits without an end for its least number of workers."""
    import ray

    unit = "GPU" if hardware.use_gpu else "CPU"
    num_units = int(ray.cluster_resources().get(unit, 0))
    if num_units < hardware.fewest_workers:
        logger.warning(
            "Ray has %d %ss; waiting until there are %d: add machines, or set hardware.min_workers lower",
            num_units, unit, hardware.fewest_workers,
        )  # fmt: skip


def _trainer(loop: Callable[[], None], training: Training, beside: Beside | None) -> "TorchTrainer":
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    class Trainer(TorchTrainer):
        """Without the cleaner where Ray ends with us: it asks the dashboard, off here, and delays the end for 12 s."""

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            if "RAY_ADDRESS" in os.environ:
                return callbacks
            return [it for it in callbacks if type(it).__name__ != "PlacementGroupCleanerCallback"]

    hardware = training.hardware
    fewest, most = hardware.fewest_workers, hardware.num_workers
    luggage = FileCarrier().luggage(training.reads) if "RAY_ADDRESS" in os.environ else None
    return Trainer(
        partial(_work, loop, most, luggage, beside),
        torch_config=TorchConfig(backend="nccl" if hardware.use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=most if fewest == most else (fewest, most), use_gpu=hardware.use_gpu),
        run_config=RunConfig(
            name=training.storage_dir.name,
            storage_path=f"{training.bucket or training.storage_dir}/ray",
            # `fit` alone tries again; only from a machine that its cloud takes back, Ray moves away by itself.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )


def _work(loop: Callable[[], None], num_asked: int, luggage: Luggage | None, beside: Beside | None) -> None:
    """Run `loop` in a worker; the first one says so where they are fewer than asked for."""
    import ray
    from ray.train import get_context

    num_workers = get_context().get_world_size()
    if num_workers < num_asked and get_context().get_world_rank() == 0:
        logger.warning(
            "training on %d of %d workers asked for: Ray has room for no more; add machines or lower num_workers",
            num_workers, num_asked,
        )  # fmt: skip
    observed: AbstractContextManager[object] = nullcontext()
    if luggage and is_elsewhere(luggage):
        fetch(luggage)
        if beside and get_context().get_local_rank() == 0:
            observed = beside(ray.util.get_node_ip_address())
    with observed:
        loop()


def _own_error(error: BaseException) -> ValueError | FloatingPointError | OSError | None:
    """Return the error that `loop` raised for a person to read, out of Ray Train's wrapping."""
    causes = [getattr(failure, "cause", failure) for failure in _failures(error).values()]
    own_errors = [cause for cause in causes if isinstance(cause, ValueError | FloatingPointError | OSError)]
    return min(own_errors, key=lambda own_error: isinstance(own_error, MAY_PASS), default=None)


def _failures(error: BaseException) -> dict[str, BaseException]:
    """Return who failed with what; a worker's death comes wrapped in Ray Train's health check."""
    workers: dict[int, BaseException] = getattr(error, "worker_failures", {})
    failures = {f"worker {rank}": getattr(it, "health_check_failure", it) for rank, it in workers.items()}
    return failures or {"a starting worker": getattr(error, "controller_failure", error)}


def _reason(error: BaseException) -> str:
    """Say in one line why a try failed; a death before all, since it makes the other workers fail too."""
    from ray.exceptions import RayActorError

    who, failure = min(_failures(error).items(), key=lambda item: not isinstance(item[1], RayActorError))
    if isinstance(failure, RayActorError):
        return f"{who} died (killed, or out of memory)"
    first_line = str(failure).strip().partition("\n")[0]
    return f"{who}: {type(failure).__name__}: {first_line}"


def _waits_for_cluster(error: BaseException) -> bool:
    """Tell whether a group only found no room: a cluster may still grow, this machine will not."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    found_no_room = isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)
    return found_no_room and "RAY_ADDRESS" in os.environ
