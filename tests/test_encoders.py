"""pipeline.text.encoders: what a step draws, that training learns, and that frozen encoders answer alike anywhere."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.text.char_cnn_rnn import CharCnnRnn, character_codes
from pipeline.text.encoders import (
    FittedEncoders,
    ImageEncoder,
    TextEncoder,
    _network_input,
    _PairSampler,
    _random_crops,
    encode_images,
    fit_text_encoder,
    load_image_encoder,
    load_text_encoder,
    save_text_encoder,
)
from pipeline.text.retrieval import class_retrieval

COLOURS = {"red": (210, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220), "white": (250, 250, 250)}
TEMPLATES = ("this bird is {}", "a small {} bird", "the {} bird flies")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small lose more by a second thread than they gain, on a busy machine many times more."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


class TrainingSet:
    """Four classes of one colour, five noisy 76x76 images each, three captions an image."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        colours = np.repeat(np.array(list(COLOURS.values())), 5, axis=0)
        noisy = colours[:, None, None, :] + rng.normal(0, 20, (20, 76, 76, 3))
        self.images: NDArray[np.uint8] = noisy.clip(0, 255).astype(np.uint8)
        self.class_ids = np.repeat([5, 2, 9, 4], 5)
        self.captions = [[line.format(word) for line in TEMPLATES] for word in COLOURS for _ in range(5)]


def fitted(data: TrainingSet, *, num_steps: int = 2, seed: int = 0, lr_decay: float = 0.98, **others) -> FittedEncoders:
    return fit_text_encoder(
        data.images,
        data.class_ids,
        data.captions,
        rnn="gru",
        conv_dims=(64, 64, 64),
        embedding_dim=32,
        num_steps=num_steps,
        batch_size=40,
        learning_rate=7e-4,
        lr_decay=lr_decay,
        seed=seed,
        **others,
    )


def weights_of(encoders: FittedEncoders) -> torch.Tensor:
    parameters = [*encoders.text_encoder.parameters(), *encoders.image_encoder.parameters()]
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def frozen_encoder(embedding_dim: int = 32) -> TextEncoder:
    network = CharCnnRnn(embedding_dim=embedding_dim)
    network.initialise(torch.Generator().manual_seed(0))
    return TextEncoder(
        name="char_cnn_rnn", network=network.eval().requires_grad_(False), embedding_dim=embedding_dim, sha256=""
    )


# ---- what a step draws


def test_a_batch_holds_distinct_classes_with_an_image_and_a_caption_of_each() -> None:
    rng = np.random.default_rng(0)
    class_ids = rng.permutation(np.repeat(np.arange(50), 3))
    images = np.broadcast_to(np.arange(150, dtype=np.uint8)[:, None, None, None], (150, 76, 76, 3))
    captions = [[f"image {row} caption {k}" for k in range(1 + row % 4)] for row in range(150)]
    place_of = {tuple(character_codes([line])[0].tolist()): row for row, of in enumerate(captions) for line in of}
    sampler = _PairSampler(images, class_ids, captions, batch_size=40, seed=1)
    seen_rows: set[int] = set()
    for step in range(30):
        batch, codes = sampler.pairs_of(step)
        rows = ((batch[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
        assert batch.shape == (40, 3, 64, 64)
        assert len(set(class_ids[rows])) == 40
        assert rows == [place_of[tuple(code)] for code in codes.tolist()]
        seen_rows.update(rows)
    assert len(seen_rows) == 150


def test_all_captions_of_an_image_are_drawn() -> None:
    data = TrainingSet()
    sampler = _PairSampler(data.images, data.class_ids, data.captions, batch_size=40, seed=0)
    drawn = {tuple(code) for step in range(60) for code in sampler.pairs_of(step)[1].tolist()}
    assert drawn == {tuple(code) for of_image in data.captions for code in character_codes(of_image).tolist()}


def test_all_classes_are_used_where_there_are_fewer_than_the_batch_size() -> None:
    data = TrainingSet()
    sampler = _PairSampler(data.images, data.class_ids, data.captions, batch_size=40, seed=0)
    assert sampler.num_classes == 4
    assert sampler.pairs_of(0)[0].shape[0] == 4


def test_a_step_depends_on_seed_and_step_alone() -> None:
    data = TrainingSet()
    samplers = [_PairSampler(data.images, data.class_ids, data.captions, batch_size=4, seed=seed) for seed in (3, 3, 4)]
    samplers[0].pairs_of(0)
    (first, _), (again, _), (other, _) = (sampler.pairs_of(7) for sampler in samplers)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_crops_cover_every_place_borders_included_and_half_are_mirrored() -> None:
    y, x = np.mgrid[:76, :76].astype(np.uint8)
    images = np.stack((y, x, np.zeros_like(x)), axis=2)[None].repeat(2, axis=0)
    crops = _random_crops(images, np.arange(1000) % 2, np.random.default_rng(0)).astype(int)
    mirrored = crops[:, 0, 0, 1] > crops[:, 0, 63, 1]
    assert abs(mirrored.mean() - 0.5) < 0.08
    plain = np.where(mirrored[:, None, None, None], crops[:, :, ::-1], crops)
    assert set(plain[:, 0, 0, 0]) == set(plain[:, 0, 0, 1]) == set(range(13))
    grid = np.arange(64)
    assert np.array_equal(plain[..., 0], np.broadcast_to((plain[:, 0, 0, 0, None] + grid)[:, :, None], (1000, 64, 64)))
    assert np.array_equal(plain[..., 1], np.broadcast_to((plain[:, 0, 0, 1, None] + grid)[:, None, :], (1000, 64, 64)))


def test_pixels_0_and_255_become_minus_one_and_one() -> None:
    x = _network_input(np.array([0, 255, 51], dtype=np.uint8).reshape(1, 1, 1, 3))
    assert x.shape == (1, 3, 1, 1)
    assert x.flatten().tolist() == pytest.approx([-1, 1, -0.6])


# ---- training


def test_training_tells_colours_apart() -> None:
    data, unseen = TrainingSet(), TrainingSet(seed=1)
    encoders = fitted(data, num_steps=80, lr_decay=1.0)
    assert np.mean([step.accuracy for step in encoders.history[-20:]]) > 0.9
    captions = [f"the small bird is {word}" for word in COLOURS]
    with torch.inference_mode():
        text_features = encoders.text_encoder(character_codes(captions))
    scores = class_retrieval(
        encode_images(encoders.image_encoder, unseen.images),
        torch.from_numpy(unseen.class_ids),
        text_features,
        torch.from_numpy(unseen.class_ids[::5]),
    )
    assert scores.top1 > 0.9


def test_same_seed_same_losses_and_weights_and_another_seed_others() -> None:
    data = TrainingSet()
    first, again, other = fitted(data), fitted(data), fitted(data, seed=1)
    assert first.history == again.history
    assert torch.equal(weights_of(first), weights_of(again))
    assert first.history[0].loss != other.history[0].loss


def test_no_global_random_state_decides() -> None:
    data = TrainingSet()
    torch.manual_seed(1)
    first = weights_of(fitted(data))
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(first, weights_of(fitted(data)))


def test_memory_mapped_images_train_alike(tmp_path: Path) -> None:
    data, mapped = TrainingSet(), TrainingSet()
    np.save(tmp_path / "images.npy", data.images)
    mapped.images = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert torch.equal(weights_of(fitted(data)), weights_of(fitted(mapped)))


def test_learning_rate_falls_once_per_as_many_steps_as_classes() -> None:
    data = TrainingSet()  # 4 classes; a decay of 0 stops learning at step 5
    three, four, nine = (weights_of(fitted(data, num_steps=steps, lr_decay=0.0)) for steps in (3, 4, 9))
    assert not torch.equal(three, four)
    assert torch.equal(four, nine)


def test_the_first_update_is_rmsprops_closed_form() -> None:
    # Its average of squares starts at 0, so the first step is lr / sqrt(1 - alpha) = 10 lr against the gradient's sign.
    data = TrainingSet()
    moved = (weights_of(fitted(data, num_steps=1)) - weights_of(fitted(data, num_steps=0))).abs()
    assert moved.max().item() == pytest.approx(7e-3, rel=1e-3)
    assert (moved <= 7e-3 * 1.001).all()


def test_every_step_is_reported() -> None:
    calls: list[tuple[int, float, float]] = []
    encoders = fitted(TrainingSet(), num_steps=3, on_step=lambda *done: calls.append(done))
    assert calls == [tuple(step) for step in encoders.history]
    assert [step for step, _, _ in calls] == [1, 2, 3]
    assert not encoders.text_encoder.training
    assert not encoders.image_encoder.training


def test_bfloat16_keeps_float32_weights_and_a_like_first_loss() -> None:
    exact, rounded = (fitted(TrainingSet(), precision=precision) for precision in ("float32", "bfloat16"))
    assert weights_of(rounded).dtype == torch.float32
    assert rounded.history[0].loss == pytest.approx(exact.history[0].loss, rel=0.02)
    assert rounded.history[0].loss != exact.history[0].loss


def test_inputs_that_do_not_fit_are_refused() -> None:
    data = TrainingSet()
    data.captions = data.captions[:-1]
    with pytest.raises(ValueError, match="20 images, 20 class ids and 19 caption lists"):
        fitted(data)
    data = TrainingSet()
    data.captions[7] = []
    with pytest.raises(ValueError, match="image 7 has no caption"):
        fitted(data)
    data.captions[7] = ["fine", " "]
    with pytest.raises(ValueError, match="a caption of image 7 is empty"):
        fitted(data)
    data = TrainingSet()
    data.images = data.images[:, :60]
    with pytest.raises(ValueError, match=r"\(20, 60, 76, 3\)"):
        fitted(data)
    data = TrainingSet()
    data.class_ids[:] = 1
    with pytest.raises(ValueError, match="1 class in the training set"):
        fitted(data)


# ---- image network


def test_image_features_have_the_embeddings_shape_and_a_gradient_everywhere() -> None:
    network = ImageEncoder(embedding_dim=20)
    network.initialise(torch.Generator().manual_seed(0))
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    features = network(x)
    assert features.shape == (3, 20)
    features.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_image_features_come_from_the_centre_and_do_not_depend_on_the_batch() -> None:
    data = TrainingSet()
    network = fitted(data).image_encoder
    features = encode_images(network, data.images)
    torch.testing.assert_close(encode_images(network, data.images, batch_size=3), features)
    with torch.inference_mode():
        expected = network(_network_input(data.images[:, 6:70, 6:70]))
    torch.testing.assert_close(features, expected)
    data.images[:, :6] = data.images[:, 70:] = data.images[:, :, :6] = data.images[:, :, 70:] = 0
    assert torch.equal(encode_images(network, data.images), features)


# ---- frozen encoders


def test_an_embedding_does_not_depend_on_its_batch_or_its_place() -> None:
    encoder = frozen_encoder()
    captions = [
        "a red bird",
        "x",
        "y" * 400,
        "this bird has a long black bill and white wings",
        "a red bird",
        "wing " * 20,
    ]
    together = encoder.encode(captions)
    assert together.dtype == torch.float32
    assert together.shape == (6, 32)
    alone = torch.cat([encoder.encode([caption]) for caption in captions])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder.encode(captions, batch_size=2), together, rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder.encode(captions[::-1]), together.flip(0), rtol=0, atol=1e-6)
    assert (together[0] - together[1]).abs().max() > 1e-5
    assert encoder.encode([]).shape == (0, 32)


def test_long_captions_are_cut_and_capitals_folded() -> None:
    encoder = frozen_encoder()
    assert torch.equal(encoder.encode(["ab" * 200]), encoder.encode(["AB" * 100 + "a"]))


@pytest.mark.parametrize(
    ("caption", "message"),
    [("", "is empty"), (" \n", "is empty"), ("赤い鳥", "赤い鳥.*no character"), ("\x07\U0001f426", "no character")],
)
def test_a_caption_that_says_nothing_is_refused_by_its_place(caption: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"captions\[1\].*{message}"):
        frozen_encoder().encode(["a red bird", caption])


def test_saved_and_loaded_encoders_give_identical_output(tmp_path: Path) -> None:
    data = TrainingSet()
    encoders = fitted(data)
    save_text_encoder(tmp_path, encoders.text_encoder, encoders.image_encoder)
    loaded = load_text_encoder(tmp_path)
    with torch.inference_mode():
        expected = encoders.text_encoder(character_codes(["a red bird"]))
    assert torch.equal(loaded.encode(["a red bird"]), expected)
    assert (loaded.name, loaded.embedding_dim) == ("char_cnn_rnn", 32)
    assert len(loaded.sha256) == 64
    image_encoder = load_image_encoder(tmp_path)
    assert torch.equal(encode_images(image_encoder, data.images), encode_images(encoders.image_encoder, data.images))
    assert not any(parameter.requires_grad for parameter in [*loaded.network.parameters(), *image_encoder.parameters()])


def test_saving_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    encoders = fitted(TrainingSet())
    for folder in (tmp_path / "a", tmp_path / "b"):
        save_text_encoder(folder, encoders.text_encoder, encoders.image_encoder)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["image_encoder.json", "image_encoder.safetensors", "text_encoder.json", "text_encoder.safetensors"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_another_kind_of_encoder_is_refused_by_its_file(tmp_path: Path) -> None:
    save_text_encoder(tmp_path, frozen_encoder().network)
    config_path = tmp_path / "text_encoder.json"
    manifest = json.loads(config_path.read_text())
    manifest["config"]["encoder"] = "skip_thought"
    config_path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"text_encoder\.json.*'skip_thought'"):
        load_text_encoder(tmp_path)
    with pytest.raises(ValueError, match="image_encoder"):
        load_image_encoder(tmp_path)
