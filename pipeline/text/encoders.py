"""The text encoder and the image network beside it: frozen into snapshots, and used to embed any caption or picture.

Both are trained in pipeline.text.fitting.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.snapshots import load_snapshot, save_snapshot
from pipeline.text.char_cnn_rnn import ALPHABET, CharCnnRnn, character_codes

IMAGE_SIZE = 64  # pixels a side that the image network sees; images come larger, for the random crop
TEXT_SNAPSHOT, IMAGE_SNAPSHOT = "text_encoder", "image_encoder"

_ENCODER_NAME = "char_cnn_rnn"


class ImageEncoder(nn.Module):
    """A small convolutional network in place of the paper's GoogLeNet features, trained jointly with the text.

    Args:
        embedding_dim: length of the image feature, equal to the text embedding's.
        conv_dims: channels of its convolutions; each halves the side, 64 -> 4 with four of them.
    """

    def __init__(self, *, embedding_dim: int, conv_dims: Sequence[int] = (32, 64, 128, 256)) -> None:
        super().__init__()
        self.embedding_dim, self.conv_dims = embedding_dim, tuple(conv_dims)
        stages: list[nn.Module] = []
        for input_dim, output_dim in zip((3, *conv_dims), conv_dims, strict=False):
            conv = nn.Conv2d(input_dim, output_dim, kernel_size=3, stride=2, padding=1, bias=False)
            stages += [conv, nn.BatchNorm2d(output_dim), nn.ReLU()]
        self.stages = nn.Sequential(*stages)
        self.project = nn.Linear(conv_dims[-1], embedding_dim)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the convolutions from He's normal, the projection from normal(0, 1 / inputs)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        nn.init.normal_(self.project.weight, std=self.project.in_features**-0.5, generator=generator)
        nn.init.zeros_(self.project.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, 64, 64) float in [-1, 1] -> (N, embedding_dim)."""
        return self.project(self.stages(images).mean(dim=(2, 3)))


def encode_images(image_encoder: ImageEncoder, images: NDArray[np.uint8], batch_size: int = 256) -> Tensor:
    """Features of (N, S, S, 3) uint8 images from their central 64x64: (N, embedding_dim) float32 on the CPU."""
    margin_y, margin_x = (images.shape[1] - IMAGE_SIZE) // 2, (images.shape[2] - IMAGE_SIZE) // 2
    central = images[:, margin_y : margin_y + IMAGE_SIZE, margin_x : margin_x + IMAGE_SIZE]
    device = image_encoder.project.weight.device
    features = torch.empty(len(images), image_encoder.embedding_dim)
    image_encoder.eval()
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = network_input(central[start : start + batch_size])
            features[start : start + batch_size] = image_encoder(batch.to(device)).cpu()
    return features


@dataclass(frozen=True, kw_only=True, slots=True)
class TextEncoder:
    """A frozen text encoder, the same for training, evaluation and generation; `sha256` is that of its weights."""

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
            batch_size: captions a forward pass; captions of like length go together, as short ones cost less.

        Returns:
            (N, embedding_dim) float32 on the CPU.

        Raises:
            ValueError: a caption is empty or holds no character of the alphabet; the message names it.
        """
        codes = checked_codes(captions, lambda index: f"captions[{index}]")
        device = self.network.project.weight.device
        order = torch.tensor([len(caption) for caption in captions]).argsort(stable=True)
        embeddings = torch.empty(len(captions), self.embedding_dim)
        with torch.inference_mode():
            for rows in order.split(batch_size):
                embeddings[rows] = self.network(codes[rows].to(device)).cpu()
        return embeddings


def save_text_encoder(folder: Path, text_encoder: CharCnnRnn, image_encoder: ImageEncoder | None = None) -> None:
    """Write the networks as snapshots `text_encoder` and, if given, `image_encoder` into `folder`."""
    text_config: Mapping[str, object] = {
        "encoder": _ENCODER_NAME,
        "conv_dims": list(text_encoder.conv_dims),
        "rnn": text_encoder.rnn_kind,
        "embedding_dim": text_encoder.embedding_dim,
    }
    if image_encoder is not None:
        image_config: Mapping[str, object] = {
            "conv_dims": list(image_encoder.conv_dims),
            "embedding_dim": image_encoder.embedding_dim,
        }
        save_snapshot(folder, IMAGE_SNAPSHOT, image_encoder, image_config)
    save_snapshot(folder, TEXT_SNAPSHOT, text_encoder, text_config)


def load_text_encoder(folder: Path, device: str = "cpu") -> TextEncoder:
    """Read the text encoder that `save_text_encoder` wrote.

    Raises:
        ValueError: the snapshot is missing, altered, or of another kind of encoder.
    """
    snapshot = load_snapshot(folder, TEXT_SNAPSHOT)
    config = snapshot.config
    if config.get("encoder") != _ENCODER_NAME:
        config_path = folder / f"{TEXT_SNAPSHOT}.json"
        raise ValueError(
            f"{config_path}: encoder {config.get('encoder')!r} is not {_ENCODER_NAME!r}; rerun `dvc repro`"
        )
    conv1_dim, conv2_dim, hidden_dim = config["conv_dims"]
    network = CharCnnRnn(
        conv_dims=(conv1_dim, conv2_dim, hidden_dim), rnn=config["rnn"], embedding_dim=config["embedding_dim"]
    )
    network.load_state_dict(snapshot.state)
    network.to(device).eval().requires_grad_(False)
    return TextEncoder(name=_ENCODER_NAME, network=network, embedding_dim=network.embedding_dim, sha256=snapshot.sha256)


def load_image_encoder(folder: Path, device: str = "cpu") -> ImageEncoder:
    """Read the image network that `save_text_encoder` wrote, in evaluation mode.

    Raises:
        ValueError: the snapshot is missing or altered.
    """
    snapshot = load_snapshot(folder, IMAGE_SNAPSHOT)
    network = ImageEncoder(embedding_dim=snapshot.config["embedding_dim"], conv_dims=snapshot.config["conv_dims"])
    network.load_state_dict(snapshot.state)
    return network.to(device).eval().requires_grad_(False)


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


def network_input(images: NDArray[np.uint8]) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() * (2 / 255) - 1
