"""BatchNorm of all workers: alone it is torch's; of two workers with half a batch each it is torch's of the whole."""

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.gan.layers import initialise
from pipeline.gan.losses import gradient_penalty
from pipeline.gan.synchronised_norm import SynchronisedNorm, synchronise
from pipeline.gan.workers import average_gradients

BATCH_SIZE, NUM_WORKERS = 8, 2


def random_double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def norm_of(num_dims: int) -> nn.BatchNorm1d | nn.BatchNorm2d:
    norm = (nn.BatchNorm1d if num_dims == 2 else nn.BatchNorm2d)(5).double()
    with torch.no_grad():
        norm.weight.copy_(random_double(5, seed=1))
        norm.bias.copy_(random_double(5, seed=2))
    return norm


def both(num_dims: int) -> tuple[nn.Module, nn.Module]:
    """Return torch's layer and ours, of equal parameters."""
    plain, ours = norm_of(num_dims), nn.Sequential(norm_of(num_dims))
    synchronise(ours)
    assert isinstance(ours[0], SynchronisedNorm)
    return plain, ours[0]


def inputs_of(num_dims: int, seed: int = 3) -> Tensor:
    shape = (BATCH_SIZE, 5) if num_dims == 2 else (BATCH_SIZE, 5, 4, 3)
    return (3 * random_double(*shape, seed=seed) + 7).requires_grad_()


@pytest.mark.parametrize("num_dims", [2, 4])
def test_alone_it_gives_batchnorms_output_gradients_and_running_statistics(num_dims: int) -> None:
    plain, ours = both(num_dims)
    for seed in (3, 4, 5):
        told: list[tuple[Tensor, ...]] = []
        for norm in (plain, ours):
            x = inputs_of(num_dims, seed)
            output = norm(x)
            upstream = random_double(*output.shape, seed=6)
            told.append((output, *torch.autograd.grad(output, (x, *norm.parameters()), upstream)))
        torch.testing.assert_close(told[1], told[0], rtol=1e-10, atol=1e-12)
    assert [name for name, _ in ours.named_buffers()] == ["running_mean", "running_var", "num_batches_tracked"]
    torch.testing.assert_close(dict(ours.named_buffers()), dict(plain.named_buffers()), rtol=1e-12, atol=0)
    assert ours.state_dict()["num_batches_tracked"] == 3


@pytest.mark.parametrize("num_dims", [2, 4])
def test_in_evaluation_it_is_batchnorm_and_moves_nothing(num_dims: int) -> None:
    plain, ours = both(num_dims)
    for norm in (plain, ours):
        norm(inputs_of(num_dims))
        norm.eval()
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    x = inputs_of(num_dims, seed=4)
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_its_state_is_that_of_batchnorm() -> None:
    plain, ours = both(4)
    ours(inputs_of(4))
    assert list(ours.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(ours.state_dict())
    x = inputs_of(4, seed=4)
    assert torch.equal(plain.eval()(x), ours.eval()(x))


def test_every_batchnorm_is_replaced_with_the_parameters_it_had() -> None:
    network = make_network()
    before = dict(network.named_parameters())
    synchronise(network)
    kinds = [type(layer) for layer in network.modules() if "Norm" in type(layer).__name__]
    assert kinds == [SynchronisedNorm, SynchronisedNorm]
    assert all(before[name] is parameter for name, parameter in network.named_parameters())
    assert before.keys() == dict(network.named_parameters()).keys()


def test_it_keeps_channels_last_and_the_dtype_of_its_input() -> None:
    norm = both(4)[1].float()
    x = inputs_of(4).detach().to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    output = norm(x)
    assert output.dtype == torch.bfloat16 and output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output.float(), norm(x.float()), rtol=0.01, atol=0.01)


def make_network() -> nn.Sequential:
    """Return a network in which one normalisation follows another: (N, 6) to (N, 3, 4, 4)."""
    network = nn.Sequential(
        nn.Linear(6, 32),
        nn.BatchNorm1d(32),
        nn.LeakyReLU(0.2),
        nn.Unflatten(1, (2, 4, 4)),
        nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)),
        nn.Tanh(),
    )
    initialise(network, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight.mul_(10)
    return network.double()


def told_by(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return what one worker gets out of a network: the rows of its share, and what is averaged over the workers."""
    x.requires_grad_()
    output = network(x)
    # A share's loss is no mean of rows of equal weight: every worker's loss pulls at every worker's statistics.
    (output.square().sum((1, 2, 3)) * (1 + x.detach()[:, 0].exp())).mean().backward()
    assert x.grad is not None
    told = {"output": output.detach(), "x_grad": x.grad.clone()}
    average_gradients(network.parameters())
    told |= {f"grad.{name}": take_grad(parameter) for name, parameter in network.named_parameters()}
    told |= {f"buffer.{name}": buffer.clone() for name, buffer in network.named_buffers()}
    penalty = gradient_penalty(lambda images, text: network(images).square().sum((1, 2, 3)), x, x, "r1")
    penalty.backward()
    average_gradients(network.parameters())
    told |= {f"penalty_grad.{name}": take_grad(parameter) for name, parameter in network.named_parameters()}
    return told


def take_grad(parameter: nn.Parameter) -> Tensor:
    grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    parameter.grad = None
    return grad


def nearly_constant(rank: int) -> Tensor:
    """Return float32 values far from zero that differ little: within a share not at all, between the two by 0.01."""
    return torch.linspace(100, 1000, 64).expand(4, -1) + 0.01 * rank


def _work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    meeting = (folder / "meeting").as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=NUM_WORKERS)
    network = make_network()
    synchronise(network)
    told = told_by(network, random_double(BATCH_SIZE, 6, seed=9).chunk(NUM_WORKERS)[rank].clone())
    constant = nn.Sequential(nn.BatchNorm1d(64))
    synchronise(constant)
    told |= {"constant_output": constant(nearly_constant(rank)).detach()}
    told |= {f"constant.{name}": buffer for name, buffer in constant.named_buffers()}
    save_file(told, folder / f"worker_{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def told_by_workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """Return what two processes got out of the network with half of the batch each."""
    folder = tmp_path_factory.mktemp("workers")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(rank, folder)) for rank in range(NUM_WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert [worker.exitcode for worker in workers] == [0] * NUM_WORKERS
    return [load_file(folder / f"worker_{rank}.safetensors") for rank in range(NUM_WORKERS)]


@pytest.fixture(scope="module")
def told_by_one() -> dict[str, Tensor]:
    """Return the same of torch's BatchNorm and the whole batch."""
    return told_by(make_network(), random_double(BATCH_SIZE, 6, seed=9))


def test_two_halves_are_normalised_as_the_whole_batch(
    told_by_workers: list[dict[str, Tensor]], told_by_one: dict[str, Tensor]
) -> None:
    halves = torch.cat([told["output"] for told in told_by_workers])
    torch.testing.assert_close(halves, told_by_one["output"], rtol=1e-9, atol=1e-10)


def test_gradients_of_inputs_are_those_of_the_whole_batch(
    told_by_workers: list[dict[str, Tensor]], told_by_one: dict[str, Tensor]
) -> None:
    of_inputs = torch.cat([told["x_grad"] for told in told_by_workers]) / NUM_WORKERS  # a share's loss is a mean
    torch.testing.assert_close(of_inputs, told_by_one["x_grad"], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("what", "rtol", "atol"),
    [
        ("grad.", 1e-8, 1e-10),
        ("penalty_grad.", 1e-8, 1e-9),  # of a gradient penalty: the second derivative flows between workers too
        ("buffer.", 1e-10, 1e-12),
    ],
)
def test_gradients_and_running_statistics_of_two_halves_are_those_of_the_whole_batch(
    what: str, rtol: float, atol: float, told_by_workers: list[dict[str, Tensor]], told_by_one: dict[str, Tensor]
) -> None:
    names = [name for name in told_by_one if name.startswith(what)]
    assert names
    for name in names:
        for told in told_by_workers:
            torch.testing.assert_close(told[name], told_by_one[name], rtol=rtol, atol=atol)


def test_shares_that_are_nearly_constant_have_the_variance_between_them(
    told_by_workers: list[dict[str, Tensor]],
) -> None:
    """Far from zero, the difference of two squares is below the rounding of float32."""
    whole = torch.cat([nearly_constant(rank) for rank in range(NUM_WORKERS)]).double()
    norm = nn.BatchNorm1d(64).double()
    norm(whole)
    for told in told_by_workers:
        assert torch.isfinite(told["constant_output"]).all()
        torch.testing.assert_close(told["constant.0.running_var"].double(), norm.running_var, rtol=1e-6, atol=0)
