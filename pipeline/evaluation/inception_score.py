"""Inception score (Salimans et al., 2016): exp of the mean KL divergence between p(y|x) and p(y), over splits.

Pure, in float64 and in log space. Published scores cannot be reproduced because their shuffles were unseeded, their
remainders dropped and their zeros put into a logarithm; here each of these is fixed. Shuffle and splits are those of
torch-fidelity (RandomState, whose stream is frozen, and cuts at i * N // num_splits), so its figures can be checked
against ours.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95
_RESAMPLES_AT_ONCE = 50  # of 30,000 pictures: 12 MB of counts


class InceptionScore(NamedTuple):
    """The scores of `num_splits` splits.

    Attributes:
        mean: of the splits' scores.
        std: population standard deviation of the splits' scores (ddof 0), as it is published.
        sample_std: the same with ddof 1; not a number for a single split.
        interval: where the mean would lie in 95 % of draws of as many other pictures (see `_interval`).
        num_splits: S.
        num_images: N, all of them scored.
    """

    mean: float
    std: float
    sample_std: float
    interval: tuple[float, float]
    num_splits: int
    num_images: int


def inception_score(
    log_probabilities: Tensor, *, num_splits: int, seed: int, sample_ids: Sequence[int] | None = None
) -> InceptionScore:
    """Score a set of pictures by the class probabilities that a classifier gives them.

    Args:
        log_probabilities: (N, K) log p(y|x) or logits, any float type; -inf is a probability of zero.
        num_splits: S parts that are scored apart, no picture dropped: sizes differ by one where S does not divide N.
        seed: of the shuffle before the split.
        sample_ids: N distinct ids. The shuffle starts from their order, so the score does not depend on the order of
            the rows; without them the rows are taken to stand in it.

    Raises:
        ValueError: fewer pictures than splits, fewer than two classes, or probabilities that are not a number.
    """
    log_p = _checked_log_softmax(log_probabilities, num_splits)
    num_images = len(log_p)
    if sample_ids is not None:
        log_p = log_p[torch.from_numpy(_order_of(sample_ids, num_images))]
    log_p = log_p[torch.from_numpy(np.random.RandomState(seed).permutation(num_images))]
    cuts = [split * num_images // num_splits for split in range(num_splits + 1)]
    splits = [log_p[start:stop] for start, stop in itertools.pairwise(cuts)]
    scores = np.array([_score(split) for split in splits])
    mean = float(scores.mean())
    sample_std = float(scores.std(ddof=1)) if num_splits > 1 else math.nan
    interval = _interval(splits, mean, np.random.default_rng(seed))
    return InceptionScore(mean, float(scores.std()), sample_std, interval, num_splits, num_images)


def _checked_log_softmax(values: Tensor, num_splits: int) -> Tensor:
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError(f"probabilities of shape {tuple(values.shape)}: the score needs (N, K) with 2 classes or more")
    if num_splits < 1 or len(values) < num_splits:
        raise ValueError(
            f"{len(values)} pictures cannot be cut into {num_splits} splits: generate more pictures or lower "
            "evaluate_inception.num_splits"
        )
    # log_softmax leaves log-probabilities as they are, so both forms may be given.
    log_p = torch.log_softmax(values.double(), dim=1)
    bad = log_p.isnan().any(dim=1)
    if bad.any():
        rows = bad.nonzero()[:, 0].tolist()
        raise ValueError(
            f"the probabilities of {len(rows)} pictures are not a number (the first is row {rows[0]}): "
            "the classifier or the pictures are broken; rerun train_classifier"
        )
    return log_p


def _order_of(sample_ids: Sequence[int], num_images: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    ids = np.asarray(sample_ids, np.int64)
    if ids.shape != (num_images,) or len(np.unique(ids)) != num_images:
        raise ValueError(f"{len(np.unique(ids))} distinct sample ids for {num_images} pictures: each needs its own")
    return np.argsort(ids)


def _score(log_p: Tensor) -> float:
    """Return exp(mean over rows of KL(row || mean row)) of (n, K) log-probabilities."""
    log_marginal = torch.logsumexp(log_p, dim=0) - math.log(len(log_p))
    # Where p is zero its term is zero, but would be computed as 0 * (-inf + inf).
    terms = torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_marginal))
    return math.exp(terms.sum(dim=1).mean().item())


def _interval(splits: Sequence[Tensor], mean: float, generator: np.random.Generator) -> tuple[float, float]:
    """Return a percentile bootstrap interval around the mean of the splits' scores.

    Pictures are drawn again within their split. A draw with repetitions holds fewer different pictures, which lowers
    the score; so the percentiles' distances from the resamples' own mean are laid around the mean of the real draw.
    """
    resampled = np.zeros(NUM_RESAMPLES)
    for log_p in splits:
        # The score is exp(sum over rows of p log p / n - sum of m log m), m being the mean row: both are linear in how
        # often each row was drawn, so all resamples are one matrix product.
        p, n = log_p.exp(), len(log_p)
        rows = torch.cat([p, torch.xlogy(p, p).sum(dim=1, keepdim=True)], dim=1)  # (n, K + 1)
        for start in range(0, NUM_RESAMPLES, _RESAMPLES_AT_ONCE):
            counts = generator.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES_AT_ONCE)
            means = torch.from_numpy(counts).double() @ rows / n
            marginal, negative_entropy = means[:, :-1], means[:, -1]
            scores = (negative_entropy - torch.xlogy(marginal, marginal).sum(dim=1)).exp()
            resampled[start : start + _RESAMPLES_AT_ONCE] += scores.numpy() / len(splits)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail)) - resampled.mean() + mean
    num_classes = splits[0].shape[1]
    return max(float(low), 1.0), min(float(high), float(num_classes))
