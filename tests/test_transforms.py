"""The optional albumentations pipeline: a function of a picture and its seed, refused where it cannot be one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import pytest
import yaml

from pipeline.data.transforms import PictureTransform

LIGHT = yaml.safe_load((Path(__file__).parents[1] / "conf" / "augmentation" / "light.yaml").read_text())
PICTURES = np.random.default_rng(0).integers(0, 256, (6, 20, 20, 3), dtype=np.uint8)
SEEDS = np.array([3, 1, 4, 1, 5, 9], np.int64)


def serialised(*transforms: albumentations.BasicTransform) -> dict[str, Any]:
    return albumentations.to_dict(albumentations.Compose(list(transforms)))


def test_a_picture_depends_on_its_own_seed_alone() -> None:
    transform = PictureTransform(LIGHT["train_stage1"]["transform"])
    together = transform(PICTURES, SEEDS)
    assert not (together == PICTURES).all()
    for index in (5, 0, 3):
        np.testing.assert_array_equal(transform(PICTURES[[index]], SEEDS[[index]])[0], together[index])
    same = np.stack([PICTURES[0]] * 20)
    assert len({picture.tobytes() for picture in transform(same, np.arange(20))}) > 5


def test_a_pipeline_is_what_albumentations_wrote() -> None:
    mirrored = PictureTransform(serialised(albumentations.HorizontalFlip(p=1)))(PICTURES, SEEDS)
    np.testing.assert_array_equal(mirrored, PICTURES[:, :, ::-1])


@pytest.mark.parametrize(
    ("mapping", "reason"),
    [
        ({"transform": {"__class_fullname__": "os.system", "p": 1}}, "os.system"),
        ({"transforms": []}, "transform"),
        ({"transform": 3}, "to_dict"),
        ({"__version__": "2.0.8", "transform": {"__class_fullname__": "HorizontalFlip", "p": 1}}, "no Compose"),
        ({"transform": {"__class_fullname__": "Compose", "p": 1, "transforms": [
            {"__class_fullname__": "Rotate", "p": 1, "limt": 3}]}}, "limt"),
        ({"transform": {"__class_fullname__": "Compose", "p": 1, "transforms": [
            {"__class_fullname__": "Rotate", "p": 7}]}}, "p"),
    ],
)  # fmt: skip
def test_what_is_no_pipeline_is_refused_in_one_line(mapping: Mapping[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=r"^transform .*") as refused:
        PictureTransform(mapping)
    assert reason in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "transform", [albumentations.Resize(10, 10, p=1), albumentations.Normalize(p=1), albumentations.ToGray(1, p=1)]
)
def test_a_pipeline_that_changes_shape_or_dtype_is_refused(transform: albumentations.BasicTransform) -> None:
    with pytest.raises(ValueError, match="of \\(20, 20, 3\\) uint8; take out what resizes or normalises"):
        PictureTransform(serialised(transform))(PICTURES, SEEDS)
