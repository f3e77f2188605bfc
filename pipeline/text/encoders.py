"""Text encoders: trained jointly with a small image network, frozen into snapshots, and used to embed any caption.

Training follows the published schedule (Reed et al., CVPR 2016): batches of distinct classes, one image and one caption
of each, RMSprop, a learning rate that falls once per "epoch" of as many steps as there are classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.snapshots import load_snapshot, save_snapshot
from pipeline.text.char_cnn_rnn import ALPHABET, CharCnnRnn, Rnn, character_codes, joint_embedding_loss

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


class FitStep(NamedTuple):
    """What one training step saw: loss before the update, share of images whose own caption scored highest."""

    step: int
    loss: float
    accuracy: float


class FittedEncoders(NamedTuple):
    """Both networks in evaluation mode, and every step of their training."""

    text_encoder: CharCnnRnn
    image_encoder: ImageEncoder
    history: list[FitStep]


def fit_text_encoder(
    images: NDArray[np.uint8],
    class_ids: NDArray[np.integer],
    captions: Sequence[Sequence[str]],
    *,
    rnn: Rnn,
    conv_dims: tuple[int, int, int],
    embedding_dim: int,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    lr_decay: float,
    seed: int,
    precision: Literal["float32", "bfloat16"] = "float32",
    device: str = "cpu",
    on_step: Callable[[int, float, float], None] | None = None,
) -> FittedEncoders:
    """Train a char-CNN-RNN and an image network on the train classes.

    Args:
        images: (N, S, S, 3) uint8, S >= 64, memory-mapped or not; 76 leaves the published room for a random crop.
        class_ids: (N,) any integers.
        captions: N lists of at least one caption.
        rnn: form of the text network, see `CharCnnRnn`, as are conv_dims and embedding_dim.
        conv_dims: channels of the text network's convolutions.
        embedding_dim: length of the shared embedding.
        num_steps: updates. Published: 200 times the number of classes.
        batch_size: distinct classes a step, published 40; all classes where there are fewer.
        learning_rate: RMSprop's, published 7e-4.
        lr_decay: factor once per as many steps as there are classes, published 0.98.
        seed: weights, order and augmentation; step t draws from (seed, t) alone.
        precision: `bfloat16` runs the networks under autocast; weights and loss stay float32.
        device: torch device.
        on_step: called after each update with (step from 1, loss, accuracy).

    Raises:
        ValueError: the three inputs do not fit together, or a caption cannot be encoded.
        FloatingPointError: the loss is no longer finite.
    """
    sampler = _PairSampler(images, class_ids, captions, batch_size=batch_size, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    text_encoder = CharCnnRnn(conv_dims=conv_dims, rnn=rnn, embedding_dim=embedding_dim)
    image_encoder = ImageEncoder(embedding_dim=embedding_dim)
    for network in (text_encoder, image_encoder):
        network.initialise(generator)
        network.to(device).train()
    optimiser = torch.optim.RMSprop(
        [*text_encoder.parameters(), *image_encoder.parameters()], lr=learning_rate, alpha=0.99, eps=1e-8
    )
    history: list[FitStep] = []
    for step in range(num_steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * lr_decay ** (step // sampler.num_classes)
        batch_images, codes = sampler.pairs_of(step)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"):
            image_features = image_encoder(batch_images.to(device)).float()
            text_features = text_encoder(codes.to(device)).float()
        loss = joint_embedding_loss(image_features, text_features)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

        # Record the step, and stop at once where training has blown up: its weights are of no use to anyone.
        done = FitStep(step + 1, loss.item(), _matched_share(image_features.detach(), text_features.detach()))
        if not math.isfinite(done.loss):
            raise FloatingPointError(f"loss is {done.loss} at step {done.step}: lower text_encoder.learning_rate")
        history.append(done)
        if on_step is not None:
            on_step(*done)
    return FittedEncoders(text_encoder.eval(), image_encoder.eval(), history)


def encode_images(image_encoder: ImageEncoder, images: NDArray[np.uint8], batch_size: int = 256) -> Tensor:
    """Features of (N, S, S, 3) uint8 images from their central 64x64: (N, embedding_dim) float32 on the CPU."""
    margin_y, margin_x = (images.shape[1] - IMAGE_SIZE) // 2, (images.shape[2] - IMAGE_SIZE) // 2
    central = images[:, margin_y : margin_y + IMAGE_SIZE, margin_x : margin_x + IMAGE_SIZE]
    device = image_encoder.project.weight.device
    features = torch.empty(len(images), image_encoder.embedding_dim)
    image_encoder.eval()
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = _network_input(central[start : start + batch_size])
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
        codes = _checked_codes(captions, lambda index: f"captions[{index}]")
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


class _PairSampler:
    """Draws the pairs of a step: distinct classes, one image of each and one of that image's captions."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        class_ids: NDArray[np.integer],
        captions: Sequence[Sequence[str]],
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        _check_training_set(images, class_ids, captions)
        self._images, self._seed = images, seed
        counts = np.array([len(of_image) for of_image in captions])
        owners = np.repeat(np.arange(len(captions)), counts)
        flat = [caption for of_image in captions for caption in of_image]
        # One byte a character: all captions of CUB take 18 MB.
        self._codes = _checked_codes(flat, lambda index: f"a caption of image {owners[index]}").to(torch.uint8)
        self._caption_counts, self._first_captions = counts, np.cumsum(counts) - counts
        self._by_class = np.argsort(class_ids, kind="stable")
        _, self._first_members, self._class_sizes = np.unique(
            class_ids[self._by_class], return_index=True, return_counts=True
        )
        self.num_classes = len(self._class_sizes)
        self._num_drawn = min(batch_size, self.num_classes)

    def pairs_of(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, 3, 64, 64) float32 in [-1, 1], randomly cropped and flipped, and codes (B, 201) int64."""
        rng = np.random.default_rng((self._seed, step))
        classes = rng.choice(self.num_classes, size=self._num_drawn, replace=False)
        rows = self._by_class[self._first_members[classes] + rng.integers(self._class_sizes[classes])]
        caption_rows = self._first_captions[rows] + rng.integers(self._caption_counts[rows])
        crops = _random_crops(self._images, rows, rng)
        return _network_input(crops), self._codes[torch.from_numpy(caption_rows)].long()


def _check_training_set(
    images: NDArray[np.uint8], class_ids: NDArray[np.integer], captions: Sequence[Sequence[str]]
) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or min(images.shape[1:3]) < IMAGE_SIZE:
        raise ValueError(f"images are {images.dtype} {images.shape}: need uint8 (N, S, S, 3) with S >= {IMAGE_SIZE}")
    if not len(images) == len(class_ids) == len(captions):
        raise ValueError(
            f"{len(images)} images, {len(class_ids)} class ids and {len(captions)} caption lists: need as many of each"
        )
    for row, of_image in enumerate(captions):
        if not of_image:
            raise ValueError(f"image {row} has no caption: give it one or leave the image out")
    num_classes = len(np.unique(class_ids))
    if num_classes < 2:
        raise ValueError(f"{num_classes} class in the training set: give at least 2, as classes are what is told apart")


def _checked_codes(captions: Sequence[str], place_of: Callable[[int], str]) -> Tensor:
    codes = character_codes(captions)
    for index, (caption, known) in enumerate(zip(captions, codes.any(dim=1).tolist(), strict=True)):
        if not caption.strip():
            raise ValueError(f"{place_of(index)} is empty: write a description or leave it out")
        if not known:
            known_ones = f"has no character that the encoder knows, which are {ALPHABET!r}"
            raise ValueError(f"{place_of(index)} ({caption[:40]!r}) {known_ones}: write it in those")
    return codes


def _random_crops(images: NDArray[np.uint8], rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Crops (B, 64, 64, 3) of `rows` at uniform places, borders included; half of them mirrored."""
    top, left = (rng.integers(side - IMAGE_SIZE + 1, size=(len(rows), 1)) for side in images.shape[1:3])
    along = np.arange(IMAGE_SIZE)
    mirrored = rng.random((len(rows), 1)) < 0.5
    columns = left + np.where(mirrored, along[::-1], along)
    return images[rows[:, None, None], (top + along)[:, :, None], columns[:, None, :]]


def _network_input(images: NDArray[np.uint8]) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() * (2 / 255) - 1


def _matched_share(image_features: Tensor, text_features: Tensor) -> float:
    best = (image_features @ text_features.T).argmax(dim=1)
    return (best == torch.arange(len(best), device=best.device)).float().mean().item()
