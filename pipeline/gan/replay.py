"""A training step as one CUDA graph: a GPU is told once of all its kernels, and then step by step to run them again.

The kernels of a step on 64x64 pictures take less time than a processor needs to launch them one by one. A recording
holds where in memory they read and write, and the numbers that the processor gave them, so that what a step is given is
copied to the same place each time, and a number that changes (the learning rate) has the step recorded anew.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.data.batches import Batch


class _Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    batch: Batch  # read by every replay
    noise: Tensor  # likewise
    told: Tensor  # written by every replay


class Replay:
    """Computes a step the first time, records it at the second, and replays it from then on: the same function."""

    def __init__(self, step: Callable[[Batch, Tensor], Tensor], optimizers: Iterable[torch.optim.Optimizer]):
        """Take what is to be replayed.

        Args:
            step: of a batch and noise of unchanging shapes on the GPU; it draws nothing and reads nothing back.
            optimizers: those that it steps, which count their steps on the GPU.
        """
        self._step = step
        self._optimizers = list(optimizers)
        self._stream = torch.cuda.Stream()  # a GPU records no default stream
        self._is_warm = False
        self._recording: _Recording | None = None

    def forget(self) -> None:
        """Have the next step recorded anew."""
        self._recording = None

    def __call__(self, batch: Batch, noise: Tensor) -> Tensor:
        """Return what the step does, in memory of its own."""
        if not self._is_warm:
            # Whatever is set up once, workspaces and moments, is set up outside a recording, on the stream it will use.
            self._is_warm = True
            return self._compute(batch, noise)
        if self._recording is None:
            self._recording = self._record(batch, noise)
        held = self._recording
        _copy(held.batch, batch)
        held.noise.copy_(noise)
        held.graph.replay()
        return held.told.clone()

    def _compute(self, batch: Batch, noise: Tensor) -> Tensor:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            told = self._step(batch, noise)
        torch.cuda.current_stream().wait_stream(self._stream)
        return told

    def _record(self, batch: Batch, noise: Tensor) -> _Recording:
        """Record a step, which computes nothing yet."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["capturable"] = True
        held_batch, held_noise = _copy_of(batch), noise.clone()
        graph = torch.cuda.CUDAGraph()
        # Of this thread alone: the one that reads a batch ahead may ask for memory meanwhile.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            told = self._step(held_batch, held_noise)
        return _Recording(graph, held_batch, held_noise, told)


def _copy_of(batch: Batch) -> Batch:
    return replace(
        batch,
        real=batch.real.clone(),
        text_embedding=batch.text_embedding.clone(),
        wrong=None if batch.wrong is None else batch.wrong.clone(),
        wrong_text_embedding=batch.wrong_text_embedding.clone(),
        augmentation_draws=batch.augmentation_draws.clone(),
    )


def _copy(target: Batch, source: Batch) -> None:
    target.real.copy_(source.real)
    target.text_embedding.copy_(source.text_embedding)
    if target.wrong is not None and source.wrong is not None:
        target.wrong.copy_(source.wrong)
    target.wrong_text_embedding.copy_(source.wrong_text_embedding)
    target.augmentation_draws.copy_(source.augmentation_draws)
