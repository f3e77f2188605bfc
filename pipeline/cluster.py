"""Ray, only here: data-parallel work over shards, and training on several workers.

Without RAY_ADDRESS, Ray starts inside this process; with it, the work goes to that cluster. Ray listens on the
machine's own address (it refuses loopback) and asks for a token, which it keeps in the home folder, by default.
"""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

Job = TypeVar("Job")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def start(num_workers: int) -> None:
    """Connect to Ray, or start it here with at least `num_workers` CPUs."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    in_process = "RAY_ADDRESS" not in os.environ
    if in_process:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away
    import ray

    if ray.is_initialized():
        return
    quiet: dict[str, Any] = {
        "runtime_env": {"worker_process_setup_hook": quieten_logs},
        "logging_level": logging.ERROR,
    }
    if in_process:
        num_cpus = max(num_workers, os.cpu_count() or 1)
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **quiet)
    else:
        ray.init(**quiet)


def quieten_logs() -> None:
    """Leave a Ray process our own lines and Ray's errors.

    Among what goes: Ray Train's cleaner, which warns every second that the dashboard (off here) does not answer.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("ray").setLevel(logging.ERROR)
    for name in ("ray.train.v2._internal.execution.controller.placement_group_cleaner", "ray.train.v2"):
        logging.getLogger(name).setLevel(logging.ERROR)


def map_shards(
    work: Callable[[Job], Result], jobs: Sequence[Job], *, num_workers: int, use_gpu: bool = False
) -> list[Result]:
    """Run `work` on every job as a Ray task on one CPU, and return the results in the order of the jobs.

    A task whose worker died is tried again; no more jobs are handed out than run, so memory is bounded by those.

    Args:
        work: a module's function; it must write its output under a temporary name, since it may run twice.
        jobs: what it is called with.
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
    task = ray.remote(num_cpus=1, num_gpus=int(use_gpu), max_retries=3)(work)
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
                    running[task.remote(job)] = index
                done, _ = ray.wait(list(running), num_returns=1)
                index = running.pop(done[0])
                results[index] = ray.get(done[0])
                bar.advance(bar_task)
                if not console.is_terminal:
                    logger.info("%s: shard %d of %d", work.__name__, len(results), len(jobs))
    except RayTaskError as error:
        if running:  # tasks under way finish first, so that the caller can remove what they write
            ray.wait(list(running), num_returns=len(running))
        raise (error.cause if isinstance(error.cause, ValueError | OSError) else error) from None
    return [results[index] for index in range(len(jobs))]


class Hardware(Protocol):
    """Where a training runs (section `hardware` of params.yaml)."""

    @property
    def num_workers(self) -> int:
        """One CPU or GPU each."""
        ...

    @property
    def use_gpu(self) -> bool:
        """Whether each has a GPU."""
        ...

    @property
    def max_failures(self) -> int:
        """How many times the group is started again."""
        ...


def fit(loop: Callable[[], None], *, storage_dir: Path, hardware: Hardware) -> None:
    """Run `loop` on every worker of a Ray Train group, with torch.distributed set up between them.

    A worker that dies takes the group down; the group is started again and `loop` continues from its own checkpoint.

    Args:
        loop: takes no argument (see functools.partial) and keeps its state in its own checkpoints.
        storage_dir: of this training; Ray keeps its own state in it, under its name. An equal name continues an
            earlier run, so it must stand for the params and inputs.
        hardware: how many workers, and on what.

    Raises:
        ValueError: raised by `loop`, or more GPUs were asked for than there are.
        FloatingPointError: raised by `loop`.
    """
    import ray
    from ray.train import ControllerError, TrainingFailedError

    for failures_left in range(hardware.max_failures, -1, -1):
        start(hardware.num_workers)
        num_gpus = int(ray.cluster_resources().get("GPU", 0))
        if hardware.use_gpu and num_gpus < hardware.num_workers:
            raise ValueError(
                f"hardware.num_workers asks for {hardware.num_workers} GPUs and Ray sees {num_gpus}; "
                "lower it, or use hardware=cpu"
            )
        try:
            _trainer(loop, storage_dir, hardware).fit()
            return
        except TrainingFailedError as error:
            # A worker that dies while its group starts is a failure of Ray Train's controller, which is not tried
            # again and leaves the group's CPUs or GPUs taken: the next group would wait for ever.
            failed_to_start = isinstance(error, ControllerError)
            if failed_to_start:
                ray.shutdown()
            if failures_left == 0 or not failed_to_start:
                raise _own_error(error) or error from None
            logger.warning("a worker died while its group was starting; starting Ray's part again")


def _trainer(loop: Callable[[], None], storage_dir: Path, hardware: Hardware) -> "TorchTrainer":
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    return TorchTrainer(
        loop,
        torch_config=TorchConfig(backend="nccl" if hardware.use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=hardware.num_workers, use_gpu=hardware.use_gpu),
        run_config=RunConfig(
            name=storage_dir.name,
            storage_path=str(storage_dir / "ray"),
            failure_config=FailureConfig(
                max_failures=hardware.max_failures,
                # A cluster may still grow to what was asked for; this machine will not: waiting ends, fit tries again.
                controller_failure_limit=-1 if "RAY_ADDRESS" in os.environ else 0,
            ),
        ),
    )


def _own_error(error: BaseException) -> ValueError | FloatingPointError | None:
    """Return the error that `loop` raised for a person to read, out of Ray Train's wrapping."""
    failures: Iterable[Any] = getattr(error, "worker_failures", {}).values()
    for failure in (error.__cause__, *failures):
        cause = getattr(failure, "cause", failure)
        if isinstance(cause, ValueError | FloatingPointError):
            return cause
    return None
