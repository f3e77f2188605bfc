"""pipeline.text.fitting: what a step draws, and that training learns, by the published schedule."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.text.char_cnn_rnn import character_codes
from pipeline.text.encoders import encode_images
from pipeline.text.fitting import PairSampler, random_crops
from pipeline.text.retrieval import class_retrieval
from tests.text_data import COLOURS, TrainingSet, fitted, weights_of

# ---- what a step draws


def test_a_batch_holds_distinct_classes_with_an_image_and_a_caption_of_each() -> None:
    rng = np.random.default_rng(0)
    class_ids = rng.permutation(np.repeat(np.arange(50), 3))
    images = np.broadcast_to(np.arange(150, dtype=np.uint8)[:, None, None, None], (150, 76, 76, 3))
    captions = [[f"image {row} caption {k}" for k in range(1 + row % 4)] for row in range(150)]
    place_of = {tuple(character_codes([line])[0].tolist()): row for row, of in enumerate(captions) for line in of}
    sampler = PairSampler(images, class_ids, captions, batch_size=40, seed=1)
    seen_rows: set[int] = set()
    for step in range(30):
        batch, codes = sampler.pairs_of(step)
        rows = ((batch[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
        assert batch.shape == (40, 3, 64, 64)
        assert len(set(class_ids[rows])) == 40
        assert rows == [place_of[tuple(code)] for code in codes.tolist()]
        seen_rows.update(rows)
    assert len(seen_rows) == 150


def test_all_captions_of_an_image_are_drawn() -> None:
    data = TrainingSet()
    sampler = PairSampler(data.images, data.class_ids, data.captions, batch_size=40, seed=0)
    drawn = {tuple(code) for step in range(60) for code in sampler.pairs_of(step)[1].tolist()}
    assert drawn == {tuple(code) for of_image in data.captions for code in character_codes(of_image).tolist()}


def test_all_classes_are_used_where_there_are_fewer_than_the_batch_size() -> None:
    data = TrainingSet()
    sampler = PairSampler(data.images, data.class_ids, data.captions, batch_size=40, seed=0)
    assert sampler.num_classes == 4
    assert sampler.pairs_of(0)[0].shape[0] == 4


def test_a_step_depends_on_seed_and_step_alone() -> None:
    data = TrainingSet()
    samplers = [PairSampler(data.images, data.class_ids, data.captions, batch_size=4, seed=seed) for seed in (3, 3, 4)]
    samplers[0].pairs_of(0)
    (first, _), (again, _), (other, _) = (sampler.pairs_of(7) for sampler in samplers)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_crops_cover_every_place_borders_included_and_half_are_mirrored() -> None:
    y, x = np.mgrid[:76, :76].astype(np.uint8)
    images = np.stack((y, x, np.zeros_like(x)), axis=2)[None].repeat(2, axis=0)
    crops = random_crops(images, np.arange(1000) % 2, np.random.default_rng(0)).astype(int)
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
    assert not encoders.text_encoder.training
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
