"""FID, KID, precision and recall against closed forms, and nearest neighbours against a search by hand."""

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor

from pipeline.evaluation.fidelity import fidelity, nearest


def normal(count: int, dim: int, seed: int) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_set_is_at_distance_zero_from_itself_and_covers_itself() -> None:
    features = normal(200, 16, 0).float()
    found = fidelity(features, features.clone(), seed=0)
    assert found.fid == pytest.approx(0, abs=1e-6)
    # KID is unbiased: it leaves a picture's likeness to itself out on both sides, but not between them.
    assert found.kid < 0.01
    assert (found.precision, found.recall) == (1, 1)


@pytest.mark.slow
def test_fid_is_the_closed_form_between_two_normal_distributions() -> None:
    """Rows with exactly the mean and covariance asked for: the distance of the distributions themselves."""
    dim = 6
    means = [np.zeros(dim), np.linspace(-1, 2, dim)]
    factors = [normal(dim, dim, seed).numpy() for seed in (1, 2)]
    covariances = [factor @ factor.T + 0.1 * np.eye(dim) for factor in factors]
    rows: list[Tensor] = []
    for seed, (mean, covariance) in enumerate(zip(means, covariances, strict=True)):
        raw = normal(500, dim, 3 + seed).numpy()
        centred = raw - raw.mean(axis=0)
        white = np.linalg.solve(np.linalg.cholesky(np.cov(centred, rowvar=False)), centred.T)
        rows.append(torch.from_numpy((np.linalg.cholesky(covariance) @ white).T + mean))
    root = linalg.sqrtm(covariances[0] @ covariances[1])
    expected = np.square(means[0] - means[1]).sum() + np.trace(covariances[0] + covariances[1] - 2 * root.real)
    assert fidelity(rows[0], rows[1], seed=0).fid == pytest.approx(expected, rel=1e-8)


def test_kid_is_the_unbiased_discrepancy_of_a_cubic_kernel() -> None:
    one, other = normal(30, 5, 0), 1.5 * normal(30, 5, 1) + 0.3

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / 5 + 1) ** 3

    off_diagonal = ~torch.eye(30, dtype=torch.bool)
    expected = (
        kernel(one, one)[off_diagonal].mean()
        + kernel(other, other)[off_diagonal].mean()
        - 2 * kernel(one, other).mean()
    )  # with 30 pictures every subset is the whole set
    assert fidelity(one, other, seed=0).kid == pytest.approx(expected.item(), rel=1e-9)


def test_precision_asks_the_generated_and_recall_the_real_pictures() -> None:
    """Real pictures of two kinds, generated ones of one of them: all believable, half of the kinds missing."""
    kinds = [normal(50, 3, 0), normal(50, 3, 1) + 100]
    found = fidelity(kinds[0] + 1e-4, torch.cat(kinds), seed=0)
    assert (found.precision, found.recall) == (1, 0.5)


def test_the_seed_moves_kid_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.evaluation.fidelity.KID_SUBSET_SIZE", 20)
    one, other = normal(60, 4, 0), normal(60, 4, 1) * 1.1
    a, b, again = (fidelity(one, other, seed=seed) for seed in (0, 1, 0))
    assert a == again
    assert a.kid != b.kid
    assert a._replace(kid=0) == b._replace(kid=0)


@pytest.mark.parametrize("count", [0, 3])
def test_too_few_pictures_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} generated pictures: FID and recall need 4 or more"):
        fidelity(normal(count, 4, 0), normal(10, 4, 1), seed=0)


def test_features_of_two_networks_and_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="features of 4 and 5 numbers come from two networks"):
        fidelity(normal(10, 4, 0), normal(10, 5, 1), seed=0)
    broken = normal(10, 4, 0)
    broken[3, 1] = torch.nan
    with pytest.raises(ValueError, match="features of real pictures are not a number: rerun train_classifier"):
        fidelity(normal(10, 4, 0), broken, seed=0)


def test_nearest_finds_what_a_search_by_hand_finds_in_more_rows_than_are_compared_at_once() -> None:
    queries, candidates = normal(1203, 3, 0), normal(40, 3, 1)
    distances, places = nearest(queries, candidates, 5)
    for row in (0, 999, 1000, 1202):
        by_hand = (queries[row] - candidates).square().sum(dim=1).sqrt()
        expected = by_hand.argsort()[:5]
        assert places[row].tolist() == expected.tolist()
        torch.testing.assert_close(distances[row], by_hand[expected], rtol=1e-9, atol=1e-6)


def test_a_copy_is_at_distance_zero_from_its_original() -> None:
    originals = normal(100, 512, 0)
    distances, places = nearest(originals[70:72].float(), originals.float(), 1)
    assert places[:, 0].tolist() == [70, 71]
    assert distances.max() < 1e-5
