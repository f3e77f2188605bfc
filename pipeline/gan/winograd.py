"""Convolutions in fewer multiplications, for processors: Winograd's minimal filtering, two outputs a tile and axis.

Winograd, "Arithmetic Complexity of Computations", SIAM 1980; Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks", CVPR 2016. Sums of neighbouring pixels meet sums of a kernel's weights in plain matrix products, and sums of
the products are the outputs. Per axis and two outputs, an up-sampling 3x3 convolution takes 3 products (6 as written,
4 in its transposed form), a 3x3 convolution 4 (instead of 6), a 4x4 one of stride 2 twice 3 (instead of 8).

The sums cost memory traffic, which wide layers win back and narrow ones do not; see `pays`. Everything here lies in
memory pixel by pixel (channels_last).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Matrix = Sequence[Sequence[float]]

# Tiles that are worked on at once: enough for full speed, few enough to keep what the sums take small.
_TILES = 2048


class Algorithm(NamedTuple):
    """What is summed along one axis; along the other it is the same.

    Attributes:
        stride: pixels from one tile to the next.
        inputs: for each phase, (products, taps): what is taken of a tile's pixels, the first of which lies one before
            the tile. A convolution of stride 2 has two phases: the pixels that even and odd weights meet.
        kernel: for each phase, (products, weights).
        outputs: (2, products).
    """

    stride: int
    inputs: Sequence[Matrix]
    kernel: Sequence[Matrix]
    outputs: Matrix

    @property
    def num_products(self) -> int:
        """How many there are for a tile."""
        return len(self.inputs[0])


UPSAMPLE = Algorithm(
    stride=1,
    inputs=[[[1, -1, 0], [0, 1, 0], [0, -1, 1]]],
    kernel=[[[1, 0, 0], [1, 1, 1], [0, 0, 1]]],
    outputs=[[1, 1, 0], [0, 1, 1]],
)
CONV_3X3 = Algorithm(
    stride=2,
    inputs=[[[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]],
    kernel=[[[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]],
    outputs=[[1, 1, 1, 0], [0, 1, -1, -1]],
)
CONV_4X4_STRIDE_2 = Algorithm(
    stride=4,
    inputs=[
        [[1, 0, -1, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, -1, 0, 1, 0]],
        [[0, 1, 0, -1, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, -1, 0, 1]],
    ],
    kernel=[[[1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 1, 0]], [[0, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1]]],
    outputs=[[1, 1, 0], [0, 1, 1]],
)


# Channels in and out, and tiles, from which the sums cost less than they spare (measured on AVX2, every algorithm).
_WIDE = 128
_MANY = 64


def pays(x: Tensor, weight: Tensor, algorithm: Algorithm) -> bool:
    """Tell whether `conv_winograd` is faster than torch's own convolution: in full precision, on a processor.

    In half precision the products take so little time that the sums are most of it; so it is on a GPU.
    """
    n, _, height, width = x.shape
    return (
        x.device.type == "cpu"
        and min(weight.shape[:2]) >= _WIDE
        and n * height * width >= _MANY * algorithm.stride**2
        and height % algorithm.stride == width % algorithm.stride == 0
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
    )


def conv_winograd(x: Tensor, weight: Tensor, algorithm: Algorithm) -> Tensor:
    """Convolve with padding 1, by an algorithm.

    Args:
        x: (N, I, H, W); H and W are multiples of the algorithm's stride.
        weight: (O, I, k, k).
        algorithm: UPSAMPLE for k = 3 after nearest-neighbour x2, CONV_3X3, or CONV_4X4_STRIDE_2.

    Returns:
        (N, O, 2 H / stride, 2 W / stride). It can be differentiated once.
    """
    result = _Winograd.apply(x, weight, algorithm)
    assert isinstance(result, Tensor)
    return result


class _Winograd(torch.autograd.Function):
    """Matrix products of sums; the sums and their adjoints are below."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, algorithm: Algorithm) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(x, weight)
        ctx.algorithm = algorithm
        pixels = x.permute(0, 2, 3, 1)  # (N, H, W, I)
        rows, columns, num_at_once = _tiles(pixels, algorithm)
        kernel = _sums_of_weights(weight, algorithm).transpose(1, 2)
        shape = (len(x), len(weight), 2 * rows, 2 * columns)
        result = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        outputs = result.permute(0, 2, 3, 1).view(len(x), rows, 2, columns, 2, len(weight))
        for some, target in zip(pixels.split(num_at_once), outputs.split(num_at_once), strict=True):
            _outputs_of_products(torch.bmm(_sums_of_pixels(some, algorithm), kernel), algorithm, target)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore
        x, weight = ctx.saved_tensors
        algorithm: Algorithm = ctx.algorithm
        pixels = x.permute(0, 2, 3, 1)
        rows, columns, num_at_once = _tiles(pixels, algorithm)
        outputs = gradient.permute(0, 2, 3, 1).reshape(len(x), rows, 2, columns, 2, len(weight))
        kernel = _sums_of_weights(weight, algorithm)
        to_pixels = torch.empty_like(pixels) if ctx.needs_input_grad[0] else None
        to_kernel: Tensor | None = None
        for start in range(0, len(x), num_at_once):
            some = slice(start, start + num_at_once)
            products = _products_of_outputs(outputs[some], algorithm)
            if to_pixels is not None:
                to_pixels[some] = _pixels_of_sums(torch.bmm(products, kernel), algorithm, pixels[some].shape)
            if ctx.needs_input_grad[1]:
                share = torch.bmm(products.transpose(1, 2), _sums_of_pixels(pixels[some], algorithm))
                to_kernel = share if to_kernel is None else to_kernel.add_(share)
        return (
            None if to_pixels is None else to_pixels.permute(0, 3, 1, 2),
            None if to_kernel is None else _weights_of_sums(to_kernel, algorithm, weight.shape),
            None,
        )


def _tiles(pixels: Tensor, algorithm: Algorithm) -> tuple[int, int, int]:
    """(n, H, W, I) -> rows and columns of tiles, and how many pictures are worked on at once."""
    rows, columns = (size // algorithm.stride for size in pixels.shape[1:3])
    return rows, columns, max(1, _TILES // (rows * columns))


def _sums_of_pixels(pixels: Tensor, algorithm: Algorithm) -> Tensor:
    """(n, H, W, I) -> (products, n * tiles, phases * I), products and phases of both axes."""
    n, height, _, dim = pixels.shape
    rows, columns, _ = _tiles(pixels, algorithm)
    q, p = algorithm.num_products, len(algorithm.inputs)
    padded = F.pad(pixels, (0, 0, 1, 1, 1, 1))
    across = pixels.new_empty((q, n, height + 2, columns, p, dim))
    both = pixels.new_empty((q, q, n, rows, columns, p, p, dim))
    for phase, matrix in enumerate(algorithm.inputs):
        _sum(matrix, _taps(padded, 2, columns, algorithm), [each[..., phase, :] for each in across])
    for phase, matrix in enumerate(algorithm.inputs):
        _sum(matrix, _taps(across, 2, rows, algorithm), [both[:, k, ..., phase, :, :] for k in range(q)])
    return both.view(q * q, n * rows * columns, p * p * dim)


def _pixels_of_sums(sums: Tensor, algorithm: Algorithm, shape: torch.Size) -> Tensor:
    """Return the adjoint of `_sums_of_pixels`."""
    n, height, width, dim = shape
    rows, columns = height // algorithm.stride, width // algorithm.stride
    q, p = algorithm.num_products, len(algorithm.inputs)
    both = sums.view(q, q, n, rows, columns, p, p, dim)
    across = sums.new_zeros((q, n, height + 2, columns, p, dim))
    padded = sums.new_zeros((n, height + 2, width + 2, dim))
    for phase, matrix in enumerate(algorithm.inputs):
        _add(matrix, [both[:, k, ..., phase, :, :] for k in range(q)], _taps(across, 2, rows, algorithm))
    for phase, matrix in enumerate(algorithm.inputs):
        _add(matrix, [each[..., phase, :] for each in across], _taps(padded, 2, columns, algorithm))
    return padded[:, 1:-1, 1:-1]


def _taps(pixels: Tensor, dim: int, num_tiles: int, algorithm: Algorithm) -> list[Tensor]:
    """Return a view for each tap of the tiles along `dim`, which is padded by one."""
    last = algorithm.stride * (num_tiles - 1)
    num_taps = len(algorithm.inputs[0][0])
    index = (slice(None),) * dim
    return [pixels[*index, tap : tap + last + 1 : algorithm.stride] for tap in range(num_taps)]


def _sums_of_weights(weight: Tensor, algorithm: Algorithm) -> Tensor:
    """(O, I, k, k) -> (products, O, phases * I), products and phases of both axes, as `_sums_of_pixels` has them."""
    q, p = algorithm.num_products, len(algorithm.kernel)
    taps = weight.permute(3, 2, 0, 1)  # (k across, k down, O, I)
    out_dim, in_dim = taps.shape[2:]
    across = weight.new_empty((q, p, taps.shape[1], out_dim, in_dim))
    both = weight.new_empty((q, q, out_dim, p, p, in_dim))
    for phase, matrix in enumerate(algorithm.kernel):
        _sum(matrix, taps.unbind(0), across[:, phase].unbind(0))
    for phase, matrix in enumerate(algorithm.kernel):
        targets = [both[:, k, :, phase].transpose(1, 2) for k in range(q)]  # each (q, p, O, I)
        _sum(matrix, across.unbind(2), targets)
    return both.view(q * q, out_dim, p * p * in_dim)


def _weights_of_sums(sums: Tensor, algorithm: Algorithm, shape: torch.Size) -> Tensor:
    """Return the adjoint of `_sums_of_weights`."""
    q, p = algorithm.num_products, len(algorithm.kernel)
    out_dim, in_dim, size, _ = shape
    both = sums.view(q, q, out_dim, p, p, in_dim)
    across = sums.new_zeros((q, p, size, out_dim, in_dim))
    taps = sums.new_zeros((size, size, out_dim, in_dim))
    for phase, matrix in enumerate(algorithm.kernel):
        _add(matrix, [both[:, k, :, phase].transpose(1, 2) for k in range(q)], across.unbind(2))
    for phase, matrix in enumerate(algorithm.kernel):
        _add(matrix, across[:, phase].unbind(0), taps.unbind(0))
    return taps.permute(2, 3, 1, 0)


def _outputs_of_products(products: Tensor, algorithm: Algorithm, target: Tensor) -> None:
    """(products, n * tiles, O) -> target, (n, tiles down, 2, tiles across, 2, O)."""
    q = algorithm.num_products
    n, rows, _, columns, _, dim = target.shape
    both = products.view(q, q, n, rows, columns, dim)
    across = products.new_empty((2, q, n, rows, columns, dim))
    _sum(algorithm.outputs, both.unbind(0), across.unbind(0))
    for half, some in enumerate(across):
        _sum(algorithm.outputs, some.unbind(0), target[:, :, :, :, half].unbind(2))


def _products_of_outputs(outputs: Tensor, algorithm: Algorithm) -> Tensor:
    """Return the adjoint of `_outputs_of_products`."""
    q = algorithm.num_products
    n, rows, _, columns, _, dim = outputs.shape
    adjoint = list(zip(*algorithm.outputs, strict=True))
    across = outputs.new_empty((q, n, rows, 2, columns, dim))
    both = outputs.new_empty((q, q, n, rows, columns, dim))
    _sum(adjoint, outputs.unbind(4), across.unbind(0))
    _sum(adjoint, across.unbind(3), both.unbind(1))
    return both.view(q * q, n * rows * columns, dim)


def _sum(matrix: Matrix, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Write the matrix's product with the sources to the targets."""
    for row, target in zip(matrix, targets, strict=True):
        (first, factor), *others = [(source, factor) for source, factor in zip(sources, row, strict=True) if factor]
        if factor == 1 and others:
            second, second_factor = others.pop(0)
            torch.add(first, second, alpha=second_factor, out=target)
        else:
            torch.mul(first, factor, out=target)
        for source, other_factor in others:
            target.add_(source, alpha=other_factor)


def _add(matrix: Matrix, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Add the transposed matrix's product with the sources to the targets, which may overlap."""
    for row, source in zip(matrix, sources, strict=True):
        for factor, target in zip(row, targets, strict=True):
            if factor:
                target.add_(source, alpha=factor)
