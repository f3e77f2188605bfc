"""From one worker to two on the demo's networks, and on paper from 1 to 512 GPUs.

Measured here: steps of both stages at params.yaml's widths and batch, by two workers that share the batch against one,
each on one thread and with Gloo between them, as on machines of their own; how much of a step goes into averaging
gradients, waiting for the other included; and the rate at which Gloo averages.

On paper: step = compute + 2 (n - 1) / n x bytes / bandwidth + 2 log2 n x latency for each of two vectors, G's gradients
and D's, nothing overlapped, since each is sent after its backward pass; every GPU has a whole batch of its own.
`--replayed-ms 4.65 29.5` is a step of Stage-I and of Stage-II as one CUDA graph, as one GPU trains alone (python -m
benchmarks.train_step there), `--launched-ms 17.7 41.3` with a launch a kernel, as it trains in a group today.
"""

import argparse
import math
import multiprocessing
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import yaml

from benchmarks.measure import tell
from benchmarks.train_step import EMBEDDING_DIM, paper_params
from pipeline.allocation import keep_freed_memory
from pipeline.data.batches import Batch
from pipeline.gan import workers
from pipeline.gan.architecture import architecture_of
from pipeline.gan.stages import Stage, new_stage
from pipeline.gan.trainer import Trainer, autocast_dtype
from pipeline.params import GanParams

ROOT = Path(__file__).parents[1]
SEC = 6.0  # that a measurement lasts at least
WARM_UP = 2  # steps before it
MEGABYTES = 64  # that Gloo's rate is measured with


class Machine(NamedTuple):
    """What GPUs are joined by: the bytes a second at which such vectors are averaged, and what a message costs."""

    name: str
    num_gpus: int
    inside: float
    between: float
    latency_sec: float


# Assumed, not measured: what NCCL is commonly seen to reach with vectors of 15 to 200 MB.
MACHINES = (
    Machine("8 GPUs, NVLink, 8 x 400 Gb/s", 8, 200e9, 150e9, 15e-6),
    Machine("8 GPUs, NVLink, 100 Gb/s", 8, 200e9, 10e9, 30e-6),
    Machine("1 GPU, 25 Gb/s", 1, 0, 2.5e9, 30e-6),
)
NUM_GPUS = (1, 2, 8, 16, 64, 128, 512)


class Measured(NamedTuple):
    """What one group of workers did."""

    images_per_sec: float
    communication_share: float
    all_reduce_bytes_per_sec: float


@dataclass
class Timer:
    """The seconds spent in averaging."""

    seconds: float = 0.0


def num_bytes(stage: Stage) -> int:
    """Return the bytes of all gradients of a step, float32."""
    networks = (stage.generator, stage.discriminator)
    return 4 * sum(weights.numel() for network in networks for weights in network.parameters() if weights.requires_grad)


def work(
    rank: int, num_workers: int, stage_number: int, meeting: str, found: "multiprocessing.Queue[Measured]"
) -> None:
    """Run one worker of a group; the first one tells."""
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=num_workers)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    gan, train = GanParams(**params["gan"]), params[f"train_stage{stage_number}"]
    stage = new_stage(stage_number, architecture_of(gan, EMBEDDING_DIM), seed=0)
    trainer = Trainer(
        stage, gan, augment=train["differentiable_augmentation"], accumulation=1,
        autocast=autocast_dtype("auto", torch.device("cpu")), speedups=params["hardware"]["speedups"],
    )  # fmt: skip
    trainer.set_learning_rate(train["learning_rate"])
    batch_size = train["batch_size"] // num_workers
    batch, noise = _batch(stage, batch_size), torch.randn(batch_size, stage.noise_dim)

    timer, plain = Timer(), workers.averaged

    def timed(values: torch.Tensor) -> torch.Tensor:
        started = time.perf_counter()
        averaged = plain(values)
        timer.seconds += time.perf_counter() - started
        return averaged

    workers.averaged = timed
    for _ in range(WARM_UP):
        trainer.step(batch, noise)
    timer.seconds, started, steps = 0.0, time.perf_counter(), 0
    while _all_go_on(time.perf_counter() - started < SEC):
        trainer.step(batch, noise)
        steps += 1
    seconds, in_averaging = time.perf_counter() - started, timer.seconds
    rate = _all_reduce_rate() if num_workers > 1 else float("inf")
    if rank == 0:
        found.put(Measured(steps * train["batch_size"] / seconds, in_averaging / seconds, rate))
    dist.destroy_process_group()


def _batch(stage: Stage, size: int) -> Batch:
    draws = torch.Generator().manual_seed(0)
    real = torch.rand((size, 3, stage.image_size, stage.image_size), generator=draws).mul(2).sub(1)
    texts = torch.randn(2, size, stage.architecture.text_dim, generator=draws)
    return Batch(
        real=real.contiguous(memory_format=torch.channels_last), text_embedding=texts[0], wrong=None,
        wrong_text_embedding=texts[1], augmentation_draws=torch.rand(3, size, 4, generator=draws),
    )  # fmt: skip


def _all_go_on(mine: bool) -> bool:
    flag = torch.tensor(float(mine))
    dist.all_reduce(flag, dist.ReduceOp.MIN)
    return bool(flag)


def _all_reduce_rate() -> float:
    values = torch.zeros(MEGABYTES * 2**18)
    dist.all_reduce(values)
    started = time.perf_counter()
    for _ in range(5):
        dist.all_reduce(values)
    return 5 * values.numel() * 4 / (time.perf_counter() - started)


def measure(num_workers: int, stage_number: int) -> Measured:
    """Measure a group of workers, each a process."""
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (num_workers, stage_number, f"{folder}/meeting", found)
        processes = [context.Process(target=work, args=(rank, *arguments)) for rank in range(num_workers)]
        for process in processes:
            process.start()
        measured: Measured = found.get(timeout=300)
        for process in processes:
            process.join()
    return measured


def step_sec(compute_sec: float, num_gpus: int, machine: Machine, num_bytes_sent: int) -> float:
    """Return what a step of n GPUs takes."""
    bytes_per_sec = machine.inside if num_gpus <= machine.num_gpus else machine.between
    sending = 2 * (num_gpus - 1) / num_gpus * num_bytes_sent / bytes_per_sec if num_gpus > 1 else 0.0
    return compute_sec + sending + 2 * 2 * math.log2(num_gpus) * machine.latency_sec


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replayed-ms", nargs=2, type=float, default=(4.65, 29.5), metavar="MS")
    parser.add_argument("--launched-ms", nargs=2, type=float, default=(17.7, 41.3), metavar="MS")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    results: dict[str, float | str] = {}
    rows: list[list[str]] = []
    for number in (1, 2):
        groups = {1: Measured(0, 0, 0), 2: Measured(0, 0, 0)}
        for _ in range(arguments.repeats):
            for count in groups:
                groups[count] = max(groups[count], measure(count, number))
        share = groups[2].images_per_sec / groups[1].images_per_sec / 2
        rows.append([
            f"Stage-{'I' * number}", f"{groups[1].images_per_sec:.1f}", f"{groups[2].images_per_sec:.1f}",
            f"{share:.2f}", f"{groups[2].communication_share:.3f}", f"{groups[2].all_reduce_bytes_per_sec / 1e9:.2f}",
        ])  # fmt: skip
        results |= {
            f"stage{number}_efficiency_2_workers": share,
            f"stage{number}_communication_share": groups[2].communication_share,
            "gloo_gigabytes_per_sec": groups[2].all_reduce_bytes_per_sec / 1e9,
        }
    columns = ["demo", "1 worker, images/s", "2 workers", "efficiency", "share in averaging", "Gloo, GB/s"]

    paper = paper_params()
    on_paper: list[list[str]] = []
    for number in (1, 2):
        sent = num_bytes(new_stage(number, architecture_of(paper, EMBEDDING_DIM), seed=0))
        results[f"stage{number}_megabytes_a_step"] = sent / 1e6
        alone = arguments.replayed_ms[number - 1] / 1e3
        for how, compute in (("today", arguments.launched_ms[number - 1] / 1e3), ("replayed", alone)):
            for machine in MACHINES:
                seconds = [step_sec(compute if n > 1 else alone, n, machine, sent) for n in NUM_GPUS]
                on_paper.append([f"{'I' * number}, {how}", machine.name, *(f"{alone / it:.2f}" for it in seconds)])
    columns_on_paper = ["Stage", "machines", *map(str, NUM_GPUS)]
    tell("On paper: speed of n GPUs, against n times one alone", columns_on_paper, on_paper, {})
    tell("Two workers share the demo's batch", columns, rows, results)


if __name__ == "__main__":
    main()
