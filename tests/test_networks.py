"""The networks: published sizes, layers written out, shapes and ranges, gradients, snapshots, precision, memory."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import norm, truncnorm
from torch import nn
from torch.nn import functional as F

from pipeline.gan.architecture import Architecture, architecture_of
from pipeline.gan.layers import UpsampleConv, initialise
from pipeline.gan.losses import Logits, discriminator_loss, generator_loss, kl_divergence
from pipeline.gan.networks import Discriminator, GeneratorOutput, Stage1Generator, Stage2Generator
from tests.gan_presets import PRESETS, narrow, preset

EMBEDDING_DIM, CONDITION_DIM, Z_DIM = 12, 6, 5
GENERATORS = ["Stage1Generator", "Stage2Generator"]
DISCRIMINATORS = ["Stage1Discriminator", "Stage2Discriminator"]
NETWORKS = GENERATORS + DISCRIMINATORS
WIDTHS = {
    "Stage1Generator": {"generator_dim": 8},
    "Stage1Discriminator": {"discriminator_dim": 4},
    "Stage2Generator": {"generator_dim": 8},
    "Stage2Discriminator": {"discriminator_dim": 2},
}

every_preset = pytest.mark.parametrize("group", PRESETS)
every_network = pytest.mark.parametrize("name", NETWORKS)


class Inputs(NamedTuple):
    text_embedding: torch.Tensor
    mu: torch.Tensor
    z: torch.Tensor
    eps: torch.Tensor
    stage1_images: torch.Tensor
    stage2_images: torch.Tensor


def make_inputs(architecture: Architecture, num_images: int = 3, device: str = "cpu") -> Inputs:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(num_images, *shape, generator=generator).to(device)

    stage2_size = 256 if architecture.stage2_size == "none" else architecture.stage2_size
    images = [draw(3, size, size).clamp(-1, 1) for size in (architecture.stage1_size, stage2_size)]
    condition_dim = architecture.condition_dim
    return Inputs(draw(architecture.embedding_dim), draw(condition_dim), draw(architecture.z_dim), draw(condition_dim),
                  *images)  # fmt: skip


def narrow_architecture(group: str, name: str = "", **changes: Any) -> Architecture:
    return architecture_of(narrow(group, **WIDTHS.get(name, {}) | changes), EMBEDDING_DIM)


def build(name: str, architecture: Architecture) -> nn.Module:
    if name == "Stage1Generator":
        return Stage1Generator(architecture)
    if name == "Stage2Generator":
        return Stage2Generator(architecture)
    if name == "Stage1Discriminator":
        return Discriminator(architecture, architecture.stage1_size)
    assert architecture.stage2_size != "none"
    return Discriminator(architecture, architecture.stage2_size, unconditional_head=architecture.unconditional_head)


def make_network(name: str, architecture: Architecture, dtype: torch.dtype = torch.float32) -> nn.Module:
    network = build(name, architecture)
    initialise(network, torch.Generator().manual_seed(0))
    # Weights of sd 0.02 leave a narrow, untrained network nearly constant; spread them so that every path matters.
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                layer.weight.mul_(10)
                if layer.bias is not None:
                    layer.bias.add_(0.1)
    return network.to(dtype)


def make_both(
    name: str, group: str, dtype: torch.dtype = torch.float32, num_images: int = 3, **changes: Any
) -> tuple[nn.Module, Inputs]:
    """Return a narrow network of a preset and inputs for it."""
    architecture = narrow_architecture(group, name, **changes)
    inputs = Inputs(*(tensor.to(dtype) for tensor in make_inputs(architecture, num_images)))
    return make_network(name, architecture, dtype), inputs


def images_for(name: str, inputs: Inputs) -> torch.Tensor:
    return inputs.stage1_images if name == "Stage1Discriminator" else inputs.stage2_images


def text_for(network: Discriminator, inputs: Inputs) -> torch.Tensor:
    """Return what D is told of the text: G's mu where it has no layer that compresses the embedding."""
    return inputs.mu if isinstance(network.match.compress, nn.Identity) else inputs.text_embedding


def generate(network: nn.Module, inputs: Inputs) -> GeneratorOutput:
    first = (inputs.text_embedding, inputs.z)
    if isinstance(network, Stage2Generator):
        first = (inputs.stage1_images, inputs.text_embedding)
    output = network(*first, inputs.eps)
    assert isinstance(output, GeneratorOutput)
    return output


def run(network: nn.Module, name: str, inputs: Inputs) -> torch.Tensor:
    """Images of a generator; logits of a discriminator, (N, 1) or with an unconditional head (N, 2)."""
    if not isinstance(network, Discriminator):
        return generate(network, inputs).images
    features = network.image_features(images_for(name, inputs))
    heads = [network.logits(features, text_for(network, inputs)), network.logits_alone(features)]
    return torch.stack([logits for logits in heads if logits is not None], dim=1)


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("group", "changes", "counts"),
    [
        ("paper", {}, (14_264_192, 26_290_080, 4_029_824, 48_603_520)),
        ("published_tf", {}, (14_264_192, 26_290_080, 4_029_824, 48_603_520)),
        ("published_pytorch", {}, (20_020_832, 37_130_480, 12_407_425, 159_889_538)),
        (
            "published_pytorch",
            {"generator_dim": 128, "discriminator_dim": 64, "num_residual_blocks": 4},
            (10_301_248, 26_290_080, 5_715_713, 71_269_122),
        ),
    ],
    ids=["paper", "published_tf", "published_pytorch", "published_pytorch_at_its_defaults"],
)
def test_parameter_counts_are_the_published_ones(
    group: str, changes: dict[str, Any], counts: tuple[int, int, int, int]
) -> None:
    architecture = architecture_of(replace(preset(group), **changes), 1024)
    with torch.device("meta"):
        assert tuple(count_parameters(build(name, architecture)) for name in NETWORKS) == counts


@every_preset
@pytest.mark.parametrize(("stage1_size", "stage2_size"), [(64, 256), (64, 128), (128, 256), (256, 256)])
def test_networks_at_full_width_have_their_shapes_and_read_no_value_back(
    group: str, stage1_size: int, stage2_size: int
) -> None:
    """Meta tensors have no values: anything that would synchronise with the device raises here."""
    architecture = architecture_of(preset(group), 1024)
    architecture = replace(architecture, stage1_size=stage1_size, stage2_size=stage2_size)
    num_heads = 2 if group == "published_pytorch" else 1
    shapes = {
        "Stage1Generator": (2, 3, stage1_size, stage1_size),
        "Stage2Generator": (2, 3, stage2_size, stage2_size),
        "Stage1Discriminator": (2, 1),
        "Stage2Discriminator": (2, num_heads),
    }
    for name, shape in shapes.items():
        if name == "Stage2Generator" and stage1_size != 64:
            continue  # it refines 64x64 alone
        with torch.device("meta"):
            network = build(name, architecture)
            output = run(network, name, make_inputs(architecture, 2, device="meta"))
            output.mean().backward()
        assert output.shape == shape
        assert all(parameter.grad is not None for parameter in network.parameters())


# The published layers, one word each: "[ ... ]" adds its input to its output. The paper's are those of the TensorFlow
# release with the activation that D's third convolution lacks there.
BOTTLENECK, BOTTLENECK_D = "[ c1 bn relu c3 bn relu c3 bn ] relu", "[ c1 bn lrelu c3 bn lrelu c3 bn ] lrelu"
STAGE2_GENERATOR = "c3 bn relu [ c3 bn relu c3 bn ] relu" + " up bn relu" * 4 + " c3 tanh"
LAYERS = {
    ("Stage1Generator", "paper"): f"fc bn view {BOTTLENECK} up bn {BOTTLENECK} up bn relu up bn relu up tanh",
    ("Stage1Generator", "published_pytorch"): "fc0 bn view relu" + " up bn relu" * 4 + " c3 tanh",
    ("Stage2Generator", "paper"): STAGE2_GENERATOR,
    ("Stage2Generator", "published_pytorch"): STAGE2_GENERATOR,
    ("Stage1Discriminator", "paper"): f"c4s2 lrelu c4s2 bn lrelu c4s2 bn lrelu c4s2 bn {BOTTLENECK_D}",
    ("Stage1Discriminator", "published_tf"): f"c4s2 lrelu c4s2 bn lrelu c4s2 bn c4s2 bn {BOTTLENECK_D}",
    ("Stage1Discriminator", "published_pytorch"): "c4s2 lrelu" + " c4s2 bn lrelu" * 3,
    ("Stage2Discriminator", "paper"): f"c4s2 lrelu {'c4s2 bn lrelu ' * 5} c1 bn lrelu c1 bn {BOTTLENECK_D}",
    ("Stage2Discriminator", "published_pytorch"): "c4s2 lrelu" + " c4s2 bn lrelu" * 5 + " c3 bn lrelu" * 2,
}
# Of other sizes, which no release has: as many halvings and doublings as the side asks for.
OTHER_SIZES = {
    ("Stage1Generator", 128): f"fc bn view {BOTTLENECK} up bn {BOTTLENECK} {'up bn relu ' * 3} up tanh",
    ("Stage1Generator", 256): f"fc bn view {BOTTLENECK} up bn {BOTTLENECK} {'up bn relu ' * 4} up tanh",
    ("Stage1Discriminator", 128): f"c4s2 lrelu {'c4s2 bn lrelu ' * 4} c1 bn {BOTTLENECK_D}",
    ("Stage1Discriminator", 256): f"c4s2 lrelu {'c4s2 bn lrelu ' * 5} c1 bn lrelu c1 bn {BOTTLENECK_D}",
    ("Stage2Generator", 128): "c3 bn relu [ c3 bn relu c3 bn ] relu" + " up bn relu" * 3 + " c3 tanh",
    ("Stage2Discriminator", 128): f"c4s2 lrelu {'c4s2 bn lrelu ' * 4} c1 bn {BOTTLENECK_D}",
}
STAGE2_ENCODER = "c3 relu c4s2 bn relu c4s2 bn relu"
CONDITIONING = {"paper": "fc", "published_tf": "fc lrelu", "published_pytorch": "fc relu"}


def follow(layers: str, x: torch.Tensor, parameters: Iterator[torch.Tensor]) -> torch.Tensor:
    """Written out with torch.nn.functional, the weights taken in their order of definition."""
    kept = x
    for layer in layers.split():
        match layer:
            case "fc":
                x = F.linear(x, next(parameters), next(parameters))
            case "fc0":
                x = F.linear(x, next(parameters))
            case "view":
                x = x.reshape(len(x), 4, 4, -1).movedim(3, 1)
            case "c1" | "c3" | "c4" | "c4s2":
                padding = {"c1": 0, "c3": 1, "c4": 0, "c4s2": 1}[layer]
                x = F.conv2d(x, next(parameters), stride=2 if layer == "c4s2" else 1, padding=padding)
            case "c4b":
                x = F.conv2d(x, next(parameters), next(parameters))
            case "dc":
                x = F.conv_transpose2d(x, next(parameters), stride=2, padding=1)
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


def follow_generator(
    layers: str, group: str, name: str, inputs: Inputs, parameters: Iterator[torch.Tensor]
) -> GeneratorOutput:
    mu, spread = follow(CONDITIONING[group], inputs.text_embedding, parameters).chunk(2, dim=1)
    if group == "published_tf":  # the second half is log sigma, the noise is cut
        cut = torch.from_numpy(truncnorm.ppf(norm.cdf(inputs.eps.numpy()), -2, 2))
        logvar, c = spread * 2, mu + spread.exp() * cut
    else:
        logvar, c = spread, mu + (spread / 2).exp() * inputs.eps
    if name == "Stage1Generator":
        return GeneratorOutput(follow(layers, torch.cat((c, inputs.z), 1), parameters), mu, logvar)
    encoded = follow(STAGE2_ENCODER, inputs.stage1_images, parameters)
    return GeneratorOutput(follow(layers, torch.cat((encoded, tile(c, 16)), 1), parameters), mu, logvar)


def follow_discriminator(
    layers: str, group: str, name: str, inputs: Inputs, parameters: Iterator[torch.Tensor]
) -> torch.Tensor:
    features = follow(layers, images_for(name, inputs), parameters)
    if group != "published_pytorch":
        text = follow("fc lrelu", inputs.text_embedding, parameters)
        return follow("c1 bn lrelu c4", torch.cat((features, tile(text, 4)), 1), parameters).flatten(1)
    heads = [follow("c3 bn lrelu c4b", torch.cat((features, tile(inputs.mu, 4)), 1), parameters)]
    if name == "Stage2Discriminator":
        heads.append(follow("c4b", features, parameters))
    return torch.cat(heads, dim=1).flatten(1)


def assert_follows(layers: str, group: str, name: str, network: nn.Module, inputs: Inputs) -> None:
    parameters = network.parameters()
    if name in GENERATORS:
        expected = follow_generator(layers, group, name, inputs, parameters)
        torch.testing.assert_close(tuple(generate(network, inputs)), tuple(expected), rtol=1e-9, atol=1e-10)
    else:
        judged = follow_discriminator(layers, group, name, inputs, parameters)
        torch.testing.assert_close(run(network, name, inputs), judged, rtol=1e-9, atol=1e-10)
    assert next(parameters, None) is None


@every_preset
@every_network
def test_network_is_the_published_layers_written_out(name: str, group: str) -> None:
    layers = LAYERS.get((name, group), LAYERS[name, "paper"])
    assert_follows(layers, group, name, *make_both(name, group, torch.float64))


def test_networks_of_gan_int_cls_are_its_layers_written_out() -> None:
    g, inputs = make_both("Stage1Generator", "gan_int_cls", torch.float64)
    parameters = g.parameters()
    code = follow("fc lrelu", inputs.text_embedding, parameters)
    layers = f"fc bn view {BOTTLENECK} dc bn {BOTTLENECK} dc bn relu dc bn relu dc tanh"
    images = follow(layers, torch.cat((code, inputs.z), 1), parameters)
    torch.testing.assert_close(generate(g, inputs).images, images, rtol=1e-9, atol=1e-10)
    d, _ = make_both("Stage1Discriminator", "gan_int_cls", torch.float64)
    of_d = d.parameters()
    features = follow(LAYERS["Stage1Discriminator", "paper"], inputs.stage1_images, of_d)
    text = follow("fc bn lrelu", inputs.text_embedding, of_d)
    judged = follow("c1 bn lrelu c4", torch.cat((features, tile(text, 4)), 1), of_d).flatten(1)
    torch.testing.assert_close(run(d, "Stage1Discriminator", inputs), judged, rtol=1e-9, atol=1e-10)
    assert next(parameters, None) is None and next(of_d, None) is None


@pytest.mark.parametrize(("name", "size"), OTHER_SIZES)
def test_network_of_another_size_is_its_layers_written_out(name: str, size: int) -> None:
    stage2_size = 128 if size == 128 else 256
    changes = {"stage1_size": size, "stage2_size": "none"} if "Stage1" in name else {"stage2_size": stage2_size}
    architecture = narrow_architecture("paper", name, **changes)
    inputs = make_inputs(replace(architecture, stage2_size=stage2_size))
    network = make_network(name, architecture, torch.float64)
    assert_follows(OTHER_SIZES[name, size], "paper", name, network, Inputs(*(tensor.double() for tensor in inputs)))


@every_preset
@pytest.mark.parametrize(("name", "size"), [("Stage1Generator", 64), ("Stage2Generator", 256)])
def test_generator_returns_images_in_range_and_the_codes_statistics(name: str, size: int, group: str) -> None:
    output = generate(*make_both(name, group))
    assert output.images.shape == (3, 3, size, size)
    assert output.images.abs().max() <= 1
    assert output.images.std() > 0.05
    assert output.mu is not None and output.logvar is not None
    assert output.mu.shape == output.logvar.shape == (3, CONDITION_DIM)


@every_preset
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminator_is_its_features_then_its_logits(name: str, group: str) -> None:
    network, inputs = make_both(name, group)
    assert isinstance(network.eval(), Discriminator)
    images, text = images_for(name, inputs), text_for(network, inputs)
    features = network.image_features(images)
    assert features.shape == (3, 32 if name == "Stage1Discriminator" else 16, 4, 4)
    logits = network.logits(features, text)
    assert logits.shape == (3,)
    assert torch.equal(logits, network(images, text))


@every_preset
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_only_stage2_of_the_pytorch_release_judges_images_alone(name: str, group: str) -> None:
    network, inputs = make_both(name, group)
    alone = network.logits_alone(network.image_features(images_for(name, inputs)))
    assert (alone is not None) == (name == "Stage2Discriminator" and group == "published_pytorch")


@every_preset
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_permuted_features_are_the_features_of_permuted_images(name: str, group: str) -> None:
    """What lets one pass over the real images serve the wrong pairs too."""
    network, inputs = make_both(name, group, torch.float64)
    images, text, order = images_for(name, inputs), text_for(network, inputs), torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        network.logits(network.image_features(images)[order], text), network(images[order], text)
    )


@every_preset
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminator_refuses_images_of_another_size(name: str, group: str) -> None:
    network, inputs = make_both(name, group)
    images = inputs.stage2_images if name == "Stage1Discriminator" else inputs.stage1_images
    with pytest.raises((AssertionError, RuntimeError)):
        network(images, text_for(network, inputs))


@every_preset
@every_network
def test_gradient_reaches_every_parameter(name: str, group: str) -> None:
    """In evaluation mode: batch statistics would cancel the (published) bias in front of Stage-I's first BatchNorm."""
    network, inputs = make_both(name, group)
    output = run(network.eval(), name, inputs)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    (output * weights).sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().max() > 1e-6, key


@every_preset
@every_network
def test_every_input_matters(name: str, group: str) -> None:
    network, inputs = make_both(name, group)
    inputs = Inputs(*(tensor.requires_grad_() for tensor in inputs))
    run(network, name, inputs).square().sum().backward()
    text = "mu" if group == "published_pytorch" else "text_embedding"
    used = {
        "Stage1Generator": {"text_embedding", "z", "eps"},
        "Stage2Generator": {"text_embedding", "eps", "stage1_images"},
        "Stage1Discriminator": {text, "stage1_images"},
        "Stage2Discriminator": {text, "stage2_images"},
    }[name]
    reached = {key for key, tensor in inputs._asdict().items() if tensor.grad is not None and tensor.grad.any()}
    assert reached == used


@every_preset
@every_network
def test_saved_and_loaded_network_gives_identical_output(
    name: str, group: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    network, inputs = make_both(name, group)
    run(network, name, inputs)  # moves BatchNorm's running statistics away from their defaults
    path = tmp_path_factory.mktemp("snapshot") / "network.safetensors"
    save_file(network.state_dict(), path)
    loaded = build(name, narrow_architecture(group, name))
    loaded.load_state_dict(load_file(path))
    assert torch.equal(run(loaded.eval(), name, inputs), run(network.eval(), name, inputs))


@every_preset
@pytest.mark.parametrize("name", GENERATORS)
def test_plain_up_sampling_gives_the_same_images_and_gradients(name: str, group: str) -> None:
    images: list[torch.Tensor] = []
    grads: list[list[torch.Tensor | None]] = []
    for transposed in (True, False):
        network, inputs = make_both(name, group, torch.float64, num_images=2)
        for layer in network.modules():
            if isinstance(layer, UpsampleConv):
                layer.transposed = transposed
        images.append(run(network, name, inputs))
        images[-1].square().mean().backward()
        grads.append([parameter.grad for parameter in network.parameters()])
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=1e-11)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-8, atol=1e-11)


@every_preset
@every_network
def test_channels_last_changes_nothing_but_the_order_of_sums(name: str, group: str) -> None:
    contiguous, inputs = make_both(name, group)
    channels_last = make_both(name, group)[0].to(memory_format=torch.channels_last)
    output = run(channels_last, name, inputs)
    torch.testing.assert_close(output, run(contiguous, name, inputs), rtol=1e-3, atol=1e-4)
    if output.dim() == 4:
        assert output.is_contiguous(memory_format=torch.channels_last)


@every_preset
@every_network
def test_bfloat16_autocast_is_close_to_float32(name: str, group: str) -> None:
    network, inputs = make_both(name, group, num_images=8)
    network.to(memory_format=torch.channels_last)
    expected = run(network, name, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        output = run(network, name, inputs)
    assert output.dtype == torch.bfloat16
    assert (output.float() - expected).square().mean().sqrt() < 0.05 * expected.std()
    output.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@every_preset
@every_network
def test_the_same_inputs_give_the_same_output(name: str, group: str) -> None:
    network, inputs = make_both(name, group)
    network.eval()
    state = torch.get_rng_state()
    assert torch.equal(run(network, name, inputs), run(network, name, inputs))
    assert torch.equal(torch.get_rng_state(), state)


@every_preset
@every_network
def test_in_evaluation_a_sample_does_not_depend_on_its_batch(name: str, group: str) -> None:
    network, inputs = make_both(name, group, torch.float64)
    alone = run(network.eval(), name, Inputs(*(tensor[:1] for tensor in inputs)))
    torch.testing.assert_close(run(network, name, inputs)[:1], alone)


@pytest.mark.parametrize("name", GENERATORS)
def test_without_conditioning_augmentation_the_noise_eps_has_no_effect(name: str) -> None:
    network, inputs = make_both(name, "paper", conditioning_augmentation=False)
    first, second = (generate(network.eval(), inputs._replace(eps=eps)) for eps in (inputs.eps, -inputs.eps))
    assert first.logvar is None and first.mu is not None
    assert torch.equal(first.images, second.images)


def test_a_stage2_without_the_text_sees_the_stage1_image_alone() -> None:
    network, inputs = make_both("Stage2Generator", "paper", text_twice=False)
    network.eval()
    first = generate(network, inputs)
    assert first.mu is None and first.logvar is None
    other = generate(network, inputs._replace(eps=-inputs.eps, text_embedding=-inputs.text_embedding))
    assert torch.equal(first.images, other.images)
    assert not torch.equal(first.images, generate(network, inputs._replace(stage1_images=-inputs.stage1_images)).images)
    # Without the text's layer, and without its channels in the joint convolution.
    told = count_parameters(build("Stage2Generator", narrow_architecture("paper", "Stage2Generator")))
    of_the_text = (EMBEDDING_DIM + 1) * 2 * CONDITION_DIM + CONDITION_DIM * 32 * 9
    assert told - count_parameters(network) == of_the_text


def count_conv_weights(network: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in network.modules() if isinstance(layer, nn.Conv2d))


@every_preset
@every_network
def test_every_width_scales_with_its_base(name: str, group: str) -> None:
    """But for the RGB side and the text's channels, twice the width is four times the convolution weights."""
    width = "generator_dim" if name in GENERATORS else "discriminator_dim"
    with torch.device("meta"):
        sizes = [count_conv_weights(build(name, narrow_architecture(group, **{width: dim}))) for dim in (16, 32, 64)]
    # Of a w^2 + b w, size(2w) - 2 size(w) is 2 a w^2; a width that stays put somewhere would add a constant.
    assert sizes[2] - 2 * sizes[1] == 4 * (sizes[1] - 2 * sizes[0])


def test_number_of_residual_blocks_is_a_choice() -> None:
    architecture = architecture_of(preset("paper"), 1024)
    with torch.device("meta"):
        two, four = (Stage2Generator(replace(architecture, num_residual_blocks=count)) for count in (2, 4))
    block = 2 * (512 * 512 * 9 + 2 * 512)
    assert count_parameters(four) - count_parameters(two) == 2 * block


@every_preset
@pytest.mark.parametrize("form", ["bce", "hinge"])
def test_a_step_of_each_network_lowers_its_own_loss(group: str, form: Any) -> None:
    g, inputs = make_both("Stage1Generator", group, num_images=8)
    d, _ = make_both("Stage1Discriminator", group)
    assert isinstance(d, Discriminator)
    text = text_for(d, inputs)

    def d_loss() -> torch.Tensor:
        fake = generate(g, inputs).images.detach()
        features = d.image_features(inputs.stage1_images)
        wrong = d.logits(features.roll(1, 0), text)
        return discriminator_loss(Logits(real=d.logits(features, text), wrong=wrong, fake=d(fake, text)), form)

    def g_loss() -> torch.Tensor:
        output = generate(g, inputs)
        assert output.mu is not None and output.logvar is not None
        return generator_loss(d(output.images, text), form=form) + 2 * kl_divergence(output.mu, output.logvar)

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
