"""A small training set of colours and a short training on it, for the tests of the text encoder."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.text.fitting import FittedEncoders, fit_text_encoder

COLOURS = {"red": (210, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220), "white": (250, 250, 250)}
TEMPLATES = ("this bird is {}", "a small {} bird", "the {} bird flies")


class TrainingSet:
    """Four classes of one colour, five noisy 76x76 images each, three captions an image."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        colours = np.repeat(np.array(list(COLOURS.values())), 5, axis=0)
        noisy = colours[:, None, None, :] + rng.normal(0, 20, (20, 76, 76, 3))
        self.images: NDArray[np.uint8] = noisy.clip(0, 255).astype(np.uint8)
        self.class_ids = np.repeat([5, 2, 9, 4], 5)
        self.captions = [[line.format(word) for line in TEMPLATES] for word in COLOURS for _ in range(5)]


def fitted(
    data: TrainingSet, *, num_steps: int = 2, seed: int = 0, lr_decay: float = 0.98, **others: Any
) -> FittedEncoders:
    return fit_text_encoder(
        data.images,
        data.class_ids,
        data.captions,
        rnn="gru",
        conv_dims=(64, 64, 64),
        embedding_dim=32,
        num_steps=num_steps,
        batch_size=40,
        learning_rate=7e-4,
        lr_decay=lr_decay,
        seed=seed,
        **others,
    )


def weights_of(encoders: FittedEncoders) -> torch.Tensor:
    networks = (encoders.text_encoder, encoders.image_encoder)
    parameters = [parameter for network in networks if network for parameter in network.parameters()]
    return torch.cat([parameter.detach().flatten() for parameter in parameters])
