"""pipeline.text.pretrained: real MiniLM answers as its own library lets it, alone, anywhere, and only unaltered."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.text.encoders import load_text_encoder
from pipeline.text.freezing import freeze_pretrained
from pipeline.text.pretrained import PretrainedEncoder, load_pretrained, pooled
from tests.pretrained_data import CAPTIONS, REASON, minilm_dir, write_bert


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> PretrainedEncoder:
    folder = tmp_path_factory.mktemp("minilm")
    freeze_pretrained(str(minilm_dir()), folder)
    return load_pretrained(folder)


@pytest.fixture
def tiny_dir(tmp_path: Path) -> Path:
    """Return the snapshot of a tiny model."""
    freeze_pretrained(str(write_bert(tmp_path / "tiny")), tmp_path / "snapshot")
    return tmp_path / "snapshot"


# ---- embeddings


def test_embeddings_equal_those_of_sentence_transformers(minilm: PretrainedEncoder) -> None:
    library = pytest.importorskip("sentence_transformers", reason=REASON)
    expected = library.SentenceTransformer(str(minilm_dir()), device="cpu").encode(list(CAPTIONS))
    embeddings = minilm.encode(CAPTIONS)
    assert (embeddings.shape, embeddings.dtype) == ((4, 384), torch.float32)
    torch.testing.assert_close(embeddings, torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_like_meanings_are_nearer_than_like_words(minilm: PretrainedEncoder) -> None:
    crimson, red, violin = minilm.encode(["a crimson bird", "this bird is red", "a crimson violin"])
    assert crimson @ red > crimson @ violin


def test_an_embedding_does_not_depend_on_its_batch_or_its_place(minilm: PretrainedEncoder) -> None:
    together = minilm.encode(CAPTIONS)
    alone = torch.cat([minilm.encode([caption]) for caption in CAPTIONS])
    for other in (alone, minilm.encode(CAPTIONS, batch_size=2), minilm.encode(CAPTIONS[::-1]).flip(0)):
        torch.testing.assert_close(other, together, rtol=0, atol=1e-5)
    assert minilm.encode([]).shape == (0, 384)


def test_a_very_long_caption_is_cut_at_the_models_length(minilm: PretrainedEncoder) -> None:
    assert minilm.form.max_length == 256  # two of them mark the caption's beginning and end
    cut, whole, shorter = minilm.encode(["bird " * 20_000, "bird " * 254, "bird " * 253])
    assert torch.equal(cut, whole)
    assert not torch.equal(cut, shorter)


def test_a_caption_is_cut_where_it_has_more_tokens_than_the_model_reads(minilm: PretrainedEncoder) -> None:
    assert minilm.reads_at_most == "254 tokens"
    assert [minilm.num_cut(["bird " * count]) for count in (1, 254, 255, 400)] == [0, 0, 1, 1]
    assert minilm.num_cut(["extraordinary " * 100]) == 0  # 1,400 characters, words of one token
    assert minilm.num_cut(["zygodactylous " * 100]) == 1  # as many, and more tokens
    assert minilm.num_cut(["bird " * 400, "a red bird", "\ud800 bird " * 400]) == 2
    assert minilm.num_cut([]) == 0


def test_what_the_tokenizer_does_not_know_is_one_unknown_token_or_nothing(minilm: PretrainedEncoder) -> None:
    plain, control, surrogate = minilm.encode(["a red bird", "a\x00 red\x07 bird\u200b", "a red \ud800 bird"])
    torch.testing.assert_close(control, plain, rtol=0, atol=1e-6)
    assert surrogate.isfinite().all()
    bird, parrot = minilm.encode(["a red \U0001f426", "a red \U0001f99c"])
    torch.testing.assert_close(bird, parrot, rtol=0, atol=1e-6)


def test_a_caption_in_another_script_is_embedded_if_the_tokenizer_has_it(minilm: PretrainedEncoder) -> None:
    embeddings = minilm.encode(["красная птица", "синяя птица", "an ÉLÉGANT bird"])
    assert (embeddings[0] - embeddings[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("", "is empty"),
        (" \t\n", "is empty"),
        ("\x07\x00", "has no word that model knows"),
        ("\U0001f426\U0001f99c", "no word"),
    ],
)
def test_a_caption_that_says_nothing_is_refused_by_its_place(
    minilm: PretrainedEncoder, caption: str, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"captions\[1\].*{message}"):
        minilm.encode(["a red bird", caption])


def test_pooling_takes_tokens_alone_and_never_the_padding() -> None:
    states = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [99.0, 99.0]], [[1.0, 2.0], [3.0, 4.0], [8.0, 0.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pooled(states, mask, "mean").tolist() == [[2.0, -3.0], [4.0, 2.0]]
    assert pooled(states, mask, "max").tolist() == [[3.0, -2.0], [8.0, 4.0]]
    assert pooled(states, mask, "cls").tolist() == [[1.0, -4.0], [1.0, 2.0]]


# ---- snapshots


def test_a_snapshot_says_what_it_is_and_is_loaded_by_its_kind(tiny_dir: Path) -> None:
    encoder = load_text_encoder(tiny_dir)
    assert isinstance(encoder, PretrainedEncoder)
    assert (encoder.name, encoder.embedding_dim, len(encoder.sha256)) == ("tiny", 24, 64)
    assert not encoder.network.training
    assert not any(parameter.requires_grad for parameter in encoder.network.parameters())


def test_a_snapshot_needs_nothing_beside_it(tiny_dir: Path, tmp_path: Path) -> None:
    before = load_text_encoder(tiny_dir)
    embeddings = before.encode(CAPTIONS)
    shutil.rmtree(tmp_path / "tiny")
    shutil.move(tiny_dir, tmp_path / "elsewhere")
    after = load_text_encoder(tmp_path / "elsewhere")
    assert after.sha256 == before.sha256
    assert torch.equal(after.encode(CAPTIONS), embeddings)


def test_loading_is_quiet_and_leaves_the_global_generator_alone(
    tiny_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state = torch.get_rng_state()
    capfd.readouterr()
    load_text_encoder(tiny_dir)
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), state)


class Trap:
    """A pickle that leaves a trace where it is read."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_a_pickle_in_place_of_safetensors_is_refused_unread(tiny_dir: Path, tmp_path: Path) -> None:
    (tiny_dir / "pretrained/model.safetensors").unlink()
    (tiny_dir / "pretrained/pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "trace")))
    with pytest.raises(ValueError, match=r"pretrained: files were altered, added or removed.*rerun `dvc repro`"):
        load_text_encoder(tiny_dir)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_an_altered_or_missing_file_is_refused(tiny_dir: Path, name: str) -> None:
    path = tiny_dir / "pretrained" / name
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    with pytest.raises(ValueError, match="altered"):
        load_text_encoder(tiny_dir)
    path.unlink()
    with pytest.raises(ValueError, match="altered, added or removed"):
        load_text_encoder(tiny_dir)


def test_an_added_file_or_an_altered_form_is_refused(tiny_dir: Path) -> None:
    manifest_path = tiny_dir / "text_encoder.json"
    whole = manifest_path.read_text()
    manifest = json.loads(whole)
    manifest["config"]["normalize"] = True
    manifest_path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="altered"):
        load_text_encoder(tiny_dir)
    manifest_path.write_text(whole)
    load_text_encoder(tiny_dir)
    (tiny_dir / "pretrained/special_tokens_map.json").write_text("{}")
    with pytest.raises(ValueError, match="added"):
        load_text_encoder(tiny_dir)


def test_a_torn_manifest_or_another_contract_is_refused(tiny_dir: Path) -> None:
    manifest_path = tiny_dir / "text_encoder.json"
    whole = manifest_path.read_text()
    manifest_path.write_text(whole.replace("snapshot/v1", "snapshot/v9"))
    with pytest.raises(ValueError, match="contract 'snapshot/v9' is not 'snapshot/v1'"):
        load_text_encoder(tiny_dir)
    manifest_path.write_text(whole.replace('"pooling"', '"pulling"'))
    with pytest.raises(ValueError, match=r"text_encoder\.json is missing or torn"):
        load_text_encoder(tiny_dir)
    manifest_path.write_text(whole[:30])
    with pytest.raises(ValueError, match=r"text_encoder\.json is torn"):
        load_text_encoder(tiny_dir)
