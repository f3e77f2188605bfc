"""How well text embeddings find pictures: the published zero-shot retrieval scores and R-precision.

Zero-shot retrieval follows Reed et al. (CVPR 2016): a class is the mean of all its captions' embeddings, a score is a
plain dot product. R-precision follows AttnGAN (Xu et al., CVPR 2018): the true caption among wrong ones, by cosine.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PUBLISHED_DEPTH = 50  # images retrieved a class


class RetrievalScores(NamedTuple):
    """Zero-shot retrieval over `num_classes` classes.

    top1: share of images whose own class vector scores highest (each image counts once).
    precision_at_50: mean over classes of the share of own images among the `num_retrieved` best ones.
    chance: top1 of a uniform guess. chance_precision: precision_at_50 of a random order.
    num_retrieved: 50; less only where no class has so many images, then the size of the largest class.
    """

    top1: float
    precision_at_50: float
    num_classes: int
    chance: float
    chance_precision: float
    num_retrieved: int


def class_retrieval(
    image_features: Tensor, image_class_ids: Tensor, text_features: Tensor, text_class_ids: Tensor
) -> RetrievalScores:
    """Score images against class vectors, as the published evaluation does.

    Args:
        image_features: (N, D) float.
        image_class_ids: (N,) integer.
        text_features: (M, D) float, every caption of every class.
        text_class_ids: (M,) integer, the same set of classes as the images.

    Raises:
        ValueError: a class has images and no caption, or captions and no image.
    """
    classes, image_class = torch.unique(image_class_ids, return_inverse=True)
    text_classes, text_class = torch.unique(text_class_ids, return_inverse=True)
    if not torch.equal(classes, text_classes):
        odd = sorted(set(classes.tolist()) ^ set(text_classes.tolist()))
        raise ValueError(f"classes {odd[:10]} have images or captions but not both: give both or leave the class out")
    num_classes, num_images = len(classes), len(image_class)
    class_vectors = _class_means(text_features, text_class, num_classes)
    scores = image_features.double() @ class_vectors.T  # (N, num_classes)
    top1 = (scores.argmax(dim=1) == image_class).double().mean().item()

    class_sizes = torch.bincount(image_class, minlength=num_classes)
    num_retrieved = min(PUBLISHED_DEPTH, int(class_sizes.max()))
    best_images = scores.topk(num_retrieved, dim=0).indices  # (num_retrieved, num_classes)
    own = image_class[best_images] == torch.arange(num_classes, device=scores.device)
    return RetrievalScores(
        top1=top1,
        precision_at_50=own.double().mean().item(),
        num_classes=num_classes,
        chance=1 / num_classes,
        chance_precision=(class_sizes.double() / num_images).mean().item(),
        num_retrieved=num_retrieved,
    )


def r_precision(image_features: Tensor, true_text: Tensor, wrong_text: Tensor) -> float:
    """Share of images whose true caption is nearer, by cosine similarity, than all K wrong ones; chance is 1 / (K + 1).

    An image whose true caption ties with n wrong ones at the top counts 1 / (n + 1), so features that say nothing score
    exactly chance.

    Args:
        image_features: (N, D) float.
        true_text: (N, D) float.
        wrong_text: (N, K, D) float, K captions of other pictures for each image.
    """
    num_images = len(image_features)
    if num_images == 0 or true_text.shape != image_features.shape or wrong_text.shape[::2] != image_features.shape:
        raise ValueError(
            f"image features {tuple(image_features.shape)}, true {tuple(true_text.shape)} and wrong "
            f"{tuple(wrong_text.shape)} captions do not fit: need (N, D), (N, D) and (N, K, D), N >= 1"
        )
    total = 0.0
    # In slices, as 99 wrong captions of 1024 numbers for 30,000 images would fill 24 GB in float64.
    for image, true, wrong in zip(image_features.split(64), true_text.split(64), wrong_text.split(64), strict=True):
        texts = torch.cat((true[:, None], wrong), dim=1).double()
        # Products summed row by row, not a matrix product: equal captions must give equal scores to the last bit.
        scores = (F.normalize(texts, dim=2) * F.normalize(image.double(), dim=1)[:, None]).sum(dim=2)  # (n, K + 1)
        beaten = (scores[:, 1:] > scores[:, :1]).any(dim=1)
        num_tied = (scores[:, 1:] == scores[:, :1]).sum(dim=1)
        total += torch.where(beaten, 0.0, 1 / (1 + num_tied.double())).sum().item()
    return total / num_images


def _class_means(features: Tensor, class_index: Tensor, num_classes: int) -> Tensor:
    """(num_classes, D) float64 means of the (M, D) rows of each class."""
    sums = torch.zeros(num_classes, features.shape[1], dtype=torch.float64, device=features.device)
    sums.index_add_(0, class_index, features.double())
    return sums / torch.bincount(class_index, minlength=num_classes)[:, None]
