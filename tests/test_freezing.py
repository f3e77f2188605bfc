"""pipeline.text.freezing: which published models become which form, checked against their own libraries."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.data.files import file_sha256
from pipeline.text.freezing import freeze_pretrained, read_form
from pipeline.text.pretrained import PretrainedEncoder, load_pretrained
from tests.pretrained_data import CAPTIONS, REASON, minilm_dir, tokenizer, write_bert, write_clip, write_modules


def frozen(source: Path, folder: Path) -> PretrainedEncoder:
    freeze_pretrained(str(source), folder)
    return load_pretrained(folder)


@pytest.fixture
def bert_dir(tmp_path: Path) -> Path:
    return write_bert(tmp_path / "bert")


def write_pooling(folder: Path, **config: object) -> None:
    """Make a sentence-transformers folder of a plain one: modules.json and 1_Pooling/config.json."""
    write_modules(folder, ("Transformer", ""), ("Pooling", "1_Pooling"))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling/config.json").write_text(json.dumps(config))


# ---- what is frozen


def test_freezing_twice_writes_the_same_bytes_and_only_what_is_needed(tmp_path: Path, bert_dir: Path) -> None:
    for name in ("a", "b"):
        freeze_pretrained(str(bert_dir), tmp_path / name)
    names = sorted(path.relative_to(tmp_path / "a").as_posix() for path in (tmp_path / "a").rglob("*"))
    files = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert names == ["pretrained", *(f"pretrained/{name}" for name in files), "text_encoder.json"]
    for name in names[1:]:
        assert file_sha256(tmp_path / "a" / name) == file_sha256(tmp_path / "b" / name)
        assert (tmp_path / "a" / name).stat().st_mode & 0o444 == 0o444


def test_minilm_is_read_as_it_was_published() -> None:
    folder, form = read_form(minilm_dir())
    assert folder == minilm_dir()
    assert (form.pooling, form.normalize, form.lower_case, form.max_length) == ("mean", True, False, 256)


def test_a_plain_model_is_averaged_over_its_tokens(tmp_path: Path, bert_dir: Path) -> None:
    from transformers import AutoModel

    encoder = frozen(bert_dir, tmp_path / "snapshot")
    batch = tokenizer()(list(CAPTIONS), padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = AutoModel.from_pretrained(bert_dir)(**batch).last_hidden_state
    expected = [
        of_caption[mask.bool()].mean(dim=0) for of_caption, mask in zip(states, batch.attention_mask, strict=True)
    ]
    torch.testing.assert_close(encoder.encode(CAPTIONS), torch.stack(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
@pytest.mark.parametrize("normalize", [False, True])
def test_what_sentence_transformers_saves_embeds_as_it_does(
    tmp_path: Path, bert_dir: Path, mode: str, normalize: bool
) -> None:
    library = pytest.importorskip("sentence_transformers", reason=REASON)
    from sentence_transformers.sentence_transformer import modules

    parts = [
        modules.Transformer(str(bert_dir)),
        modules.Pooling(24, mode),
        *([modules.Normalize()] if normalize else []),
    ]
    model = library.SentenceTransformer(modules=parts, device="cpu")
    model.save(str(tmp_path / "saved"))
    encoder = frozen(tmp_path / "saved", tmp_path / "snapshot")
    assert (encoder.form.pooling, encoder.form.normalize) == (mode, normalize)
    torch.testing.assert_close(encoder.encode(CAPTIONS), torch.from_numpy(model.encode(list(CAPTIONS))))


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
def test_the_flags_of_older_models_say_the_same(bert_dir: Path, mode: str) -> None:
    flags = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max"}
    write_pooling(bert_dir, word_embedding_dimension=24, **{flag: mode == named for flag, named in flags.items()})
    assert read_form(bert_dir)[1].pooling == mode


def test_clip_gives_its_text_features_and_leaves_its_picture_side_behind(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip")
    encoder = frozen(tmp_path / "clip", tmp_path / "snapshot")
    assert (encoder.embedding_dim, encoder.form.pooling, encoder.form.max_length) == (12, "projection", 20)
    batch = tokenizer()(list(CAPTIONS), padding=True, truncation=True, max_length=20, return_tensors="pt")
    with torch.inference_mode():
        found = clip.get_text_features(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    expected = getattr(found, "pooler_output", found)  # before transformers 5 the features themselves
    torch.testing.assert_close(encoder.encode(CAPTIONS), expected)
    weights = load_file(tmp_path / "snapshot/pretrained/model.safetensors")
    assert not [key for key in weights if "vision" in key or "visual" in key]


def test_clip_in_the_layout_of_sentence_transformers_is_the_same_model(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip/0_CLIPModel")
    write_modules(tmp_path / "clip", ("CLIPModel", "0_CLIPModel"))
    plain = frozen(tmp_path / "clip/0_CLIPModel", tmp_path / "a")
    listed = frozen(tmp_path / "clip", tmp_path / "b")
    assert torch.equal(plain.encode(CAPTIONS), listed.encode(CAPTIONS))


def test_weights_of_half_precision_become_float32(tmp_path: Path) -> None:
    encoder = frozen(write_bert(tmp_path / "half", dtype=torch.float16), tmp_path / "snapshot")
    assert {parameter.dtype for parameter in encoder.network.parameters()} == {torch.float32}
    assert encoder.encode(CAPTIONS).dtype == torch.float32


def test_a_head_that_is_missing_and_never_read_changes_nothing(tmp_path: Path, bert_dir: Path) -> None:
    headless = frozen(write_bert(tmp_path / "headless", with_head=False), tmp_path / "a")
    again = frozen(tmp_path / "headless", tmp_path / "b")
    assert headless.sha256 == again.sha256
    assert headless.encode(CAPTIONS).isfinite().all()


def test_the_length_is_the_least_that_anything_allows(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "long", max_position_embeddings=2000)
    assert frozen(folder, tmp_path / "a").form.max_length == 512
    folder = write_bert(tmp_path / "short", max_position_embeddings=40)
    assert frozen(folder, tmp_path / "b").form.max_length == 40
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 30, "do_lower_case": true}')
    encoder = frozen(folder, tmp_path / "c")
    assert (encoder.form.max_length, encoder.form.lower_case) == (30, True)


# ---- what is refused


def refusal(source: Path | str, folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        freeze_pretrained(str(source), folder / "refused")
    assert not (folder / "refused/text_encoder.json").exists()
    return str(caught.value)


def test_a_pickle_in_place_of_safetensors_is_refused_unread_with_the_remedy(tmp_path: Path, bert_dir: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "trace"),)

    (bert_dir / "model.safetensors").unlink()
    (bert_dir / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    message = refusal(bert_dir, tmp_path)
    assert "bert holds pytorch_model.bin in place of model.safetensors" in message
    assert "save the model again with save_pretrained" in message
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "model.safetensors is missing"),
        ("config.json", "config.json is missing or no JSON"),
        ("tokenizer.json", "cannot embed a caption|cannot read it"),
    ],
)
def test_a_missing_file_is_refused(tmp_path: Path, bert_dir: Path, name: str, message: str) -> None:
    (bert_dir / name).unlink()
    (bert_dir / "vocab.txt").unlink(missing_ok=True)
    assert any(part in refusal(bert_dir, tmp_path) for part in message.split("|"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_torn_file_is_refused_by_its_folder(tmp_path: Path, bert_dir: Path, name: str) -> None:
    path = bert_dir / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert str(bert_dir) in refusal(bert_dir, tmp_path)


def test_weights_of_another_model_are_refused(tmp_path: Path, bert_dir: Path) -> None:
    write_bert(tmp_path / "wide", hidden_size=32)
    shutil.copy(tmp_path / "wide/model.safetensors", bert_dir)
    assert "transformers cannot read it" in refusal(bert_dir, tmp_path)
    write_bert(tmp_path / "flat", num_hidden_layers=1)
    shutil.copy(bert_dir / "config.json", tmp_path / "flat")
    config = json.loads((tmp_path / "flat/config.json").read_text())
    (tmp_path / "flat/config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    assert "16 weights are missing (encoder.layer.1." in refusal(tmp_path / "flat", tmp_path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, bert_dir: Path) -> None:
    from safetensors.torch import save_file

    state = load_file(bert_dir / "model.safetensors")
    state["embeddings.LayerNorm.weight"][3] = torch.nan
    save_file(state, bert_dir / "model.safetensors", metadata={"format": "pt"})
    assert "its embeddings are not finite" in refusal(bert_dir, tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pooling_mode": "lasttoken"}, "pooling lasttoken is not supported"),
        ({"pooling_mode": ["mean", "max"]}, "pooling mean, max is not supported"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "pooling pooling_mode_mean_sqrt_len_tokens is not supported"),
        ({"pooling_mode_mean_tokens": False}, "pooling of none is not supported; one of mean, cls, max is"),
    ],
)
def test_a_pooling_that_is_not_supported_is_refused(
    tmp_path: Path, bert_dir: Path, config: dict[str, Any], message: str
) -> None:
    write_pooling(bert_dir, **config)
    assert message in refusal(bert_dir, tmp_path)


def test_a_dense_module_and_a_prompt_are_refused(tmp_path: Path, bert_dir: Path) -> None:
    write_pooling(bert_dir, pooling_mode="mean")
    (bert_dir / "config_sentence_transformers.json").write_text('{"default_prompt_name": "query"}')
    assert "prompt 'query' before each text, which is not supported" in refusal(bert_dir, tmp_path)
    write_modules(bert_dir, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Normalize", "3"))
    assert "modules Transformer, Pooling, Dense are not supported" in refusal(bert_dir, tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("modules.json", '{"a": 1}', "modules.json is no JSON list"),
        ("modules.json", '[{"type": "Transformer"}]', "modules.json is no list of modules"),
        ("modules.json", "[", "modules.json is missing or no JSON"),
        ("config.json", "[]", "config.json is no JSON dict"),
        ("sentence_bert_config.json", "\xff", "sentence_bert_config.json is missing or no JSON"),
    ],
)
def test_a_list_or_config_of_another_shape_is_refused_by_its_file(
    tmp_path: Path, bert_dir: Path, name: str, text: str, message: str
) -> None:
    (bert_dir / name).write_text(text, encoding="latin-1")
    assert message in refusal(bert_dir, tmp_path)


@pytest.mark.parametrize(
    "config", [{"model_type": "t5", "is_encoder_decoder": True}, {"model_type": "siglip", "vision_config": {}}]
)
def test_what_is_no_text_encoder_is_refused_by_its_kind(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text(json.dumps(config))
    assert f"{config['model_type']} is neither a text encoder nor CLIP" in refusal(tmp_path / "other", tmp_path)


def test_code_that_a_model_brings_is_not_run(tmp_path: Path, bert_dir: Path) -> None:
    config = json.loads((bert_dir / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (bert_dir / "config.json").write_text(json.dumps(config))
    (bert_dir / "own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'trace')!r})\n")
    assert "transformers cannot read it" in refusal(bert_dir, tmp_path)
    assert not (tmp_path / "trace").exists()


def test_a_clip_text_model_without_its_projection_is_refused(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip")
    from transformers import CLIPTextModel

    CLIPTextModel.from_pretrained(tmp_path / "clip").save_pretrained(tmp_path / "text")
    tokenizer().save_pretrained(tmp_path / "text")
    assert "1 weights are missing (text_projection.weight)" in refusal(tmp_path / "text", tmp_path)


def test_what_is_neither_a_folder_nor_a_hubs_name_is_refused(tmp_path: Path) -> None:
    minilm_dir()
    message = refusal("no/such/folder", tmp_path)
    assert "fit_text_encoder.pretrained_model: 'no/such/folder' is no folder" in message
    assert "bring the model's folder" in message
