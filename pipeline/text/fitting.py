"""Training of the text encoder, jointly with a small image network.

It follows the published schedule (Reed et al., CVPR 2016): batches of distinct classes, one image and one caption of
each, RMSprop, a learning rate that falls once per "epoch" of as many steps as there are classes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.text.char_cnn_rnn import CharCnnRnn, Rnn, joint_embedding_loss
from pipeline.text.encoders import IMAGE_SIZE, ImageEncoder, checked_codes, network_input


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
    sampler = PairSampler(images, class_ids, captions, batch_size=batch_size, seed=seed)
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
            raise FloatingPointError(f"loss is {done.loss} at step {done.step}: lower fit_text_encoder.learning_rate")
        history.append(done)
        if on_step is not None:
            on_step(*done)
    return FittedEncoders(text_encoder.eval(), image_encoder.eval(), history)


class PairSampler:
    """Draws the pairs of a step: distinct classes, one image of each and one of that image's captions.

    Args:
        images: as `fit_text_encoder`'s, as are class_ids and captions.
        class_ids: (N,) any integers.
        captions: N lists of at least one caption.
        batch_size: distinct classes a step; all of them where there are fewer.
        seed: step t draws from (seed, t) alone.

    Raises:
        ValueError: the three inputs do not fit together, or a caption cannot be encoded.
    """

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
        self._codes = checked_codes(flat, lambda index: f"a caption of image {owners[index]}").to(torch.uint8)
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
        crops = random_crops(self._images, rows, rng)
        return network_input(crops), self._codes[torch.from_numpy(caption_rows)].long()


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


def random_crops(images: NDArray[np.uint8], rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Crops (B, 64, 64, 3) of `rows` at uniform places, borders included; half of them mirrored."""
    top, left = (rng.integers(side - IMAGE_SIZE + 1, size=(len(rows), 1)) for side in images.shape[1:3])
    along = np.arange(IMAGE_SIZE)
    mirrored = rng.random((len(rows), 1)) < 0.5
    columns = left + np.where(mirrored, along[::-1], along)
    return images[rows[:, None, None], (top + along)[:, :, None], columns[:, None, :]]


def _matched_share(image_features: Tensor, text_features: Tensor) -> float:
    best = (image_features @ text_features.T).argmax(dim=1)
    return (best == torch.arange(len(best), device=best.device)).float().mean().item()
