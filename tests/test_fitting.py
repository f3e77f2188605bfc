"""pipeline.text.fitting: what a step draws, and that training learns, by the published schedule."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.text.char_cnn_rnn import character_codes
from pipeline.text.fitting import PairSampler, cropped_rows
from pipeline.text.image_encoders import FeatureProjection, encode_images
from pipeline.text.retrieval import class_retrieval
from tests.text_data import COLOURS, TrainingSet, fitted, weights_of

# ---- what a step draws


def sampler_of(data: TrainingSet, *, batch_size: int = 40, seed: int = 0) -> PairSampler:
    return PairSampler(data.class_ids, [len(of_image) for of_image in data.captions], batch_size=batch_size, seed=seed)


def test_a_batch_holds_distinct_classes_with_an_image_and_a_caption_of_each() -> None:
    class_ids = np.random.default_rng(0).permutation(np.repeat(np.arange(50), 3))
    counts = [1 + row % 4 for row in range(150)]
    owners = np.repeat(np.arange(150), counts)
    sampler = PairSampler(class_ids, counts, batch_size=40, seed=1)
    seen_rows: set[int] = set()
    for step in range(30):
        rows, caption_rows, _ = sampler.pairs_of(step)
        assert len(set(class_ids[rows])) == 40
        assert np.array_equal(owners[caption_rows], rows)
        seen_rows.update(rows.tolist())
    assert len(seen_rows) == 150


def test_all_captions_of_an_image_are_drawn() -> None:
    sampler = sampler_of(TrainingSet())
    drawn = {row for step in range(200) for row in sampler.pairs_of(step).caption_rows.tolist()}
    assert drawn == set(range(sampler.num_captions)) == set(range(60))


def test_all_classes_are_used_where_there_are_fewer_than_the_batch_size() -> None:
    sampler = sampler_of(TrainingSet())
    assert sampler.num_classes == len(sampler.pairs_of(0).image_rows) == 4


def test_a_step_depends_on_seed_and_step_alone() -> None:
    samplers = [sampler_of(TrainingSet(), batch_size=4, seed=seed) for seed in (3, 3, 4)]
    samplers[0].pairs_of(0)
    first, again, other = (sampler.pairs_of(7) for sampler in samplers)
    assert np.array_equal(first.image_rows, again.image_rows)
    assert first.rng.random() == again.rng.random() != other.rng.random()
    assert not np.array_equal(first.caption_rows, other.caption_rows)


def test_crops_cover_every_place_borders_included_and_half_are_mirrored() -> None:
    y, x = np.mgrid[:76, :76].astype(np.uint8)
    images = np.stack((y, x, np.zeros_like(x)), axis=2)[None].repeat(2, axis=0)
    crops = cropped_rows(images, np.arange(1000) % 2, np.random.default_rng(0)).astype(int)
    mirrored = crops[:, 0, 0, 1] > crops[:, 0, 63, 1]
    assert abs(mirrored.mean() - 0.5) < 0.08
    plain = np.where(mirrored[:, None, None, None], crops[:, :, ::-1], crops)
    assert set(plain[:, 0, 0, 0]) == set(plain[:, 0, 0, 1]) == set(range(13))
    grid = np.arange(64)
    assert np.array_equal(plain[..., 0], np.broadcast_to((plain[:, 0, 0, 0, None] + grid)[:, :, None], (1000, 64, 64)))
    assert np.array_equal(plain[..., 1], np.broadcast_to((plain[:, 0, 0, 1, None] + grid)[:, None, :], (1000, 64, 64)))


# ---- training


def test_training_tells_colours_apart() -> None:
    data, unseen = TrainingSet(), TrainingSet(seed=1)
    encoders = fitted(data, num_steps=80, lr_decay=1.0)
    assert np.mean([step.accuracy for step in encoders.history[-20:]]) > 0.9
    captions = [f"the small bird is {word}" for word in COLOURS]
    assert encoders.text_encoder is not None
    with torch.inference_mode():
        text_features = encoders.text_encoder(character_codes(captions))
    scores = class_retrieval(
        encode_images(encoders.image_encoder, unseen.images),
        torch.from_numpy(unseen.class_ids),
        text_features,
        torch.from_numpy(unseen.class_ids[::5]),
    )
    assert scores.top1 > 0.9


def test_same_seed_same_losses_and_weights_and_another_seed_others() -> None:
    data = TrainingSet()
    first, again, other = fitted(data), fitted(data), fitted(data, seed=1)
    assert first.history == again.history
    assert torch.equal(weights_of(first), weights_of(again))
    assert first.history[0].loss != other.history[0].loss


def test_no_global_random_state_decides() -> None:
    data = TrainingSet()
    torch.manual_seed(1)
    first = weights_of(fitted(data))
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(first, weights_of(fitted(data)))


def test_memory_mapped_images_train_alike(tmp_path: Path) -> None:
    data, mapped = TrainingSet(), TrainingSet()
    np.save(tmp_path / "images.npy", data.images)
    mapped.images = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert torch.equal(weights_of(fitted(data)), weights_of(fitted(mapped)))


def test_learning_rate_falls_once_per_as_many_steps_as_classes() -> None:
    data = TrainingSet()  # 4 classes; a decay of 0 stops learning at step 5
    three, four, nine = (weights_of(fitted(data, num_steps=steps, lr_decay=0.0)) for steps in (3, 4, 9))
    assert not torch.equal(three, four)
    assert torch.equal(four, nine)


def test_the_first_update_is_rmsprops_closed_form() -> None:
    # Its average of squares starts at 0, so the first step is lr / sqrt(1 - alpha) = 10 lr against the gradient's sign.
    data = TrainingSet()
    moved = (weights_of(fitted(data, num_steps=1)) - weights_of(fitted(data, num_steps=0))).abs()
    assert moved.max().item() == pytest.approx(7e-3, rel=1e-3)
    assert (moved <= 7e-3 * 1.001).all()


def test_every_step_is_reported() -> None:
    calls: list[tuple[int, float, float]] = []

    def record(step: int, loss: float, accuracy: float) -> None:
        calls.append((step, loss, accuracy))

    encoders = fitted(TrainingSet(), num_steps=3, on_step=record)
    assert calls == [tuple(step) for step in encoders.history]
    assert [step for step, _, _ in calls] == [1, 2, 3]
    assert encoders.text_encoder is not None and not encoders.text_encoder.training
    assert not encoders.image_encoder.training


def test_bfloat16_keeps_float32_weights_and_a_like_first_loss() -> None:
    exact, rounded = (fitted(TrainingSet(), precision=precision) for precision in ("float32", "bfloat16"))
    assert weights_of(rounded).dtype == torch.float32
    assert rounded.history[0].loss == pytest.approx(exact.history[0].loss, rel=0.02)
    assert rounded.history[0].loss != exact.history[0].loss


def test_inputs_that_do_not_fit_are_refused() -> None:
    data = TrainingSet()
    data.captions = data.captions[:-1]
    with pytest.raises(ValueError, match="20 images, 20 class ids and 19 caption lists"):
        fitted(data)
    data = TrainingSet()
    data.captions[7] = []
    with pytest.raises(ValueError, match="image 7 has no caption"):
        fitted(data)
    data.captions[7] = ["fine", " "]
    with pytest.raises(ValueError, match="a caption of image 7 is empty"):
        fitted(data)
    data = TrainingSet()
    data.images = data.images[:, :60]
    with pytest.raises(ValueError, match=r"\(20, 60, 76, 3\)"):
        fitted(data)
    data = TrainingSet()
    data.class_ids[:] = 1
    with pytest.raises(ValueError, match="1 class in the training set"):
        fitted(data)


# ---- training beside a frozen text encoder, and on frozen features


def unit_embeddings(data: TrainingSet, dim: int = 16) -> torch.Tensor:
    """Unit-length embeddings of a frozen encoder to which all captions are much alike, as real ones are."""
    generator = torch.Generator().manual_seed(0)
    common, of_class = torch.randn(dim, generator=generator), torch.randn(10, dim, generator=generator)
    rows = [2 * common + of_class[class_id] for class_id in data.class_ids.tolist() for _ in range(3)]
    return torch.nn.functional.normalize(torch.stack(rows), dim=1)


def test_unit_length_embeddings_meet_the_margin_without_a_scale() -> None:
    # Scores are dot products and image features are free in length: that alone lets differences of scores grow to 1.
    data = TrainingSet()
    embeddings = unit_embeddings(data)
    before = embeddings.clone()
    encoders = fitted(data, num_steps=150, lr_decay=1.0, embeddings=embeddings)
    assert encoders.text_encoder is None
    assert torch.equal(embeddings, before)
    assert encoders.image_encoder.embedding_dim == 16
    assert np.mean([step.loss for step in encoders.history[-20:]]) < 0.1 * encoders.history[0].loss
    unseen = TrainingSet(seed=1)
    scores = class_retrieval(
        encode_images(encoders.image_encoder, unseen.images),
        torch.from_numpy(unseen.class_ids),
        embeddings,
        torch.from_numpy(data.class_ids).repeat_interleave(3),
    )
    assert scores.top1 > 0.9


class MeanColour:
    """A frozen network that gives the mean colour."""

    sha256, class_ids, crop_size, feature_dim = "", (5, 2, 9, 4), 64, 3

    def features(self, images: np.ndarray, batch_size: int) -> torch.Tensor:
        assert images.shape[1:] == (64, 64, 3)
        return torch.from_numpy(images.mean(axis=(1, 2)) / 127.5 - 1).float()


@pytest.mark.parametrize("text", ["char_cnn_rnn", "frozen"])
def test_a_projection_of_frozen_features_learns_too(text: str) -> None:
    data = TrainingSet()
    embeddings = unit_embeddings(data) if text == "frozen" else None
    encoders = fitted(data, num_steps=150, lr_decay=1.0, features=MeanColour(), embeddings=embeddings)
    assert isinstance(encoders.image_encoder, FeatureProjection)
    assert np.mean([step.accuracy for step in encoders.history[-20:]]) > 0.9


def test_embeddings_or_images_that_do_not_fit_are_refused() -> None:
    data = TrainingSet()
    with pytest.raises(ValueError, match="59 embeddings for 60 captions"):
        fitted(data, embeddings=torch.zeros(59, 16))
    features = MeanColour()
    features.crop_size = 256
    with pytest.raises(ValueError, match=r"need uint8 .* S >= 256"):
        fitted(data, features=features)
