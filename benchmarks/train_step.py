"""Steps of both stages at the paper's widths: ours against the published PyTorch step, same layers and batch.

`published`  the PyTorch release's step as it is written, on our `paper` networks: nearest-neighbour up-sampling, then a
             3x3 convolution, float32, NCHW in memory, sigmoid and BCELoss, real and fake pictures through D one after
             the other, D's weight gradients computed in G's update too, Adam weight by weight
`float32`    our Trainer with every speed-up, in float32; on a GPU both convolve in TF32, as torch does by default
`native`     the same in the bfloat16 that the device has; precision: auto takes it on GPUs and AMX units alone

Every measurement runs in a process of its own, so that its peak memory is its own, and the three take turns. The share
of the peak is what a step computes, counted by torch, against the rate of a large matrix product in that precision.
`--batch-sizes 32 8` sets the pictures a step of Stage-I and Stage-II, `--repeats` the turns.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, get_args

import torch
import yaml
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import best_rate, tell
from pipeline.allocation import keep_freed_memory
from pipeline.data.batches import Batch
from pipeline.gan.architecture import architecture_of
from pipeline.gan.layers import UpsampleConv
from pipeline.gan.losses import kl_divergence
from pipeline.gan.stages import Stage, new_stage
from pipeline.gan.trainer import Trainer
from pipeline.params import GanParams, Speedup

EMBEDDING_DIM = 1024
BATCH_SIZES = {"cpu": (32, 8), "cuda": (64, 64)}  # of Stage-I and Stage-II
MIN_SEC = 4.0  # that a measurement lasts at least
STEPS_AT_ONCE = {"cpu": 1, "cuda": 20}  # a GPU is then waited for: handed steps for MIN_SEC, it may work for a minute
Result = TypeVar("Result")
Who = Literal["published", "float32", "native"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What one process measures."""

    who: Who
    stage_number: int
    batch_size: int
    device: str


class Measured(NamedTuple):
    """What it found."""

    images_per_sec: float
    flops_per_image: float
    peak_bytes: float


class PublishedStep:
    """The step of the PyTorch release's trainer.py, on the networks of a Stage."""

    def __init__(self, stage: Stage):
        """Set up its two optimisers."""
        self._stage = stage
        for network in stage.modules():
            for layer in network.modules():
                if isinstance(layer, UpsampleConv):
                    layer.transposed = False
        self._bce = nn.BCELoss()
        self._optimizer_d = torch.optim.Adam(stage.discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
        self._optimizer_g = torch.optim.Adam(stage.generator.parameters(), lr=2e-4, betas=(0.5, 0.999))

    def __call__(self, batch: Batch, noise: Tensor) -> None:
        """Update D, then G."""
        g, d, text = self._stage.generator, self._stage.discriminator, batch.text_embedding
        ones, zeros = torch.ones(len(text), device=text.device), torch.zeros(len(text), device=text.device)
        fakes, mu, logvar = self._stage.generate(text, noise)

        d.zero_grad()
        real_features, fake_features = d.image_features(batch.real), d.image_features(fakes.detach())
        real = self._bce(d.logits(real_features, text).sigmoid(), ones)
        wrong = self._bce(d.logits(real_features[:-1], text[1:]).sigmoid(), zeros[1:])
        fake = self._bce(d.logits(fake_features, text).sigmoid(), zeros)
        (real + (fake + wrong) * 0.5).backward()
        self._optimizer_d.step()

        g.zero_grad()
        assert mu is not None and logvar is not None
        loss = self._bce(d.logits(d.image_features(fakes), text).sigmoid(), ones)
        (loss + 2.0 * kl_divergence(mu, logvar)).backward()
        self._optimizer_g.step()


def paper_params() -> GanParams:
    """Return the `paper` preset."""
    path = Path(__file__).parents[1] / "conf" / "gan" / "paper.yaml"
    return GanParams(**yaml.safe_load(path.read_text())["gan"])


def measure(case: Case) -> Measured:
    """Measure one case in this process."""
    gan, device = paper_params(), torch.device(case.device)
    stage = new_stage(case.stage_number, architecture_of(gan, EMBEDDING_DIM), seed=0)
    for network in stage.modules():
        network.to(device)
    draws = torch.Generator().manual_seed(0)
    shape = (case.batch_size, 3, stage.image_size, stage.image_size)
    texts = torch.randn(2, case.batch_size, EMBEDDING_DIM, generator=draws).to(device)
    batch = Batch(
        real=torch.rand(shape, generator=draws).mul(2).sub(1).to(device),
        text_embedding=texts[0],
        wrong=None,
        wrong_text_embedding=texts[1],
        augmentation_draws=torch.zeros(3, case.batch_size, 4),
    )
    noise = torch.randn(case.batch_size, stage.noise_dim, generator=draws).to(device)
    step = PublishedStep(stage)
    if case.who != "published":
        keep_freed_memory()
        batch = replace(batch, real=batch.real.contiguous(memory_format=torch.channels_last))
        autocast = torch.bfloat16 if case.who == "native" else None
        trainer = Trainer(stage, gan, augment=False, accumulation=1, autocast=autocast, speedups=get_args(Speedup))
        trainer.set_learning_rate(2e-4)
        step = trainer.step

    with FlopCounterMode(display=False) as counter:
        step(batch, noise)
    step(batch, noise)  # a GPU records it
    if device.type == "cuda":
        torch.cuda.synchronize()

    def run() -> int:
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < MIN_SEC:
            for _ in range(STEPS_AT_ONCE[device.type]):
                step(batch, noise)
                count += case.batch_size
            if device.type == "cuda":
                torch.cuda.synchronize()
        return count

    rate = best_rate(run, 1)
    peak = torch.cuda.max_memory_reserved() if device.type == "cuda" else resource.getrusage(0).ru_maxrss * 1024
    return Measured(rate, counter.get_total_flops() / case.batch_size, float(peak))


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Return the multiply-adds (counted as two) a second of a large matrix product, as exact as torch convolves."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32  # 19 bits, by default for the latter alone
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def run() -> int:
        for _ in range(4):
            a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        return 4 * 2 * size**3

    return best_rate(run, 5)


def apart(work: Callable[..., Result], *arguments: object) -> Result:
    """Run in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def main() -> None:
    """Measure and print."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", nargs=2, type=int, default=BATCH_SIZES[device])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    if device == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    who: tuple[Who, ...] = ("published", "float32", "native") if has_bfloat16 else ("published", "float32")
    dtypes: dict[Who, torch.dtype] = {"float32": torch.float32, "native": torch.bfloat16}
    rows: list[list[str]] = []
    results: dict[str, float | str] = {}
    for number, batch_size in zip((1, 2), arguments.batch_sizes, strict=True):
        found: dict[Who, Measured] = {}
        for _ in range(arguments.repeats):
            for name in who:
                case = Case(who=name, stage_number=number, batch_size=batch_size, device=device)
                measured = apart(measure, case)
                print(f"{case}: {measured.images_per_sec:.2f} images/s", file=sys.stderr)  # it takes a while
                found[name] = max(found.get(name, Measured(0, 0, 0)), measured)
        published = found["published"]
        for name, measured in found.items():
            ratio = measured.images_per_sec / published.images_per_sec
            title = f"Stage-{'I' * number}, {batch_size} a step"
            row = [title, name, f"{measured.images_per_sec:.2f}", f"{ratio:.2f}x"]
            share = 0.0
            if name != "published":
                share = measured.images_per_sec * measured.flops_per_image / apart(matmul_rate, device, dtypes[name])
                if name == "float32":
                    results[f"stage{number}_speedup_float32"] = ratio
                results[f"stage{number}_speedup"] = ratio
                results[f"stage{number}_share_of_peak"] = share
            row += [f"{measured.flops_per_image / 1e9:.1f}", f"{share:.2f}" if share else ""]
            rows.append([*row, f"{measured.peak_bytes / 2**30:.2f}"])
    results["device"] = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
    columns = ["", "", "images/s", "speed-up", "GFLOP an image", "share of peak", "peak GiB"]
    tell("A training step at the paper's widths", columns, rows, results)


if __name__ == "__main__":
    main()
