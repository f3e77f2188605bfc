"""pipeline.text.retrieval in closed forms and against a plain loop over images and classes."""

import pytest
import torch

from pipeline.text.retrieval import class_retrieval, r_precision


def features_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def repeated(num_classes: int, times: int) -> torch.Tensor:
    return torch.arange(num_classes).repeat_interleave(times)


def test_separate_classes_score_one() -> None:
    class_ids = repeated(4, 6) * 7 + 3
    scores = class_retrieval(torch.eye(4).repeat_interleave(6, 0), class_ids, torch.eye(4), torch.arange(4) * 7 + 3)
    assert scores == (1.0, 1.0, 4, 0.25, 0.25, 6)


def test_classes_named_in_a_circle_score_zero() -> None:
    class_ids = repeated(4, 6)
    scores = class_retrieval(torch.eye(4).repeat_interleave(6, 0), class_ids, torch.eye(4), (torch.arange(4) + 1) % 4)
    assert (scores.top1, scores.precision_at_50) == (0.0, 0.0)


def test_features_without_meaning_score_about_chance() -> None:
    class_ids = repeated(10, 60)
    scores = class_retrieval(features_of(600, 64), class_ids, features_of(600, 64, seed=1), class_ids)
    assert scores.top1 == pytest.approx(scores.chance, abs=0.05)
    assert scores.precision_at_50 == pytest.approx(scores.chance_precision, abs=0.05)
    assert scores.num_retrieved == 50


def test_scores_equal_a_loop_over_images_and_classes() -> None:
    image_ids, text_ids = repeated(5, 52)[:-9], repeated(5, 8)
    images, texts = features_of(len(image_ids), 16), features_of(len(text_ids), 16, seed=1)
    images += texts[image_ids * 8] * 0.3
    vectors = [texts[text_ids == k].double().mean(0) for k in range(5)]
    right = sum(
        max(range(5), key=lambda k: torch.dot(images[i].double(), vectors[k])) == image_ids[i]
        for i in range(len(images))
    )
    precisions = []
    for k in range(5):
        ranked = sorted(range(len(images)), key=lambda i: -torch.dot(images[i].double(), vectors[k]))
        precisions.append(sum(image_ids[i] == k for i in ranked[:50]) / 50)
    scores = class_retrieval(images, image_ids, texts, text_ids)
    assert scores.top1 == pytest.approx(float(right) / len(images))
    assert scores.precision_at_50 == pytest.approx(float(sum(precisions)) / 5)
    assert scores.chance_precision == pytest.approx(0.2)


def test_class_vector_is_the_mean_of_captions_not_their_sum() -> None:
    texts = torch.tensor([[1.0, 0.0], [0.4, 0.0], [0.4, 0.0], [0.4, 0.0]])
    scores = class_retrieval(
        torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.arange(2), texts, torch.tensor([0, 1, 1, 1])
    )
    assert scores.top1 == 1.0


def test_depth_is_the_largest_class_where_none_has_fifty_images() -> None:
    class_ids = torch.cat((repeated(2, 3), torch.tensor([2])))
    scores = class_retrieval(torch.eye(3)[class_ids], class_ids, torch.eye(3), torch.arange(3))
    assert scores.num_retrieved == 3
    assert scores.precision_at_50 == pytest.approx((1 + 1 + 1 / 3) / 3)


def test_row_order_does_not_matter() -> None:
    class_ids = repeated(6, 9)
    images, texts = features_of(54, 8), features_of(54, 8, seed=1)
    order = torch.randperm(54, generator=torch.Generator().manual_seed(2))
    plain = class_retrieval(images, class_ids, texts, class_ids)
    mixed = class_retrieval(images[order], class_ids[order], texts[order.flip(0)], class_ids[order.flip(0)])
    assert mixed == pytest.approx(plain)


def test_a_class_without_captions_or_images_is_named() -> None:
    with pytest.raises(ValueError, match=r"\[2, 4\]"):
        class_retrieval(torch.ones(3, 2), torch.tensor([0, 1, 2]), torch.ones(3, 2), torch.tensor([0, 1, 4]))


def test_true_captions_that_point_along_the_image_score_one_at_any_length() -> None:
    image = features_of(150, 8)
    wrong = features_of(150, 9, 8, seed=1) * 1e3
    assert r_precision(image, image * 1e-3, wrong) == 1.0
    assert r_precision(image, -image, wrong) == 0.0


def test_r_precision_of_random_features_is_about_chance() -> None:
    score = r_precision(features_of(2000, 16), features_of(2000, 16, seed=1), features_of(2000, 9, 16, seed=2))
    assert score == pytest.approx(0.1, abs=0.02)


def test_ties_share_the_point_so_features_that_say_nothing_score_chance() -> None:
    one = features_of(1, 1024)
    assert r_precision(one.expand(100, -1), one.expand(100, -1), one.expand(100, 99, -1)) == pytest.approx(
        0.01, abs=1e-12
    )
    image = torch.tensor([[1.0, 0.0]])
    assert r_precision(image, image, torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])) == 0.5
    assert r_precision(image, torch.tensor([[0.0, 1.0]]), torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])) == 0.0


def test_r_precision_equals_a_loop() -> None:
    image, true, wrong = features_of(130, 5), features_of(130, 5, seed=1), features_of(130, 4, 5, seed=2)
    wins = 0
    for i in range(130):
        rivals = [torch.cosine_similarity(image[i], wrong[i, k], dim=0) for k in range(4)]
        wins += int(torch.cosine_similarity(image[i], true[i], dim=0) > max(rivals))
    assert r_precision(image, true, wrong) == pytest.approx(wins / 130)


def test_r_precision_refuses_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(4, 3\).*\(3, 9, 3\)"):
        r_precision(torch.ones(4, 3), torch.ones(4, 3), torch.ones(3, 9, 3))
