"""The four networks: published sizes, shapes and ranges, gradients, snapshots, precision and memory format."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from pipeline.gan.layers import UpsampleConv, initialise
from pipeline.gan.losses import discriminator_loss, generator_loss, kl_divergence
from pipeline.gan.networks import (
    GeneratorOutput,
    Stage1Discriminator,
    Stage1Generator,
    Stage2Discriminator,
    Stage2Generator,
)

EMBEDDING_DIM, CONDITION_DIM, Z_DIM = 12, 6, 5
GENERATORS = ["Stage1Generator", "Stage2Generator"]
DISCRIMINATORS = ["Stage1Discriminator", "Stage2Discriminator"]
NETWORKS = GENERATORS + DISCRIMINATORS
NARROW: dict[str, Callable[[], nn.Module]] = {
    "Stage1Generator": lambda: Stage1Generator(EMBEDDING_DIM, CONDITION_DIM, Z_DIM, gf_dim=4),
    "Stage1Discriminator": lambda: Stage1Discriminator(EMBEDDING_DIM, CONDITION_DIM, df_dim=4),
    "Stage2Generator": lambda: Stage2Generator(EMBEDDING_DIM, CONDITION_DIM, gf_dim=8, num_residual_blocks=1),
    "Stage2Discriminator": lambda: Stage2Discriminator(EMBEDDING_DIM, CONDITION_DIM, df_dim=2),
}


class Inputs(NamedTuple):
    text_embedding: torch.Tensor
    z: torch.Tensor
    eps: torch.Tensor
    small_images: torch.Tensor
    large_images: torch.Tensor


def make_inputs(
    num_images: int = 3,
    embedding_dim: int = EMBEDDING_DIM,
    condition_dim: int = CONDITION_DIM,
    z_dim: int = Z_DIM,
    device: str = "cpu",
) -> Inputs:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(num_images, *shape, generator=generator).to(device)

    images = [draw(3, size, size).clamp(-1, 1) for size in (64, 256)]
    return Inputs(draw(embedding_dim), draw(z_dim), draw(condition_dim), *images)


def make_network(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    network = NARROW[name]()
    initialise(network, torch.Generator().manual_seed(0))
    # Weights of sd 0.02 leave a narrow, untrained network nearly constant; spread them so that every path matters.
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight.mul_(10)
    return network.to(dtype)


def run(network: nn.Module, inputs: Inputs) -> torch.Tensor:
    """Images of a generator, logits of a discriminator."""
    if isinstance(network, Stage1Generator):
        return network(inputs.text_embedding, inputs.z, inputs.eps).images
    if isinstance(network, Stage2Generator):
        return network(inputs.small_images, inputs.text_embedding, inputs.eps).images
    images = inputs.small_images if isinstance(network, Stage1Discriminator) else inputs.large_images
    return network(images, inputs.text_embedding)


@pytest.mark.parametrize(
    ("network_class", "num_parameters"),
    [
        (Stage1Generator, 14_264_192),
        (Stage1Discriminator, 4_029_824),
        (Stage2Generator, 26_290_080),
        (Stage2Discriminator, 48_603_520),
    ],
)
def test_parameter_count_is_the_published_one(network_class: type[nn.Module], num_parameters: int) -> None:
    with torch.device("meta"):
        network = network_class()
    assert sum(parameter.numel() for parameter in network.parameters()) == num_parameters


@pytest.mark.parametrize(
    ("network_class", "shape"),
    [
        (Stage1Generator, (2, 3, 64, 64)),
        (Stage1Discriminator, (2,)),
        (Stage2Generator, (2, 3, 256, 256)),
        (Stage2Discriminator, (2,)),
    ],
)
def test_step_at_full_width_has_its_shape_and_reads_no_value_back(
    network_class: type[nn.Module], shape: tuple[int, ...]
) -> None:
    """Meta tensors have no values: anything that would synchronise with the device raises here."""
    with torch.device("meta"):
        network = network_class()
        output = run(network, make_inputs(2, 1024, 128, 100, device="meta"))
        output.mean().backward()
    assert output.shape == shape
    assert all(parameter.grad is not None for parameter in network.parameters())


# The published layers, one word each, with D's forgotten activation: "[ ... ]" adds its input to its output.
BOTTLENECK, BOTTLENECK_D = "[ c1 bn relu c3 bn relu c3 bn ] relu", "[ c1 bn lrelu c3 bn lrelu c3 bn ] lrelu"
STAGE1_GENERATOR = f"fc bn view {BOTTLENECK} up bn {BOTTLENECK} up bn relu up bn relu up tanh"
STAGE1_DISCRIMINATOR = f"c4s2 lrelu c4s2 bn lrelu c4s2 bn lrelu c4s2 bn {BOTTLENECK_D}"
STAGE2_ENCODER = "c3 relu c4s2 bn relu c4s2 bn relu"
STAGE2_DECODER = "c3 bn relu [ c3 bn relu c3 bn ] relu" + " up bn relu" * 4 + " c3 tanh"
STAGE2_DISCRIMINATOR = "c4s2 lrelu" + " c4s2 bn lrelu" * 5 + f" c1 bn lrelu c1 bn {BOTTLENECK_D}"


def follow(layers: str, x: torch.Tensor, parameters: Iterator[torch.Tensor]) -> torch.Tensor:
    """Written out with torch.nn.functional, the weights taken in their order of definition."""
    kept = x
    for layer in layers.split():
        match layer:
            case "fc":
                x = F.linear(x, next(parameters), next(parameters))
            case "view":
                x = x.reshape(len(x), 4, 4, -1).movedim(3, 1)
            case "c1" | "c3" | "c4" | "c4s2":
                padding = {"c1": 0, "c3": 1, "c4": 0, "c4s2": 1}[layer]
                x = F.conv2d(x, next(parameters), stride=2 if layer == "c4s2" else 1, padding=padding)
            case "up":
                doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                x = F.conv2d(doubled, next(parameters), padding=1)
            case "bn":
                dims = [0, 2, 3][: x.dim() - 1]
                scaled = (x - x.mean(dims, keepdim=True)) / (x.var(dims, correction=0, keepdim=True) + 1e-5).sqrt()
                gamma, beta = (next(parameters).reshape(-1, *[1] * (x.dim() - 2)) for _ in range(2))
                x = gamma * scaled + beta
            case "relu":
                x = x.clamp(min=0)
            case "lrelu":
                x = torch.where(x > 0, x, 0.2 * x)
            case "tanh":
                x = x.tanh()
            case "[":
                kept = x
            case "]":
                x = x + kept
            case _:
                raise AssertionError(layer)
    return x


def tile(code: torch.Tensor, size: int) -> torch.Tensor:
    return code[:, :, None, None].repeat(1, 1, size, size)


def follow_generator(name: str, inputs: Inputs, parameters: Iterator[torch.Tensor]) -> torch.Tensor:
    mu, logvar = follow("fc", inputs.text_embedding, parameters).chunk(2, dim=1)
    c = mu + (logvar / 2).exp() * inputs.eps
    if name == "Stage1Generator":
        return follow(STAGE1_GENERATOR, torch.cat((c, inputs.z), 1), parameters)
    encoded = follow(STAGE2_ENCODER, inputs.small_images, parameters)
    return follow(STAGE2_DECODER, torch.cat((encoded, tile(c, 16)), 1), parameters)


def follow_discriminator(name: str, inputs: Inputs, parameters: Iterator[torch.Tensor]) -> torch.Tensor:
    if name == "Stage1Discriminator":
        features = follow(STAGE1_DISCRIMINATOR, inputs.small_images, parameters)
    else:
        features = follow(STAGE2_DISCRIMINATOR, inputs.large_images, parameters)
    text = follow("fc lrelu", inputs.text_embedding, parameters)
    return follow("c1 bn lrelu c4", torch.cat((features, tile(text, 4)), 1), parameters).flatten()


@pytest.mark.parametrize("name", NETWORKS)
def test_network_is_the_published_layers_written_out(name: str) -> None:
    network, inputs = make_network(name, torch.float64), Inputs(*(tensor.double() for tensor in make_inputs()))
    parameters = network.parameters()
    expected = (follow_generator if name in GENERATORS else follow_discriminator)(name, inputs, parameters)
    assert next(parameters, None) is None
    torch.testing.assert_close(run(network, inputs), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("name", "size"), [("Stage1Generator", 64), ("Stage2Generator", 256)])
def test_generator_returns_images_in_range_and_the_codes_statistics(name: str, size: int) -> None:
    network, inputs = make_network(name), make_inputs()
    first = [inputs.z] if name == "Stage1Generator" else []
    images = [] if name == "Stage1Generator" else [inputs.small_images]
    output = network(*images, inputs.text_embedding, *first, inputs.eps)
    assert isinstance(output, GeneratorOutput)
    assert output.images.shape == (3, 3, size, size)
    assert output.images.abs().max() <= 1
    assert output.images.std() > 0.05
    assert output.mu.shape == (3, CONDITION_DIM)
    assert output.logvar is not None
    assert output.logvar.shape == (3, CONDITION_DIM)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminator_is_its_features_then_its_logits(name: str) -> None:
    network, inputs = make_network(name).eval(), make_inputs()
    assert isinstance(network, Stage1Discriminator | Stage2Discriminator)
    images = inputs.small_images if name == "Stage1Discriminator" else inputs.large_images
    features = network.image_features(images)
    assert features.shape == (3, 32 if name == "Stage1Discriminator" else 16, 4, 4)
    logits = network.logits(features, inputs.text_embedding)
    assert logits.shape == (3,)
    assert torch.equal(logits, network(images, inputs.text_embedding))


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_permuted_features_are_the_features_of_permuted_images(name: str) -> None:
    """What lets one pass over the real images serve the wrong pairs too."""
    network, inputs = make_network(name, torch.float64), make_inputs()
    assert isinstance(network, Stage1Discriminator | Stage2Discriminator)
    images = (inputs.small_images if name == "Stage1Discriminator" else inputs.large_images).double()
    order, text = torch.tensor([2, 0, 1]), inputs.text_embedding.double()
    torch.testing.assert_close(
        network.logits(network.image_features(images)[order], text), network(images[order], text)
    )


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminator_refuses_images_of_another_size(name: str) -> None:
    network, inputs = make_network(name), make_inputs()
    images = inputs.large_images if name == "Stage1Discriminator" else inputs.small_images
    with pytest.raises((AssertionError, RuntimeError)):
        network(images, inputs.text_embedding)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_reaches_every_parameter(name: str) -> None:
    """In evaluation mode: batch statistics would cancel the (published) bias in front of Stage-I's first BatchNorm."""
    network, inputs = make_network(name).eval(), make_inputs()
    output = run(network, inputs)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    (output * weights).sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().max() > 1e-6, key


@pytest.mark.parametrize("name", NETWORKS)
def test_every_input_matters(name: str) -> None:
    network, inputs = make_network(name), Inputs(*(tensor.requires_grad_() for tensor in make_inputs()))
    run(network, inputs).square().sum().backward()
    used = {
        "Stage1Generator": {"text_embedding", "z", "eps"},
        "Stage2Generator": {"text_embedding", "eps", "small_images"},
        "Stage1Discriminator": {"text_embedding", "small_images"},
        "Stage2Discriminator": {"text_embedding", "large_images"},
    }[name]
    reached = {key for key, tensor in inputs._asdict().items() if tensor.grad is not None and tensor.grad.any()}
    assert reached == used


@pytest.mark.parametrize("name", NETWORKS)
def test_saved_and_loaded_network_gives_identical_output(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    network, inputs = make_network(name), make_inputs()
    run(network, inputs)  # moves BatchNorm's running statistics away from their defaults
    path = tmp_path_factory.mktemp("snapshot") / "network.safetensors"
    save_file(network.state_dict(), path)
    loaded = NARROW[name]()
    loaded.load_state_dict(load_file(path))
    assert torch.equal(run(loaded.eval(), inputs), run(network.eval(), inputs))


@pytest.mark.parametrize("name", GENERATORS)
def test_plain_up_sampling_gives_the_same_images_and_gradients(name: str) -> None:
    inputs = Inputs(*(tensor.double() for tensor in make_inputs(2)))
    images: list[torch.Tensor] = []
    grads: list[list[torch.Tensor | None]] = []
    for transposed in (True, False):
        network = make_network(name, torch.float64)
        for layer in network.modules():
            if isinstance(layer, UpsampleConv):
                layer.transposed = transposed
        images.append(run(network, inputs))
        images[-1].square().mean().backward()
        grads.append([parameter.grad for parameter in network.parameters()])
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=1e-11)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_last_changes_nothing_but_the_order_of_sums(name: str) -> None:
    inputs = make_inputs()
    contiguous, channels_last = make_network(name), make_network(name).to(memory_format=torch.channels_last)
    output = run(channels_last, inputs)
    torch.testing.assert_close(output, run(contiguous, inputs), rtol=1e-3, atol=1e-4)
    if output.dim() == 4:
        assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_autocast_is_close_to_float32(name: str) -> None:
    network, inputs = make_network(name).to(memory_format=torch.channels_last), make_inputs()
    expected = run(network, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        output = run(network, inputs)
    assert output.dtype == torch.bfloat16
    assert (output.float() - expected).square().mean().sqrt() < 0.05 * expected.std()
    output.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_inputs_give_the_same_output(name: str) -> None:
    network, inputs = make_network(name).eval(), make_inputs()
    state = torch.get_rng_state()
    assert torch.equal(run(network, inputs), run(network, inputs))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", NETWORKS)
def test_in_evaluation_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    network, inputs = make_network(name, torch.float64).eval(), Inputs(*(t.double() for t in make_inputs()))
    alone = run(network, Inputs(*(tensor[:1] for tensor in inputs)))
    torch.testing.assert_close(run(network, inputs)[:1], alone)


@pytest.mark.parametrize("name", GENERATORS)
def test_without_conditioning_augmentation_the_noise_eps_has_no_effect(name: str) -> None:
    inputs = make_inputs()
    if name == "Stage1Generator":
        network = Stage1Generator(EMBEDDING_DIM, CONDITION_DIM, Z_DIM, 4, conditioning_augmentation=False).eval()
        first = network(inputs.text_embedding, inputs.z, inputs.eps)
        second = network(inputs.text_embedding, inputs.z, -inputs.eps)
    else:
        network = Stage2Generator(EMBEDDING_DIM, CONDITION_DIM, 8, 1, conditioning_augmentation=False).eval()
        first = network(inputs.small_images, inputs.text_embedding, inputs.eps)
        second = network(inputs.small_images, inputs.text_embedding, -inputs.eps)
    assert first.logvar is None
    assert torch.equal(first.images, second.images)


def count_conv_weights(network: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in network.modules() if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize("network_class", [Stage1Generator, Stage1Discriminator, Stage2Generator, Stage2Discriminator])
def test_every_width_scales_with_its_base(network_class: type[nn.Module]) -> None:
    """But for the RGB side and the text's channels, twice the width is four times the convolution weights."""
    width = "gf_dim" if "Generator" in network_class.__name__ else "df_dim"
    with torch.device("meta"):
        sizes = [count_conv_weights(network_class(condition_dim=8, **{width: dim})) for dim in (16, 32, 64)]
    # Of a w^2 + b w, size(2w) - 2 size(w) is 2 a w^2; a width that stays put somewhere would add a constant.
    assert sizes[2] - 2 * sizes[1] == 4 * (sizes[1] - 2 * sizes[0])


def test_stage2_generator_refuses_a_width_it_cannot_quarter() -> None:
    with pytest.raises(ValueError, match="gf_dim is 6"):
        Stage2Generator(gf_dim=6)


def test_number_of_residual_blocks_is_a_choice() -> None:
    with torch.device("meta"):
        two, four = Stage2Generator(num_residual_blocks=2), Stage2Generator(num_residual_blocks=4)
    block = 2 * (512 * 512 * 9 + 2 * 512)
    assert sum(p.numel() for p in four.parameters()) - sum(p.numel() for p in two.parameters()) == 2 * block


def test_a_step_of_each_network_lowers_its_own_loss() -> None:
    g, d, inputs = make_network("Stage1Generator"), make_network("Stage1Discriminator"), make_inputs(8)
    assert isinstance(d, Stage1Discriminator)

    def d_loss() -> torch.Tensor:
        fake = g(inputs.text_embedding, inputs.z, inputs.eps).images.detach()
        features = d.image_features(inputs.small_images)
        wrong = d.logits(features.roll(1, 0), inputs.text_embedding)
        return discriminator_loss(d.logits(features, inputs.text_embedding), wrong, d(fake, inputs.text_embedding))

    def g_loss() -> torch.Tensor:
        output = g(inputs.text_embedding, inputs.z, inputs.eps)
        return generator_loss(d(output.images, inputs.text_embedding)) + 2 * kl_divergence(output.mu, output.logvar)

    for network, loss in ((d, d_loss), (g, g_loss)):
        optimiser = torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999))
        history: list[float] = []
        for _ in range(10):
            optimiser.zero_grad()
            value = loss()
            value.backward()
            optimiser.step()
            history.append(value.item())
        assert history[-1] < history[0]
