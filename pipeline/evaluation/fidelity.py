"""How far generated pictures are from real ones, in the features of the classifier that scores them: FID, KID and more.

Computed by torch-fidelity, on features of our own network: figures on ImageNet's features, as papers report them, are
other numbers. All of them depend on how many pictures are compared, which the protocol therefore names.
"""

from typing import NamedTuple

import torch
from torch import Tensor

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000  # or all pictures, where there are fewer
NEIGHBOURHOOD = 3  # a picture's ball reaches to its third neighbour
_ROWS_AT_ONCE = 1000  # whose distances to all others are in memory: 240 MB with 30,000 of them


class Fidelity(NamedTuple):
    """Distances between two sets of pictures.

    Attributes:
        fid: Fréchet distance between normal distributions fitted to the features (Heusel et al., 2017), from 0.
        kid: squared maximum mean discrepancy with a cubic kernel (Bińkowski et al., 2018), unbiased: 0 on average
            between two draws of one distribution, so it may fall below.
        precision: share of generated pictures inside the manifold of the real ones (Kynkäänniemi et al., 2019).
        recall: share of real pictures inside the manifold of the generated ones.
    """

    fid: float
    kid: float
    precision: float
    recall: float


def fidelity(generated: Tensor, real: Tensor, *, seed: int) -> Fidelity:
    """Compare generated pictures with real ones.

    Args:
        generated: (N, D) features.
        real: (M, D) features of the same network.
        seed: of the subsets that KID draws.

    Raises:
        ValueError: too few pictures, features of another network, or such as are not a number.
    """
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    for name, features in (("generated", generated), ("real", real)):
        if len(features) <= NEIGHBOURHOOD:
            raise ValueError(f"{len(features)} {name} pictures: FID and recall need {NEIGHBOURHOOD + 1} or more")
        if not features.isfinite().all():
            raise ValueError(f"features of {name} pictures are not a number: rerun train_classifier")
    if generated.shape[1:] != real.shape[1:]:
        raise ValueError(f"features of {generated.shape[1]} and {real.shape[1]} numbers come from two networks")
    generated, real = generated.double(), real.double()
    statistics = [fid_features_to_statistics(features) for features in (generated, real)]
    fid = fid_statistics_to_metric(*statistics, verbose=False)
    subset_size = min(KID_SUBSET_SIZE, len(generated), len(real))
    kid = kid_features_to_metric(
        generated, real, kid_subsets=KID_SUBSETS, kid_subset_size=subset_size, rng_seed=seed, verbose=False
    )
    manifolds = prc_features_to_metric(
        generated,
        real,
        prc_neighborhood=NEIGHBOURHOOD,
        prc_batch_size=_ROWS_AT_ONCE,
        save_cpu_ram=True,
        verbose=False,
    )
    return Fidelity(
        fid=max(0.0, fid["frechet_inception_distance"]),  # rounding can leave it below
        kid=kid["kernel_inception_distance_mean"],
        precision=manifolds["precision"],
        recall=manifolds["recall"],
    )


def nearest(queries: Tensor, candidates: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the nearest candidates of every query by Euclidean distance.

    Args:
        queries: (N, D).
        candidates: (M, D) with M >= count.
        count: k.

    Returns:
        (N, k) distances, ascending, exact to 1e-6 of the features' size, and (N, k) their places among the candidates.
    """
    candidates = candidates.double()
    parts = [
        torch.cdist(rows, candidates, compute_mode="use_mm_for_euclid_dist").topk(count, largest=False)
        for rows in queries.double().split(_ROWS_AT_ONCE)
    ]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])
