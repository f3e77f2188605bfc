"""Training of the text encoder and of the image encoder beside it, or of the latter alone where the text is frozen.

It follows the published schedule (Reed et al., CVPR 2016): batches of distinct classes, one image and one caption of
each, RMSprop, a learning rate that falls once per "epoch" of as many steps as there are classes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.text.char_cnn_rnn import CharCnnRnn, Rnn, joint_embedding_loss
from pipeline.text.encoders import checked_codes
from pipeline.text.image_encoders import (
    IMAGE_SIZE,
    AnyImageEncoder,
    FeatureProjection,
    ImageEncoder,
    ImageFeatures,
    Images,
    network_input,
    ten_view_features,
)

Rows = NDArray[np.int64]


class FitStep(NamedTuple):
    """What one training step saw: loss before the update, share of images whose own caption scored highest."""

    step: int
    loss: float
    accuracy: float


class FittedEncoders(NamedTuple):
    """The networks in evaluation mode, and every step of their training; no text network where the text was frozen."""

    text_encoder: CharCnnRnn | None
    image_encoder: AnyImageEncoder
    history: list[FitStep]


def fit_text_encoder(
    images: Images,
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
    embeddings: Tensor | None = None,
    features: ImageFeatures | None = None,
    on_step: Callable[[int, float, float], None] | None = None,
) -> FittedEncoders:
    """Train a char-CNN-RNN and an image network on the train classes, or what of them is not given.

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
        embeddings: (M, D) float32 of a frozen encoder, a row a caption in their order; then rnn, conv_dims and
            embedding_dim say nothing, and only the image encoder is trained.
        features: a frozen network of images that are at least its crop_size; then one Linear on it is trained in
            place of an image network, on the published ten views of a picture.
        on_step: called after each update with (step from 1, loss, accuracy).

    Raises:
        ValueError: the inputs do not fit together, or a caption cannot be encoded.
        FloatingPointError: the loss is no longer finite.
    """
    _check_training_set(images, class_ids, captions, features.crop_size if features else IMAGE_SIZE)
    pairs = PairSampler(class_ids, [len(of_image) for of_image in captions], batch_size=batch_size, seed=seed)
    generator = torch.Generator().manual_seed(seed)

    # Say for each side what is trained and what gives its features.
    text_encoder = None
    if embeddings is None:
        text_encoder = CharCnnRnn(conv_dims=conv_dims, rnn=rnn, embedding_dim=embedding_dim)
        text_encoder.initialise(generator)
        text_features_of = _coded_captions(captions, text_encoder, device)
    else:
        embedding_dim = embeddings.shape[1]
        text_features_of = _embedded_captions(embeddings, pairs.num_captions, device)
    if features is None:
        image_encoder = ImageEncoder(embedding_dim=embedding_dim)
        image_features_of = _cropped_images(images, image_encoder, device)
    else:
        image_encoder = FeatureProjection(features, embedding_dim=embedding_dim)
        image_features_of = _viewed_images(images, image_encoder, device)
    image_encoder.initialise(generator)

    # Train it: a batch, the loss, an update.
    networks: list[nn.Module] = [image_encoder] if text_encoder is None else [text_encoder, image_encoder]
    for network in networks:
        network.to(device).train()
    parameters = [parameter for network in networks for parameter in network.parameters()]
    optimiser = torch.optim.RMSprop(parameters, lr=learning_rate, alpha=0.99, eps=1e-8)
    history: list[FitStep] = []
    for step in range(num_steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * lr_decay ** (step // pairs.num_classes)
        image_rows, caption_rows, rng = pairs.pairs_of(step)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"):
            image_features = image_features_of(image_rows, rng).float()
            text_features = text_features_of(caption_rows).float()
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
    for network in networks:
        network.eval()
    return FittedEncoders(text_encoder, image_encoder, history)


class Pairs(NamedTuple):
    """One step's pairs: places of its B images and of a caption of each, and the generator for what else is drawn."""

    image_rows: Rows
    caption_rows: Rows
    rng: np.random.Generator


class PairSampler:
    """Draws the pairs of a step: distinct classes, one image of each and one of that image's captions.

    Args:
        class_ids: (N,) any integers.
        caption_counts: N, how many captions each image has; these are numbered through.
        batch_size: distinct classes a step; all of them where there are fewer.
        seed: step t draws from (seed, t) alone.
    """

    def __init__(
        self, class_ids: NDArray[np.integer], caption_counts: Sequence[int], *, batch_size: int, seed: int
    ) -> None:
        self._seed, self._caption_counts = seed, np.array(caption_counts)
        ends = np.cumsum(self._caption_counts)
        self._first_captions, self.num_captions = ends - self._caption_counts, int(ends[-1])
        self._by_class = np.argsort(class_ids, kind="stable")
        _, self._first_members, self._class_sizes = np.unique(
            class_ids[self._by_class], return_index=True, return_counts=True
        )
        self.num_classes = len(self._class_sizes)
        self._num_drawn = min(batch_size, self.num_classes)

    def pairs_of(self, step: int) -> Pairs:
        """Draw the pairs of a step, numbered from 0."""
        rng = np.random.default_rng((self._seed, step))
        classes = rng.choice(self.num_classes, size=self._num_drawn, replace=False)
        rows = self._by_class[self._first_members[classes] + rng.integers(self._class_sizes[classes])]
        return Pairs(rows, self._first_captions[rows] + rng.integers(self._caption_counts[rows]), rng)


def _coded_captions(captions: Sequence[Sequence[str]], network: CharCnnRnn, device: str) -> Callable[[Rows], Tensor]:
    """Return what gives captions' features by their rows, from the characters of all captions."""
    owners = [image for image, of_image in enumerate(captions) for _ in of_image]
    flat = [caption for of_image in captions for caption in of_image]
    # One byte a character: all captions of CUB take 18 MB.
    codes = checked_codes(flat, lambda index: f"a caption of image {owners[index]}").to(torch.uint8)
    return lambda rows: network(codes[torch.from_numpy(rows)].long().to(device))


def _embedded_captions(embeddings: Tensor, num_captions: int, device: str) -> Callable[[Rows], Tensor]:
    if len(embeddings) != num_captions:
        raise ValueError(f"{len(embeddings)} embeddings for {num_captions} captions: need one each")
    return lambda rows: embeddings[torch.from_numpy(rows)].to(device)


def _cropped_images(
    images: Images, network: ImageEncoder, device: str
) -> Callable[[Rows, np.random.Generator], Tensor]:
    """Return what gives images' features by their rows, each cropped and flipped anew."""
    return lambda rows, rng: network(network_input(cropped_rows(images, rows, rng)).to(device))


def _viewed_images(
    images: Images, projection: FeatureProjection, device: str
) -> Callable[[Rows, np.random.Generator], Tensor]:
    """Return what gives images' features by their rows, each from one of its views; all views are computed here."""
    views = ten_view_features(images, projection.source)  # (N, 10, F)

    def features_of(rows: Rows, rng: np.random.Generator) -> Tensor:
        drawn = rng.integers(views.shape[1], size=len(rows))
        return projection(views[torch.from_numpy(rows), torch.from_numpy(drawn)].to(device))

    return features_of


def _check_training_set(
    images: Images, class_ids: NDArray[np.integer], captions: Sequence[Sequence[str]], least_size: int
) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or min(images.shape[1:3]) < least_size:
        raise ValueError(f"images are {images.dtype} {images.shape}: need uint8 (N, S, S, 3) with S >= {least_size}")
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


def cropped_rows(images: Images, rows: Rows, rng: np.random.Generator) -> Images:
    """Crops (B, 64, 64, 3) of `rows` at uniform places, borders included; half of them mirrored."""
    top, left = (rng.integers(side - IMAGE_SIZE + 1, size=(len(rows), 1)) for side in images.shape[1:3])
    along = np.arange(IMAGE_SIZE)
    mirrored = rng.random((len(rows), 1)) < 0.5
    columns = left + np.where(mirrored, along[::-1], along)
    return images[rows[:, None, None], (top + along)[:, :, None], columns[:, None, :]]


def _matched_share(image_features: Tensor, text_features: Tensor) -> float:
    best = (image_features @ text_features.T).argmax(dim=1)
    return (best == torch.arange(len(best), device=best.device)).float().mean().item()
