"""Text encoders, frozen into snapshots and used to embed any caption: the char-CNN-RNN, or a pretrained one.

The char-CNN-RNN is trained in pipeline.text.fitting, jointly with the image encoder whose snapshot lies beside its own.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.data.snapshots import load_snapshot, save_snapshot
from pipeline.text.char_cnn_rnn import ALPHABET, READS_AT_MOST, CharCnnRnn, character_codes, num_cut
from pipeline.text.image_encoders import AnyImageEncoder, save_image_encoder
from pipeline.text.pretrained import ENCODER_KIND as PRETRAINED
from pipeline.text.pretrained import load_pretrained

SNAPSHOT = "text_encoder"

_CHAR_CNN_RNN = "char_cnn_rnn"


class TextEncoder(Protocol):
    """A frozen text encoder, the same for training, evaluation and generation."""

    @property
    def name(self) -> str:
        """Return what reports call it."""
        ...

    @property
    def embedding_dim(self) -> int:
        """Return the length of an embedding."""
        ...

    @property
    def sha256(self) -> str:
        """Return the hash of its weights, and of what else decides an embedding."""
        ...

    @property
    def network(self) -> nn.Module:
        """Return the network."""
        ...

    def encode(self, captions: Sequence[str], batch_size: int = 128) -> Tensor:
        """Embed N captions, each on its own whatever the batch: (N, embedding_dim) float32 on the CPU.

        Raises:
            ValueError: a caption is empty or says nothing to the encoder; the message names it.
        """
        ...

    @property
    def reads_at_most(self) -> str:
        """Return how much of a caption it reads, such as "201 characters"."""
        ...

    def num_cut(self, captions: Sequence[str]) -> int:
        """Count the captions that are longer, and of which it does not see the end."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class CharCnnRnnEncoder:
    """A frozen char-CNN-RNN; `sha256` is that of its weights."""

    name: str
    network: CharCnnRnn
    embedding_dim: int
    sha256: str

    def encode(self, captions: Sequence[str], batch_size: int = 128) -> Tensor:
        """Embed captions.

        Characters behind the 201st are cut, those outside the alphabet become zero rows (like padding), capitals are
        folded. An embedding depends on its caption alone, up to float32 rounding.

        Args:
            captions: N captions.
            batch_size: captions a forward pass; the more, the more windows of characters they share.

        Returns:
            (N, embedding_dim) float32 on the CPU.

        Raises:
            ValueError: a caption is empty or holds no character of the alphabet; the message names it.
        """
        codes = checked_codes(captions, lambda index: f"captions[{index}]")
        device = self.network.project.weight.device
        with torch.inference_mode():
            return torch.cat([self.network(batch.to(device)).cpu() for batch in codes.split(batch_size)])

    @property
    def reads_at_most(self) -> str:
        """Return how much of a caption it reads."""
        return READS_AT_MOST

    def num_cut(self, captions: Sequence[str]) -> int:
        """Count the captions that are longer, and of which it does not see the end."""
        return num_cut(captions)


def save_text_encoder(folder: Path, text_encoder: CharCnnRnn, image_encoder: AnyImageEncoder | None = None) -> None:
    """Write the networks as snapshots `text_encoder` and, if given, `image_encoder` into `folder`."""
    config: Mapping[str, object] = {
        "encoder": _CHAR_CNN_RNN,
        "conv_dims": list(text_encoder.conv_dims),
        "rnn": text_encoder.rnn_kind,
        "embedding_dim": text_encoder.embedding_dim,
    }
    if image_encoder is not None:
        save_image_encoder(folder, image_encoder)
    save_snapshot(folder, SNAPSHOT, text_encoder, config)


def load_text_encoder(folder: Path, device: str = "cpu") -> TextEncoder:
    """Read the text encoder that `save_text_encoder` or `freeze_pretrained` wrote.

    Raises:
        ValueError: the snapshot is missing, altered, or of another kind of encoder, or `transformers`, which a
            pretrained encoder needs, is not installed.
    """
    if _kind_of_encoder(folder) == PRETRAINED:
        return load_pretrained(folder, device)
    snapshot = load_snapshot(folder, SNAPSHOT)
    config = snapshot.config
    if config.get("encoder") != _CHAR_CNN_RNN:
        config_path = folder / f"{SNAPSHOT}.json"
        raise ValueError(
            f"{config_path}: encoder {config.get('encoder')!r} is neither {_CHAR_CNN_RNN!r} nor {PRETRAINED!r}; "
            "rerun `dvc repro`"
        )
    conv1_dim, conv2_dim, hidden_dim = config["conv_dims"]
    network = CharCnnRnn(
        conv_dims=(conv1_dim, conv2_dim, hidden_dim), rnn=config["rnn"], embedding_dim=config["embedding_dim"]
    )
    network.load_state_dict(snapshot.state)
    network.to(device).eval().requires_grad_(False)
    return CharCnnRnnEncoder(
        name=_CHAR_CNN_RNN, network=network, embedding_dim=network.embedding_dim, sha256=snapshot.sha256
    )


def _kind_of_encoder(folder: Path) -> str | None:
    """Return what the manifest calls its encoder; None where it is missing, of which `load_snapshot` says more."""
    path = folder / f"{SNAPSHOT}.json"
    try:
        return json.loads(path.read_text())["config"]["encoder"] if path.is_file() else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is torn ({error!r}); rerun `dvc repro`") from None


def checked_codes(captions: Sequence[str], place_of: Callable[[int], str]) -> Tensor:
    """`character_codes` of captions that all say something.

    Args:
        captions: N captions.
        place_of: how a message names the caption of an index.

    Returns:
        (N, 201) int64, 0 is padding.

    Raises:
        ValueError: a caption is empty or holds no character of the alphabet; the message names it by its place.
    """
    codes = character_codes(captions)
    for index, (caption, known) in enumerate(zip(captions, codes.any(dim=1).tolist(), strict=True)):
        if not caption.strip():
            raise ValueError(f"{place_of(index)} is empty: write a description or leave it out")
        if not known:
            known_ones = f"has no character that the encoder knows, which are {ALPHABET!r}"
            raise ValueError(f"{place_of(index)} ({caption[:40]!r}) {known_ones}: write it in those")
    return codes
