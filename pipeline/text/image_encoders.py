"""The image encoder beside a text encoder: a small network of its own, or a projection of another network's features.

It is trained in pipeline.text.fitting, and gives a picture a vector whose dot product with a caption's embedding says
how well they fit.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.snapshots import load_snapshot, save_snapshot

Images = NDArray[np.uint8]  # (N, S, S, 3)

IMAGE_SIZE = 64  # pixels a side that the image network sees; images come larger, for the random crop
SNAPSHOT = "image_encoder"


class ImageFeatures(Protocol):
    """A frozen network whose features of pictures may take the place of the joint network's."""

    @property
    def sha256(self) -> str:
        """Return the hash of its weights."""
        ...

    @property
    def class_ids(self) -> Sequence[int]:
        """Return the classes that it was trained on."""
        ...

    @property
    def crop_size(self) -> int:
        """Return the side of the pictures that it was trained on, in pixels."""
        ...

    @property
    def feature_dim(self) -> int:
        """Return the number of features."""
        ...

    def features(self, images: Images, batch_size: int) -> Tensor:
        """Return (N, feature_dim) float32 on the CPU for (N, S, S, 3) uint8 images of any S."""
        ...


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


class FeatureProjection(nn.Module):
    """One Linear on the features of a frozen network, in place of an `ImageEncoder`.

    Args:
        source: the frozen network; its weights are no part of this module's.
        embedding_dim: length of the image feature, equal to the text embedding's.
    """

    def __init__(self, source: ImageFeatures, *, embedding_dim: int) -> None:
        super().__init__()
        self.source, self.embedding_dim = source, embedding_dim
        self.project = nn.Linear(source.feature_dim, embedding_dim)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the projection from normal(0, 1 / inputs)."""
        nn.init.normal_(self.project.weight, std=self.project.in_features**-0.5, generator=generator)
        nn.init.zeros_(self.project.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(N, feature_dim) -> (N, embedding_dim)."""
        return self.project(features)


AnyImageEncoder = ImageEncoder | FeatureProjection


def encode_images(image_encoder: AnyImageEncoder, images: Images, batch_size: int = 256) -> Tensor:
    """Features of (N, S, S, 3) uint8 images: (N, embedding_dim) float32 on the CPU.

    An `ImageEncoder` sees the central 64x64, the network behind a `FeatureProjection` the whole picture, resized.
    """
    if isinstance(image_encoder, FeatureProjection):
        features = image_encoder.source.features(images, batch_size)
        with torch.no_grad():
            return image_encoder(features.to(image_encoder.project.weight.device)).cpu()
    central = central_crop(images, IMAGE_SIZE)
    device = image_encoder.project.weight.device
    features = torch.empty(len(images), image_encoder.embedding_dim)
    image_encoder.eval()
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = network_input(central[start : start + batch_size])
            features[start : start + batch_size] = image_encoder(batch.to(device)).cpu()
    return features


def central_crop(images: Images, size: int) -> Images:
    """Return the central (N, size, size, 3) of images at least as large, as a view."""
    top, left = (images.shape[1] - size) // 2, (images.shape[2] - size) // 2
    return images[:, top : top + size, left : left + size]


def ten_view_features(images: Images, source: ImageFeatures, batch_size: int = 64) -> Tensor:
    """Features of the published ten views of (N, S, S, 3) images, centre first: (N, 10, feature_dim) float32.

    The views are the centre and the corners, crop_size pixels a side, plain and mirrored.
    """
    size, rest = source.crop_size, images.shape[1] - source.crop_size
    corners = [(rest // 2, rest // 2), (0, 0), (0, rest), (rest, 0), (rest, rest)]
    views = torch.empty(len(images), 2 * len(corners), source.feature_dim)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        for view, (top, left) in enumerate(corners):
            crops = batch[:, top : top + size, left : left + size]
            views[start : start + batch_size, view] = source.features(crops, batch_size)
            views[start : start + batch_size, view + 5] = source.features(crops[:, :, ::-1], batch_size)
    return views


def save_image_encoder(folder: Path, image_encoder: AnyImageEncoder) -> None:
    """Write what was trained of an image encoder as snapshot `image_encoder` into `folder`."""
    config: dict[str, object] = {"embedding_dim": image_encoder.embedding_dim}
    if isinstance(image_encoder, FeatureProjection):
        config |= {"features_sha256": image_encoder.source.sha256}
    else:
        config |= {"conv_dims": list(image_encoder.conv_dims)}
    save_snapshot(folder, SNAPSHOT, image_encoder, config)


def load_image_encoder(folder: Path, device: str = "cpu", source: ImageFeatures | None = None) -> AnyImageEncoder:
    """Read the image encoder that `save_image_encoder` wrote, in evaluation mode.

    Args:
        folder: of the snapshot.
        device: torch device.
        source: the frozen network, for a `FeatureProjection`; an `ImageEncoder` needs none.

    Raises:
        ValueError: the snapshot is missing or altered, or it was trained on features of another network.
    """
    snapshot = load_snapshot(folder, SNAPSHOT)
    config = snapshot.config
    if "features_sha256" not in config:
        network = ImageEncoder(embedding_dim=config["embedding_dim"], conv_dims=config["conv_dims"])
    elif source is None or source.sha256 != config["features_sha256"]:
        raise ValueError(f"{folder}: its image encoder was trained on another classifier's features; rerun `dvc repro`")
    else:
        network = FeatureProjection(source, embedding_dim=config["embedding_dim"])
    network.load_state_dict(snapshot.state)
    return network.to(device).eval().requires_grad_(False)


def network_input(images: Images) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() * (2 / 255) - 1
