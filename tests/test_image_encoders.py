"""pipeline.text.image_encoders: which pixels features come from, and what a projection of another network's keeps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.text.image_encoders import (
    FeatureProjection,
    ImageEncoder,
    Images,
    encode_images,
    load_image_encoder,
    network_input,
    save_image_encoder,
    ten_view_features,
)
from tests.text_data import TrainingSet, fitted


@dataclass(frozen=True)
class CornerPixels:
    """The simplest frozen network: the first pixel of the first and of the last column, 6 numbers from 0 to 1."""

    sha256: str = "abc"
    class_ids: Sequence[int] = (1, 2)
    crop_size: int = 64
    feature_dim: int = 6

    def features(self, images: Images, batch_size: int) -> torch.Tensor:
        return torch.from_numpy(images[:, 0][:, [0, -1]].reshape(-1, 6) / np.float32(255))


def test_pixels_0_and_255_become_minus_one_and_one() -> None:
    x = network_input(np.array([0, 255, 51], dtype=np.uint8).reshape(1, 1, 1, 3))
    assert x.shape == (1, 3, 1, 1)
    assert x.flatten().tolist() == pytest.approx([-1, 1, -0.6])


def test_image_features_have_the_embeddings_shape_and_a_gradient_everywhere() -> None:
    network = ImageEncoder(embedding_dim=20)
    network.initialise(torch.Generator().manual_seed(0))
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    features = network(x)
    assert features.shape == (3, 20)
    features.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_image_features_come_from_the_centre_and_do_not_depend_on_the_batch() -> None:
    data = TrainingSet()
    network = fitted(data).image_encoder
    features = encode_images(network, data.images)
    torch.testing.assert_close(encode_images(network, data.images, batch_size=3), features)
    with torch.inference_mode():
        expected = network(network_input(data.images[:, 6:70, 6:70]))
    torch.testing.assert_close(features, expected)
    data.images[:, :6] = data.images[:, 70:] = data.images[:, :, :6] = data.images[:, :, 70:] = 0
    assert torch.equal(encode_images(network, data.images), features)


# ---- projections of another network's features


def test_the_ten_views_are_centre_and_corners_plain_and_mirrored() -> None:
    y, x = np.mgrid[:76, :76].astype(np.uint8)
    images = np.stack((y, x, np.full_like(x, 7)), axis=2)[None].repeat(3, axis=0)
    images[1:] += 100
    views = ten_view_features(images, CornerPixels(), batch_size=2)
    assert views.shape == (3, 10, 6)
    first, second = (views[1] * 255).round().int().split(5)
    places = [(6, 6), (0, 0), (0, 12), (12, 0), (12, 12)]
    assert first.tolist() == [[100 + top, 100 + left, 107, 100 + top, 163 + left, 107] for top, left in places]
    assert torch.equal(second, first[:, [3, 4, 5, 0, 1, 2]])


def test_a_projection_is_linear_in_the_features_of_the_whole_picture() -> None:
    images = TrainingSet().images
    projection = FeatureProjection(CornerPixels(), embedding_dim=8)
    projection.initialise(torch.Generator().manual_seed(0))
    expected = CornerPixels().features(images, 1) @ projection.project.weight.T
    torch.testing.assert_close(encode_images(projection, images), expected.detach())
    assert projection.project.weight.std().item() == pytest.approx(6**-0.5, rel=0.3)


def test_a_projection_is_loaded_onto_its_own_network_alone(tmp_path: Path) -> None:
    images = TrainingSet().images
    projection = FeatureProjection(CornerPixels(), embedding_dim=8)
    save_image_encoder(tmp_path, projection)
    loaded = load_image_encoder(tmp_path, source=CornerPixels())
    assert torch.equal(encode_images(loaded, images), encode_images(projection, images))
    for other in (None, CornerPixels(sha256="abd")):
        with pytest.raises(ValueError, match="trained on another classifier's features; rerun `dvc repro`"):
            load_image_encoder(tmp_path, source=other)
