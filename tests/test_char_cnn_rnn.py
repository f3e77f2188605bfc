"""pipeline.text.char_cnn_rnn against published codes, counts and lengths, and against plain one-hot implementations."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.text.char_cnn_rnn import (
    ALPHABET,
    CONV3_LENGTH,
    KERNEL_WIDTH,
    MAX_CHARS,
    NUM_RNN_STEPS,
    POOL_WIDTH,
    POOLED_WIDTH,
    CharCnnRnn,
    GatedRnn,
    Rnn,
    _distinct_windows,
    character_codes,
    joint_embedding_loss,
)

ALBATROSS = "001.Black_footed_Albatross"

RNNS: tuple[Rnn, ...] = ("gru", "relu")
CAPTIONS = (
    "a",
    "this bird is red.",
    "a small bird with a blue crown, white belly and long, pointed black wings",
    "x" * 200,
    "the bird " * 30,
)


def network_of(rnn: Rnn, seed: int = 0) -> CharCnnRnn:
    network = CharCnnRnn(conv_dims=(12, 10, 8), rnn=rnn, embedding_dim=6)
    network.initialise(torch.Generator().manual_seed(seed))
    return network


def one_hot(codes: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return F.one_hot(codes, len(ALPHABET) + 1)[..., 1:].to(dtype).transpose(1, 2)  # (N, 70, 201)


def plain_forward(network: CharCnnRnn, codes: torch.Tensor) -> torch.Tensor:
    """The published network as the reference describes it: one-hot, every position, one Linear a gate."""

    def activated(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 1e-6, x, 0.0)

    x = F.max_pool1d(activated(network.conv1(one_hot(codes))), 3, 3)
    assert x.shape[2] == 66
    x = F.max_pool1d(activated(network.conv2(x)), 3, 3)
    assert x.shape[2] == 21
    x = activated(network.conv3(x))
    assert x.shape[2] == 18
    if network.rnn_kind == "relu":
        x = F.max_pool1d(x, 3, 2)
    states = []
    for t in range(x.shape[2]):
        if network.rnn_kind == "relu":
            total = network.rnn.input_terms(x[:, :, t])
            states.append(torch.relu(total + network.rnn.recurrent_terms(states[-1]) if states else total))
            continue
        (update_w, reset_w, new_w), (update_b, reset_b, new_b) = (
            value.chunk(3) for value in (network.rnn.input_terms.weight, network.rnn.input_terms.bias)
        )
        (update_u, reset_u), (update_c, reset_c) = (
            value.chunk(2) for value in (network.rnn.recurrent_gates.weight, network.rnn.recurrent_gates.bias)
        )
        if not states:
            states.append(torch.tanh(F.linear(x[:, :, t], new_w, new_b)))
            continue
        h = states[-1]
        z = torch.sigmoid(F.linear(x[:, :, t], update_w, update_b) + F.linear(h, update_u, update_c))
        r = torch.sigmoid(F.linear(x[:, :, t], reset_w, reset_b) + F.linear(h, reset_u, reset_c))
        candidate = torch.tanh(F.linear(x[:, :, t], new_w, new_b) + network.rnn.recurrent_candidate(r * h))
        states.append(z * candidate + (1 - z) * h)
    assert len(states) == NUM_RNN_STEPS[network.rnn_kind]
    return network.project(sum(states) / len(states))


# ---- characters


def test_alphabet_has_70_places_and_the_later_hyphen_wins() -> None:
    assert len(ALPHABET) == 70
    assert len(set(ALPHABET)) == 69
    codes = character_codes([ALPHABET])[0, :70].tolist()
    assert codes[36] == codes[59] == 60
    assert [code for place, code in enumerate(codes) if place != 36] == [n for n in range(1, 71) if n != 37]


def test_codes_are_1_based_ids_padded_with_0() -> None:
    codes = character_codes(["ab z", ""])
    assert codes.dtype == torch.int64
    assert codes.shape == (2, MAX_CHARS)
    assert codes[0, :5].tolist() == [1, 2, 70, 26, 0]
    assert not codes[0, 4:].any()
    assert not codes[1].any()


def test_no_captions_give_no_rows() -> None:
    assert character_codes([]).shape == (0, MAX_CHARS)


def test_characters_behind_the_201st_are_cut() -> None:
    assert torch.equal(character_codes(["ab" * 300]), character_codes(["ab" * 100 + "a"]))


def test_capitals_are_folded_or_unknown() -> None:
    assert torch.equal(character_codes(["Red"]), character_codes(["red"]))
    assert character_codes(["Red"], lower_case=False)[0, :3].tolist() == [0, 5, 4]


@pytest.mark.parametrize("unknown", ["é", "鳥", "\U0001f426", "\n", "\t", "\0", "\x7f", "\x80", "\ud800"])
def test_characters_outside_the_alphabet_are_0_and_take_one_place(unknown: str) -> None:
    assert character_codes([f"a{unknown}b"])[0, :4].tolist() == [1, 0, 2, 0]


def test_codes_equal_the_published_ones_of_one_image(real_data: Path) -> None:
    published = np.load(real_data / "char_cnn_rnn" / "cub_one_image_char_cnn_rnn.npz", allow_pickle=False)
    captions = (real_data / "cub" / "text_c10" / f"{published['img']}".replace(".jpg", ".txt")).read_text().splitlines()
    np.testing.assert_array_equal(character_codes(captions).numpy(), published["char"].T)


def test_codes_equal_the_published_ones_of_a_class(real_data: Path) -> None:
    # The file is one Torch tensor of doubles, 60 images x 201 characters x 10 captions, behind a short header.
    shape = (60, MAX_CHARS, 10)
    stored = (real_data / "char_cnn_rnn" / f"{ALBATROSS}.t7").read_bytes()
    published = np.frombuffer(stored[-8 * int(np.prod(shape)) :], dtype="<f8").reshape(shape)
    caption_paths = sorted((real_data / "cub" / "text_c10" / ALBATROSS).glob("*.txt"))
    captions = [caption for path in caption_paths for caption in path.read_text().splitlines()]
    assert len(captions) == 600
    np.testing.assert_array_equal(
        character_codes(captions).numpy(), published.transpose(0, 2, 1).reshape(600, MAX_CHARS)
    )


# ---- network


@pytest.mark.parametrize(
    ("rnn", "conv_dims", "count"),
    [("gru", (384, 512, 512), 4_045_184), ("relu", (384, 512, 512), 2_994_560), ("relu", (384, 512, 256), 1_814_144)],
)
def test_parameter_counts_are_the_published_ones(rnn: Rnn, conv_dims: tuple[int, int, int], count: int) -> None:
    network = CharCnnRnn(conv_dims=conv_dims, rnn=rnn, embedding_dim=1024)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize("rnn", RNNS)
def test_output_equals_the_plain_one_hot_network(rnn: Rnn) -> None:
    network = network_of(rnn).double()
    codes = character_codes(CAPTIONS)
    torch.testing.assert_close(network(codes), plain_forward(network, codes), rtol=0, atol=1e-14)


@pytest.mark.parametrize("rnn", RNNS)
def test_gradients_equal_those_of_the_plain_one_hot_network(rnn: Rnn) -> None:
    network = network_of(rnn).double()
    codes = character_codes(CAPTIONS)
    weights = torch.linspace(-1, 1, len(CAPTIONS) * 6, dtype=torch.float64).view(len(CAPTIONS), 6)
    parameters = list(network.parameters())
    ours = torch.autograd.grad((weights * network(codes)).sum(), parameters)
    plain = torch.autograd.grad((weights * plain_forward(network, codes)).sum(), parameters)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_output_equals_the_plain_one_hot_network_at_the_published_widths(dtype: torch.dtype, tolerance: float) -> None:
    network = CharCnnRnn()
    network.initialise(torch.Generator().manual_seed(0))
    codes = torch.randint(0, 71, (3, MAX_CHARS), generator=torch.Generator().manual_seed(1))
    expected = plain_forward(network.double(), codes)
    assert expected.abs().max() > 0.1
    embeddings = network.to(dtype)(codes).double()
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("num_chars", [0, 1, 2, 3, 4, 9, 26, 27, 28, 100, 191, 192, 197, 198, 199, 200, 201])
@pytest.mark.parametrize("rnn", RNNS)
def test_output_equals_the_plain_one_hot_network_at_any_length(rnn: Rnn, num_chars: int) -> None:
    network = network_of(rnn).double()
    codes = torch.zeros(2, MAX_CHARS, dtype=torch.int64)
    codes[:, :num_chars] = torch.randint(1, 71, (2, num_chars), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(network(codes), plain_forward(network, codes), rtol=0, atol=1e-14)


def test_a_window_is_computed_once_whoever_has_it() -> None:
    network = network_of("gru")
    alone, places = network.convolve(character_codes(["a red bird"]))
    assert places.shape == (1, CONV3_LENGTH)
    assert len(alone) == 3  # the windows that start at the 1st and at the 10th character, and the padding's
    again, places = network.convolve(character_codes(["a red bird", "a red bird  ", "", "a red bird"]))
    assert len(again) == 5  # the two blanks stand in both of the first windows
    assert torch.equal(places[0], places[3])
    assert len(set(places[2].tolist())) == 1 and places[2, 0] == places[0, 2] == places[1, 2]


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(1, 3), st.sampled_from([2, 70, 3000, 10**6]))
def test_distinct_windows_are_those_of_a_set(data: st.DataObject, width: int, stride: int, num_ids: int) -> None:
    length = data.draw(st.integers(width, 9))
    rows = data.draw(st.lists(st.lists(st.integers(0, num_ids), min_size=length, max_size=length), max_size=5))
    ids = torch.tensor(rows, dtype=torch.int64).view(len(rows), length)
    windows, places = _distinct_windows(ids, width, stride=stride)
    assert torch.equal(windows[places], ids.unfold(1, width, stride))
    assert len(set(map(tuple, windows.tolist()))) == len(windows)
    assert len(places.unique()) == len(windows)


def test_published_lengths_are_66_21_18_and_8() -> None:
    ids = torch.arange(MAX_CHARS)[None]
    lengths = [MAX_CHARS]
    for width, stride in ((POOLED_WIDTH, POOL_WIDTH), (POOLED_WIDTH, POOL_WIDTH), (KERNEL_WIDTH, 1), (POOL_WIDTH, 2)):
        ids = _distinct_windows(ids, width, stride=stride)[1]
        lengths.append(ids.shape[1])
    assert lengths == [201, 66, 21, CONV3_LENGTH, NUM_RNN_STEPS["relu"]]
    assert NUM_RNN_STEPS["gru"] == CONV3_LENGTH


def test_no_captions_give_no_embeddings() -> None:
    for rnn in RNNS:
        assert network_of(rnn)(character_codes([])).shape == (0, 6)


@pytest.mark.parametrize("rnn", RNNS)
def test_gradient_reaches_every_parameter(rnn: Rnn) -> None:
    network = network_of(rnn)
    network(character_codes(CAPTIONS)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_hyphens_dead_place_gets_no_gradient() -> None:
    network = network_of("gru")
    network(character_codes([ALPHABET])).sum().backward()
    gradient = network.conv1.weight.grad
    assert not gradient[:, 36].any()
    assert gradient[:, 59].any()


def test_initial_weights_are_uniform_and_follow_the_generator() -> None:
    first, again, other = network_of("gru", seed=3), network_of("gru", seed=3), network_of("gru", seed=4)
    for name, value in first.state_dict().items():
        assert value.abs().max() <= 0.08
        assert torch.equal(value, again.state_dict()[name])
        assert not torch.equal(value, other.state_dict()[name])
    published = CharCnnRnn()
    published.initialise(torch.Generator().manual_seed(0))
    values = torch.cat([parameter.detach().flatten() for parameter in published.parameters()])
    assert values.mean().abs() < 1e-4
    assert abs(values.std().item() - 0.08 / 3**0.5) < 1e-4


def test_closed_update_gate_keeps_the_first_state_and_an_open_one_takes_the_candidate() -> None:
    rnn = GatedRnn(hidden_dim=1).double()
    x, places = torch.tensor([[0.3], [0.9]], dtype=torch.float64), torch.tensor([[0, 1]])
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.zero_()
        rnn.input_terms.weight[2] = 1.0
        first, second = torch.tanh(x[:, 0])
        rnn.input_terms.bias[0] = -1e3
        assert rnn(x, places).item() == pytest.approx(first.item())
        rnn.input_terms.bias[0] = 1e3
        assert rnn(x, places).item() == pytest.approx((first + second).item() / 2)


def test_an_unknown_form_is_refused_by_its_key() -> None:
    with pytest.raises(ValueError, match=r"fit_text_encoder\.rnn: 'lstm'"):
        CharCnnRnn(rnn="lstm")


# ---- loss


def test_loss_equals_a_naive_double_loop() -> None:
    generator = torch.Generator().manual_seed(5)
    image, text = torch.randn(2, 7, 4, dtype=torch.float64, generator=generator)
    total = 0.0
    for i in range(7):
        for j in range(7):
            if i != j:
                matched = torch.dot(image[i], text[i]).item()
                total += max(0.0, 1 + torch.dot(image[i], text[j]).item() - matched)
                total += max(0.0, 1 + torch.dot(image[j], text[i]).item() - matched)
    assert joint_embedding_loss(image, text).item() == pytest.approx(total / 49, abs=1e-13)


def test_loss_is_zero_beyond_the_margin_and_its_chance_level_for_equal_scores() -> None:
    eye = torch.eye(5, dtype=torch.float64)
    assert joint_embedding_loss(eye, eye).item() == 0
    assert joint_embedding_loss(0.25 * eye, eye).item() == pytest.approx(0.75 * 2 * 4 / 5)
    assert joint_embedding_loss(0 * eye, eye).item() == pytest.approx(2 * 4 / 5)


def test_loss_does_not_change_when_image_and_text_swap_or_pairs_are_reordered() -> None:
    generator = torch.Generator().manual_seed(6)
    image, text = torch.randn(2, 6, 3, dtype=torch.float64, generator=generator)
    order = torch.randperm(6, generator=generator)
    expected = pytest.approx(joint_embedding_loss(image, text).item(), abs=1e-14)
    assert joint_embedding_loss(text, image).item() == expected
    assert joint_embedding_loss(image[order], text[order]).item() == expected


def test_loss_passes_the_numerical_gradient_check() -> None:
    generator = torch.Generator().manual_seed(7)
    pair = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(joint_embedding_loss, tuple(pair.requires_grad_().unbind()))
