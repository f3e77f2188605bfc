"""What a training step needs of memory, told before it is run: a batch that cannot fit is refused with one that can.

The forward passes of a step run on torch's `meta` device, where tensors have a size but no values, for four and eight
pictures: what autograd keeps for the backward pass is a line in the number of pictures.

Left out is what is neither the networks' nor the step's: the workspaces of convolutions, the runtime's own memory, and
what an allocator loses between blocks. On a processor the peak was 1.2 to 1.6 times the estimate, on a GPU 1.1 to 1.4,
for both stages at their full width. So what is refused would not have fitted; what passes may still be tight.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import saved_tensors_hooks


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMemory:
    """The peak of one worker's step in bytes, a line in the number of pictures it takes at a time."""

    fixed: int
    per_image: int  # above 0

    def total(self, num_images: int) -> int:
        """Return what a step of so many pictures needs."""
        return self.fixed + self.per_image * num_images

    def largest_batch(self, free: int) -> int:
        """Return how many pictures fit; 0 if not even one does."""
        return max(0, (free - self.fixed) // self.per_image)


def step_memory(
    trained: Iterable[nn.Module],
    frozen: Iterable[nn.Module],
    phases: Sequence[Callable[[int], Tensor]],
    *,
    batch_bytes_per_image: int,
    bfloat16: bool,
) -> StepMemory:
    """Estimate the peak of a training step with Adam.

    That is: weights, gradients and Adam's two moments of what is trained; weights of what is frozen; the batch; and, of
    the phase that needs most, what autograd keeps and one gradient as large as the largest tensor that it keeps.

    Args:
        trained: networks on the meta device, each with an optimiser of its own.
        frozen: likewise, without gradients; running means of the weights, too.
        phases: each runs the forward passes up to one update for so many pictures with these networks, and returns the
            loss. What another phase has made and is still held belongs to it: G's graph while D is updated.
        batch_bytes_per_image: of a picture of the batch, with its texts and noise.
        bfloat16: whether the step runs under autocast, which meta tensors do not show: what is kept takes half, and so
            does a second copy of each weight.
    """
    trained, frozen = list(trained), list(frozen)
    weights = sum(_bytes_of(network.parameters()) for network in trained)
    constants = sum(_bytes_of(network.buffers()) for network in trained)
    constants += sum(_bytes_of((*network.parameters(), *network.buffers())) for network in frozen)
    held = [tensor for network in (*trained, *frozen) for tensor in (*network.parameters(), *network.buffers())]
    at_four, at_eight = (max(_peak(phase, num_images, held) for phase in phases) for num_images in (4, 8))
    if bfloat16:
        at_four, at_eight = at_four // 2, at_eight // 2
        constants += weights // 2
    per_image = (at_eight - at_four) // 4
    return StepMemory(
        fixed=4 * weights + constants + at_four - 4 * per_image, per_image=per_image + batch_bytes_per_image
    )


def saved_sizes(forward: Callable[[], Tensor], held: Iterable[Tensor] = ()) -> list[int]:
    """Return the bytes of each block of memory that autograd keeps for the backward pass, less those of `held`."""
    kept: dict[int, UntypedStorage] = {}  # by identity: the storages stay alive, so no number is given twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[id(storage)] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward()
    assert loss.requires_grad, "a phase returns the loss of what it trains"
    for tensor in held:
        kept.pop(id(tensor.untyped_storage()), None)
    return [storage.nbytes() for storage in kept.values()]


def _peak(phase: Callable[[int], Tensor], num_images: int, held: Iterable[Tensor]) -> int:
    sizes = saved_sizes(lambda: phase(num_images), held)
    return sum(sizes) + max(sizes, default=0)


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def free_bytes(device: torch.device) -> int | None:
    """Return what a process may still take of a device's memory, or None where that cannot be told.

    Ask before the networks are on the device: a step's need holds them.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory(Path("/proc"), Path("/sys/fs/cgroup")) if device.type == "cpu" else None


def free_memory(proc_dir: Path, cgroup_dir: Path) -> int | None:
    """Return what Linux has available, or what a container's limit leaves where that is less; None elsewhere."""
    try:
        lines = (proc_dir / "meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return min([available, *_left_by_limits(proc_dir / "self" / "cgroup", cgroup_dir)])


def _left_by_limits(own_path: Path, cgroup_dir: Path) -> Iterator[int]:
    """Yield limit less use of each control group (version 2) around this process that has a limit."""
    lines = own_path.read_text().splitlines() if own_path.is_file() else []
    for own in (line.removeprefix("0::/") for line in lines if line.startswith("0::/")):
        for folder in (cgroup_dir / own, *(cgroup_dir / own).parents):
            limit_path = folder / "memory.max"
            if limit_path.is_file() and (limit := limit_path.read_text().strip()) != "max":
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                used = int((folder / "memory.current").read_text()) - int(stat["inactive_file"])  # a cache gives way
                yield max(0, int(limit) - used)


def require_fitting(need: StepMemory, batch_per_worker: int, free: int | None, key: str) -> None:
    """Refuse a batch that a worker has no memory for.

    Args:
        need: of one worker's step.
        batch_per_worker: pictures at a time.
        free: what one worker may take, its share where several are on one machine; None: cannot be told, not checked.
        key: the dotted name of the batch's size, say train_stage2.batch_size.

    Raises:
        ValueError: it does not fit.
    """
    if free is None or need.total(batch_per_worker) <= free:
        return
    fitting = need.largest_batch(free)
    remedy = f"{fitting} would fit: lower it, or raise accumulation or hardware.num_workers"
    raise ValueError(
        f"{key} is too large: a worker's step of {batch_per_worker} pictures needs about "
        f"{need.total(batch_per_worker) / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
        + (remedy if fitting >= 2 else "not even 2 would fit: lower gan.generator_dim and gan.discriminator_dim")
    )
