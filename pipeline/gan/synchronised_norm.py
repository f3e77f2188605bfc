"""BatchNorm over the batch of all workers, so that a training does not depend on how many share a batch.

torch's own SyncBatchNorm wants GPUs; this one is plain torch around one all-reduce of 2 C numbers, and works on both.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.gan.workers import differentiable_mean, num_workers


class SynchronisedNorm(nn.Module):
    """Takes the place of a BatchNorm1d or BatchNorm2d, with its parameters and buffers under the same names."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        """Take over a layer."""
        super().__init__()
        self.eps, self.momentum = norm.eps, norm.momentum or 0.0
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) or (N, C, H, W) -> the same shape."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        dims = (0, *range(2, x.dim()))
        shape = (1, -1, *(1 for _ in range(2, x.dim())))
        wide = x.to(self.weight.dtype)
        own_var, own_mean = torch.var_mean(wide, dims, correction=0)
        # Of equal shares: the mean of the means and of the squares. In float64, for the difference of two squares is
        # taken, which in float32 can fall below zero.
        own_var, own_mean = own_var.double(), own_mean.double()
        mean, square = differentiable_mean(torch.stack((own_mean, own_var + own_mean.square()))).unbind()
        mean, var = mean.to(wide.dtype), (square - mean.square()).to(wide.dtype)
        self._track(mean.detach(), var.detach(), wide.numel() // len(mean) * num_workers())
        scale = self.weight * torch.rsqrt(var + self.eps)
        return (wide * scale.view(shape) + (self.bias - mean * scale).view(shape)).to(x.dtype)

    def _track(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the running statistics, as BatchNorm does, with the unbiased variance."""
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * (count / max(count - 1, 1)), self.momentum)
        self.num_batches_tracked += 1


def synchronise(module: nn.Module) -> None:
    """Put a SynchronisedNorm in the place of every BatchNorm below `module`; after its weights are initialised."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, SynchronisedNorm(child))
        else:
            synchronise(child)
