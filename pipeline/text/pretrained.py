"""Text encoders that others trained, frozen: sentence-transformers (Reimers and Gurevych 2019) and CLIP's text network.

The snapshot is text_encoder.json and a folder pretrained/ in the form of `transformers`, which loads with no network.
That library, the optional extra [pretrained], is imported where a model is read and nowhere else. Weights are read from
safetensors alone; neither a pickle nor code that a model brings is ever run. pipeline.text.freezing writes snapshots.
"""

import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.files import file_sha256
from pipeline.data.snapshots import CONTRACT

Pooling = Literal["mean", "cls", "max", "projection"]

ENCODER_KIND = "pretrained"  # what the manifest calls such an encoder
MANIFEST_NAME, MODEL_DIR = "text_encoder.json", "pretrained"


@dataclass(frozen=True, kw_only=True, slots=True)
class SentenceForm:
    """How a caption becomes tokens, and these one vector."""

    pooling: Pooling  # over tokens; `projection` is CLIP's, of the token that ends the caption
    normalize: bool  # to length 1
    lower_case: bool  # before the tokenizer
    max_length: int  # tokens, those that mark beginning and end among them; what is behind is cut


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainedEncoder:
    """A frozen encoder; `sha256` is that of its form and of all its files."""

    name: str
    embedding_dim: int
    sha256: str
    network: nn.Module
    tokenizer: Any
    form: SentenceForm

    def encode(self, captions: Sequence[str], batch_size: int = 128) -> Tensor:
        """Embed captions.

        Tokens behind `form.max_length` are cut; a character that the tokenizer does not know becomes its unknown token
        or nothing. An embedding depends on its caption alone, up to float32 rounding.

        Args:
            captions: N captions.
            batch_size: captions a forward pass; captions of like length go together, as short ones cost less.

        Returns:
            (N, embedding_dim) float32 on the CPU.

        Raises:
            ValueError: a caption is empty or holds nothing that the tokenizer knows; the message names it.
        """
        embeddings = torch.empty(len(captions), self.embedding_dim)
        if not captions:
            return embeddings
        token_ids = self.token_ids(captions)
        order = torch.tensor([len(ids) for ids in token_ids]).argsort(stable=True)
        for rows in order.split(batch_size):
            embeddings[rows] = self.embed_tokens([token_ids[row] for row in rows.tolist()])
        return embeddings

    def token_ids(self, captions: Sequence[str]) -> list[list[int]]:
        """Return the token ids of captions, at least one, with those that mark their beginning and end.

        Raises:
            ValueError: see encode.
        """
        token_ids = self._tokenized(captions, self.form.max_length)
        says_nothing = set(self.tokenizer.all_special_ids)
        for index, (caption, ids) in enumerate(zip(captions, token_ids, strict=True)):
            if not caption.strip():
                raise ValueError(f"captions[{index}] is empty: write a description or leave it out")
            if says_nothing.issuperset(ids):
                raise ValueError(f"captions[{index}] ({caption[:40]!r}) has no word that {self.name} knows: reword it")
        return token_ids

    @property
    def reads_at_most(self) -> str:
        """Return how much of a caption it reads: its tokens, without those that mark its beginning and end."""
        return f"{self.form.max_length - self.tokenizer.num_special_tokens_to_add()} tokens"

    def num_cut(self, captions: Sequence[str]) -> int:
        """Count the captions that are longer, and of which it does not see the end."""
        # One token more than it reads tells the cut ones from those that just fit.
        token_ids = self._tokenized(captions, self.form.max_length + 1)
        return sum(len(ids) > self.form.max_length for ids in token_ids)

    def _tokenized(self, captions: Sequence[str], max_length: int) -> list[list[int]]:
        """Return the ids of at most `max_length` tokens a caption."""
        if not captions:  # the library reads the first one unasked
            return []
        # Half a surrogate pair, as a damaged file may bring, is nothing that a tokenizer takes.
        texts = [caption.encode("utf-8", "replace").decode() for caption in captions]
        texts = [text.lower() for text in texts] if self.form.lower_case else texts
        return self.tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]

    def embed_tokens(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Embed B captions of at least one token each, padded to the longest: (B, embedding_dim) on the CPU."""
        lengths = torch.tensor([len(ids) for ids in token_ids])
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()  # (B, L), 1 at tokens
        ids = torch.full_like(mask, self.tokenizer.pad_token_id or 0)
        ids[mask.bool()] = torch.tensor([token for of_caption in token_ids for token in of_caption])
        device = next(self.network.parameters()).device
        ids, mask = ids.to(device), mask.to(device)
        with torch.inference_mode():
            outputs = self.network(input_ids=ids, attention_mask=mask)
            if self.form.pooling == "projection":
                embeddings = outputs.text_embeds
            else:
                embeddings = pooled(outputs.last_hidden_state, mask, self.form.pooling)
            return (F.normalize(embeddings, dim=1) if self.form.normalize else embeddings).cpu()


def pooled(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Reduce (B, L, D) states of tokens to (B, D), as sentence-transformers does; (B, L) `mask` is 1 at tokens."""
    if pooling == "cls":
        return states[:, 0]
    if pooling == "max":
        return states.masked_fill(mask[:, :, None] == 0, -torch.inf).amax(dim=1)
    return (states * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def load_pretrained(folder: Path, device: str = "cpu") -> PretrainedEncoder:
    """Read the encoder that `freeze_pretrained` wrote.

    Raises:
        ValueError: a file is missing, altered or added, or `transformers` is not installed.
    """
    manifest_path, model_dir = folder / MANIFEST_NAME, folder / MODEL_DIR
    try:
        manifest = json.loads(manifest_path.read_text())
        contract, expected, config = manifest["contract"], manifest["sha256"], dict(manifest["config"])
        form = SentenceForm(**{field.name: config[field.name] for field in fields(SentenceForm)})
        name, embedding_dim = config["source"], config["embedding_dim"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{manifest_path} is missing or torn ({error!r}); rerun `dvc repro`") from None
    if contract != CONTRACT:
        raise ValueError(f"{manifest_path}: contract {contract!r} is not {CONTRACT!r}; rerun `dvc repro`")
    if snapshot_sha256(model_dir, config) != expected:
        raise ValueError(
            f"{model_dir}: files were altered, added or removed since {MANIFEST_NAME} was written (sha256); "
            "rerun `dvc repro`"
        )
    network, tokenizer = read_model(model_dir, form.pooling)
    return PretrainedEncoder(
        name=name,
        embedding_dim=embedding_dim,
        sha256=expected,
        network=network.to(device),
        tokenizer=tokenizer,
        form=form,
    )


def snapshot_sha256(model_dir: Path, config: Mapping[str, object]) -> str:
    """Return one sha256 of the manifest's config and of the name and bytes of every file in `model_dir`."""
    files = {
        path.relative_to(model_dir).as_posix(): file_sha256(path) for path in model_dir.rglob("*") if path.is_file()
    }
    return hashlib.sha256(json.dumps({"config": config, "files": files}, sort_keys=True).encode()).hexdigest()


class Model(NamedTuple):
    """A network of `transformers` in evaluation mode, float32, on the CPU, and its tokenizer."""

    network: Any
    tokenizer: Any


def read_model(model_dir: Path, pooling: Pooling) -> Model:
    """Read a model from a folder in the form of `transformers`, and from nowhere else.

    Raises:
        ValueError: `transformers` is not installed, or cannot read the folder.
    """
    transformers = require_transformers()
    kind = transformers.CLIPTextModelWithProjection if pooling == "projection" else transformers.AutoModel
    try:
        # Some models lack a head that is read nowhere here but saved all the same: seeded, it is the same each time.
        with quiet(transformers), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network, found = kind.from_pretrained(
                model_dir,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                model_dir, trust_remote_code=False, local_files_only=True
            )
    except Exception as error:  # a missing, torn or unknown file: each has an error of its own
        raise ValueError(f"{model_dir}: transformers cannot read it: {' '.join(str(error).split())}") from None
    lost = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
    if lost:
        raise ValueError(f"{model_dir}: {len(lost)} weights are missing ({lost[0]}): give a whole model")
    return Model(network.eval().requires_grad_(False), tokenizer)


def require_transformers() -> Any:
    """Import the optional library.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            f"a pretrained text encoder needs transformers ({error}): pip install '.[pretrained]'"
        ) from None
    return transformers


@contextmanager
def quiet(transformers: Any) -> Generator[None]:
    """Keep the library's progress bars and tables of unused weights from a stage's log."""
    logging = transformers.utils.logging
    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()
