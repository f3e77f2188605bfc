"""What the workers of a training tell each other; torch.distributed, only here. Alone, a process is worker 0 of 1."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Return this worker's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_workers() -> int:
    """Return how many workers train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each parameter's gradient by its mean over the workers, sent as one flat vector."""
    if num_workers() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    means = averaged(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, mean in zip(gradients, means.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def averaged(values: Tensor) -> Tensor:
    """Return the mean of `values` over the workers; `values` itself is overwritten."""
    if num_workers() > 1:
        dist.all_reduce(values)
        values /= num_workers()
    return values


class _DifferentiableMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return averaged(values.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return differentiable_mean(gradients[0])  # itself differentiable: a gradient penalty asks for that


def differentiable_mean(values: Tensor) -> Tensor:
    """Return the mean of `values` over the workers; gradients of every worker's loss flow back to every worker."""
    return _DifferentiableMean.apply(values)  # pyright: ignore[reportReturnType] - untyped


def values_of_all(value: int) -> set[int]:
    """Return the different values that the workers hold."""
    if num_workers() == 1:
        return {value}
    values: list[int] = [0] * num_workers()
    dist.all_gather_object(values, value)
    return set(values)
