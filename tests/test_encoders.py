"""pipeline.text.encoders: features come from the centre, and frozen encoders answer alike anywhere."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.text.char_cnn_rnn import CharCnnRnn, character_codes
from pipeline.text.encoders import (
    ImageEncoder,
    TextEncoder,
    encode_images,
    load_image_encoder,
    load_text_encoder,
    network_input,
    save_text_encoder,
)
from tests.text_data import TrainingSet, fitted


def frozen_encoder(embedding_dim: int = 32) -> TextEncoder:
    network = CharCnnRnn(embedding_dim=embedding_dim)
    network.initialise(torch.Generator().manual_seed(0))
    return TextEncoder(
        name="char_cnn_rnn", network=network.eval().requires_grad_(False), embedding_dim=embedding_dim, sha256=""
    )


# ---- image network


def test_pixels_0_and_255_become_minus_one_and_one() -> None:
    x = network_input(np.array([0, 255, 51], dtype=np.uint8).reshape(1, 1, 1, 3))
    assert x.shape == (1, 3, 1, 1)
    assert x.flatten().tolist() == pytest.approx([-1, 1, -0.6])


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
        expected = network(network_input(data.images[:, 6:70, 6:70]))
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
