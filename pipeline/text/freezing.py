"""Freezes a published text encoder into a snapshot: from a folder or a hub, sentence-transformers' layout or CLIP's.

A sentence-transformers folder lists its modules in modules.json. Without that list `transformers` alone wrote it, and
the mean over tokens is taken, as sentence-transformers does. What decides an embedding and is not supported, such as a
Dense module or a prompt, is refused.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline.data.files import write_json
from pipeline.data.snapshots import CONTRACT
from pipeline.text.pretrained import (
    ENCODER_KIND,
    MANIFEST_NAME,
    MODEL_DIR,
    Pooling,
    PretrainedEncoder,
    SentenceForm,
    quiet,
    read_model,
    require_transformers,
    snapshot_sha256,
)

# A caption is a sentence: a model that can read a whole book would only spend memory on it.
MOST_TOKENS = 512

HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")  # neither a pickle nor code
PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5")
CLIP_TYPES = ("clip", "clip_text_model")
POOLING_FLAGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}


def freeze_pretrained(source: str, folder: Path) -> None:
    """Write the snapshot of a published model into `folder`.

    Args:
        source: a folder, or a hub's name such as sentence-transformers/all-MiniLM-L6-v2, with @revision to pin it.
        folder: for text_encoder.json and pretrained/.

    Raises:
        ValueError: `transformers` is not installed, the model cannot be had, or it is of a kind that is not supported.
    """
    is_folder = Path(source).is_dir()
    source_dir = Path(source) if is_folder else _downloaded(source)
    transformer_dir, form = read_form(source_dir)
    _require_safetensors(transformer_dir)
    network, tokenizer = read_model(transformer_dir, form.pooling)
    limits = (form.max_length, tokenizer.model_max_length, getattr(network.config, "max_position_embeddings", None))
    form = replace(form, max_length=min(limit for limit in (*limits, MOST_TOKENS) if limit))
    encoder = PretrainedEncoder(
        name=Path(source).resolve().name if is_folder else source,
        embedding_dim=0,
        sha256="",
        network=network,
        tokenizer=tokenizer,
        form=form,
    )
    embedding_dim = _embedding_dim(encoder)

    with quiet(require_transformers()):
        network.save_pretrained(folder / MODEL_DIR)
        tokenizer.save_pretrained(folder / MODEL_DIR)
    for path in (folder / MODEL_DIR).rglob("*.safetensors"):
        path.chmod(0o644)  # the library lets only its owner read it
    config = {"encoder": ENCODER_KIND, "source": encoder.name, "embedding_dim": embedding_dim, **asdict(form)}
    sha256 = snapshot_sha256(folder / MODEL_DIR, config)
    write_json(folder / MANIFEST_NAME, {"contract": CONTRACT, "sha256": sha256, "config": config})


def read_form(source_dir: Path) -> tuple[Path, SentenceForm]:
    """Read how a published model is used: the folder of its network, and its form (max_length 0 where not stated).

    Raises:
        ValueError: a file is missing or torn, or the model is of a kind that is not supported.
    """
    modules: list[dict[str, str]] = []
    if (source_dir / "modules.json").is_file():
        modules = _read_json(source_dir / "modules.json", list)
    try:
        kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
        folders = [source_dir / module["path"] for module in modules]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{source_dir / 'modules.json'} is no list of modules ({error!r})") from None
    normalize = kinds[-1:] == ["Normalize"]
    kinds = kinds[:-1] if normalize else kinds
    transformer_dir = folders[0] if folders else source_dir
    config = _read_json(transformer_dir / "config.json")
    is_clip = config.get("model_type") in CLIP_TYPES
    if config.get("is_encoder_decoder") or ("vision_config" in config and not is_clip):
        raise ValueError(f"{transformer_dir}: {config.get('model_type')} is neither a text encoder nor CLIP")
    if is_clip and kinds in ([], ["CLIPModel"], ["Transformer"]):
        pooling: Pooling = "projection"
    elif kinds == ["Transformer", "Pooling"]:
        pooling = _pooling_of(folders[1] / "config.json")
    elif not kinds:
        pooling = "mean"
    else:
        raise ValueError(
            f"{source_dir / 'modules.json'}: modules {', '.join(kinds)} are not supported; choose a model of "
            "Transformer, Pooling and at most Normalize, or a CLIP model"
        )
    _refuse_prompt(source_dir / "config_sentence_transformers.json")
    sentence_path = transformer_dir / "sentence_bert_config.json"
    sentence = _read_json(sentence_path) if sentence_path.is_file() else {}
    return transformer_dir, SentenceForm(
        pooling=pooling,
        normalize=normalize,
        lower_case=bool(sentence.get("do_lower_case")),
        max_length=int(sentence.get("max_seq_length") or 0),
    )


def _pooling_of(path: Path) -> Pooling:
    """Read the one mode of a Pooling module: a name, or of old the only flag that is true."""
    config = _read_json(path)
    modes: Any = config.get("pooling_mode")
    if modes is None:
        flags = [key for key, used in config.items() if key.startswith("pooling_mode_") and used]
        modes = [POOLING_FLAGS.get(flag, flag) for flag in flags]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLING_FLAGS.values():
        known = ", ".join(POOLING_FLAGS.values())
        raise ValueError(
            f"{path}: pooling {', '.join(map(str, modes)) or 'of none'} is not supported; one of {known} is"
        )
    return modes[0]


def _refuse_prompt(path: Path) -> None:
    prompt = _read_json(path).get("default_prompt_name") if path.is_file() else None
    if prompt:
        raise ValueError(f"{path}: the model puts its prompt {prompt!r} before each text, which is not supported")


def _require_safetensors(model_dir: Path) -> None:
    if any(model_dir.glob("model*.safetensors")):
        return
    pickles = sorted(path.name for path in model_dir.iterdir() if path.suffix in PICKLE_ENDINGS)
    if pickles:
        raise ValueError(
            f"{model_dir} holds {pickles[0]} in place of model.safetensors; a pickle can run any code, so it is not "
            "read: take a revision that has safetensors, or save the model again with save_pretrained of transformers"
        )
    raise ValueError(f"{model_dir}: model.safetensors is missing; give a whole model")


def _embedding_dim(encoder: PretrainedEncoder) -> int:
    """Embed the longest caption there can be: what does not fit together shows here, not hours later."""
    try:
        embedding = encoder.embed_tokens(encoder.token_ids(["bird " * encoder.form.max_length]))
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        raise ValueError(f"pretrained_model {encoder.name}: it cannot embed a caption ({error})") from None
    if not embedding.isfinite().all():
        raise ValueError(f"pretrained_model {encoder.name}: its embeddings are not finite; are its weights whole?")
    return embedding.shape[1]


def _downloaded(source: str) -> Path:
    """Bring a hub's model into the hub's cache, without pickles and code."""
    require_transformers()
    from huggingface_hub import snapshot_download

    name, _, revision = source.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # no such name, no network, no room: each has an error of its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"fit_text_encoder.pretrained_model: {source!r} is no folder, and the hub does not give it ({reason}); "
            "bring the model's folder and name that"
        ) from None


def _read_json(path: Path, kind: type = dict) -> Any:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is missing or no JSON ({error}); give a whole model") from None
    if not isinstance(document, kind):
        raise ValueError(f"{path} is no JSON {kind.__name__}; give a whole model")
    return document
