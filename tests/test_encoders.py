"""pipeline.text.encoders: a frozen char-CNN-RNN answers alike anywhere, and the snapshot says which encoder it is."""

import json
import sys
from pathlib import Path

import pytest
import torch

from pipeline.data.files import file_sha256
from pipeline.text.char_cnn_rnn import CharCnnRnn, character_codes
from pipeline.text.encoders import CharCnnRnnEncoder, load_text_encoder, save_text_encoder
from pipeline.text.image_encoders import encode_images, load_image_encoder
from pipeline.text.pretrained import snapshot_sha256
from tests.text_data import TrainingSet, fitted


def frozen_encoder(embedding_dim: int = 32) -> CharCnnRnnEncoder:
    network = CharCnnRnn(embedding_dim=embedding_dim)
    network.initialise(torch.Generator().manual_seed(0))
    return CharCnnRnnEncoder(
        name="char_cnn_rnn", network=network.eval().requires_grad_(False), embedding_dim=embedding_dim, sha256=""
    )


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


def test_a_caption_is_cut_from_the_202nd_character_on() -> None:
    encoder = frozen_encoder()
    assert encoder.reads_at_most == "201 characters"
    assert [encoder.num_cut(["ab" * 100 + tail]) for tail in ("", "a", "ab", "\u0130")] == [0, 0, 1, 1]
    assert encoder.num_cut(["a" * 202, "a", "a" * 5_000]) == 2
    assert encoder.num_cut([]) == 0


@pytest.mark.parametrize("strange", ["\U0001f426", "赤い鳥", "\x00\x07", "\ud800", "é"])
def test_characters_outside_the_alphabet_are_zero_rows_whatever_they_are(strange: str) -> None:
    # Each takes the place of one character: the rows of a one-hot matrix, all zero, as the published code has them.
    encoder = frozen_encoder()
    expected = encoder.encode(["a " + "\x01" * len(strange) + " red bird"])
    assert torch.equal(encoder.encode([f"a {strange} red bird"]), expected)
    assert not torch.equal(encoder.encode(["a red bird"]), expected)


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
    assert encoders.text_encoder is not None
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
    assert encoders.text_encoder is not None
    for folder in (tmp_path / "a", tmp_path / "b"):
        save_text_encoder(folder, encoders.text_encoder, encoders.image_encoder)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["image_encoder.json", "image_encoder.safetensors", "text_encoder.json", "text_encoder.safetensors"]
    for name in names:
        assert file_sha256(tmp_path / "a" / name) == file_sha256(tmp_path / "b" / name)


def test_another_kind_of_encoder_is_refused_by_its_file(tmp_path: Path) -> None:
    save_text_encoder(tmp_path, frozen_encoder().network)
    config_path = tmp_path / "text_encoder.json"
    manifest = json.loads(config_path.read_text())
    manifest["config"]["encoder"] = "skip_thought"
    config_path.write_text(json.dumps(manifest))
    with pytest.raises(
        ValueError, match=r"text_encoder\.json.*'skip_thought' is neither 'char_cnn_rnn' nor 'pretrained'"
    ):
        load_text_encoder(tmp_path)
    with pytest.raises(ValueError, match="image_encoder"):
        load_image_encoder(tmp_path)


def test_a_missing_torn_or_altered_snapshot_is_refused_by_its_file(tmp_path: Path) -> None:
    save_text_encoder(tmp_path, frozen_encoder().network)
    config_path, weights_path = tmp_path / "text_encoder.json", tmp_path / "text_encoder.safetensors"
    manifest, weights = config_path.read_bytes(), bytearray(weights_path.read_bytes())
    weights[-1] ^= 1
    weights_path.write_bytes(weights)
    with pytest.raises(
        ValueError, match=r"text_encoder\.safetensors is not what text_encoder\.json describes \(sha256\)"
    ):
        load_text_encoder(tmp_path)
    config_path.write_bytes(manifest[:20])
    with pytest.raises(ValueError, match=r"text_encoder\.json is torn"):
        load_text_encoder(tmp_path)
    config_path.unlink()
    with pytest.raises(ValueError, match=r"text_encoder\.json is missing: run `dvc repro`"):
        load_text_encoder(tmp_path)


def test_a_pickle_in_place_of_safetensors_is_not_read(tmp_path: Path) -> None:
    encoder = frozen_encoder()
    save_text_encoder(tmp_path, encoder.network)
    (tmp_path / "text_encoder.safetensors").unlink()
    torch.save(encoder.network.state_dict(), tmp_path / "text_encoder.bin")
    with pytest.raises(ValueError, match=r"text_encoder\.safetensors is missing"):
        load_text_encoder(tmp_path)


def test_a_pretrained_encoder_without_its_library_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = {"pooling": "mean", "normalize": True, "lower_case": False, "max_length": 8}
    config = {"encoder": "pretrained", "source": "some", "embedding_dim": 4, **form}
    (tmp_path / "pretrained").mkdir()
    sha256 = snapshot_sha256(tmp_path / "pretrained", config)
    manifest = {"contract": "snapshot/v1", "sha256": sha256, "config": config}
    (tmp_path / "text_encoder.json").write_text(json.dumps(manifest))
    monkeypatch.setitem(sys.modules, "transformers", None)  # what an import of it meets where it is not installed
    with pytest.raises(ValueError, match=r"needs transformers .*pip install '\.\[pretrained\]'"):
        load_text_encoder(tmp_path)
