"""Batches: a function of (seed, step) alone, whatever the workers; each random choice is as likely as it should be."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from pipeline.data.batches import (
    Batch,
    BatchSource,
    Purpose,
    TrainingSet,
    crop_size_for,
    generator_for,
    load_training_set,
)
from pipeline.data.random_crops import _cut_at_once, _cut_one_by_one, random_crops
from pipeline.data.shards import ImageShards, shard_path, write_shard
from pipeline.data.tables import IMAGES, embeddings_schema, write_table
from pipeline.data.transforms import PictureTransform

LOAD_SIZE, IMAGE_SIZE = 76, 64  # 13 offsets a side
NUM_IMAGES, NUM_CAPTIONS = 24, 5
CLASS_IDS = np.array([7] * 3 + [2] * 12 + [9] * 8 + [4], np.int64)[np.random.default_rng(3).permutation(NUM_IMAGES)]
CLASSES = sorted(set(CLASS_IDS.tolist()))
WRONG_PAIRS = ("other_text", "other_image", "next_text")
# Left, top, right, bottom in pixels of the load size, another one for each picture.
PIXEL_BOXES = torch.tensor([(20 + n % 7, 25 + n, 45 + n % 5, 60 + n % 11) for n in range(NUM_IMAGES)])
BOXES = PIXEL_BOXES / LOAD_SIZE
PROBABLE = 1e-4  # a chi-square below this is no chance; seeds are fixed, so the outcome is too


def telling_pictures(load_size: int) -> np.ndarray:
    """Return pictures whose pixels say which row, column and picture they are."""
    pixels = np.empty((NUM_IMAGES, load_size, load_size, 3), np.uint8)
    pixels[..., 0] = np.arange(load_size)[None, :, None]
    pixels[..., 1] = np.arange(load_size)[None, None, :]
    pixels[..., 2] = np.arange(NUM_IMAGES)[:, None, None]
    return pixels


def telling_embeddings() -> Tensor:
    """Return embeddings whose first entries say which picture they are of, and the last ones which caption."""
    picture = torch.eye(NUM_IMAGES)[:, None, :].expand(-1, NUM_CAPTIONS, -1)
    caption = torch.eye(NUM_CAPTIONS)[None].expand(NUM_IMAGES, -1, -1)
    return torch.cat([picture, caption], dim=2)


@pytest.fixture(scope="module")
def training_set(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    """Write the pictures in two shards."""
    folder = tmp_path_factory.mktemp("train")
    pixels = telling_pictures(LOAD_SIZE)
    for index, rows in enumerate((slice(0, 10), slice(10, NUM_IMAGES))):
        write_shard(shard_path(folder, index), range(*rows.indices(NUM_IMAGES)), {LOAD_SIZE: pixels[rows]})
    return TrainingSet(
        shards=ImageShards(folder, LOAD_SIZE), class_ids=CLASS_IDS, embeddings=telling_embeddings(), boxes=BOXES
    )  # fmt: skip


def source(
    training_set: TrainingSet,
    *,
    batch_size: int = 8,
    captions_averaged: int = 2,
    wrong_pairs: Any = "other_text",
    with_boxes: bool = False,
    seed: int = 11,
    rank: int = 0,
    num_workers: int = 1,
    image_size: int = IMAGE_SIZE,
    device_data_bytes: int = 0,
    transform: PictureTransform | None = None,
) -> BatchSource:
    return BatchSource(
        training_set,
        image_size=image_size,
        batch_size=batch_size,
        captions_averaged=captions_averaged,
        wrong_pairs=wrong_pairs,
        with_boxes=with_boxes,
        seed=seed,
        rank=rank,
        num_workers=num_workers,
        device=torch.device("cpu"),
        device_data_bytes=device_data_bytes,
        transform=transform,
    )


def equal(one: Batch, two: Batch) -> bool:
    pairs = [(getattr(one, field.name), getattr(two, field.name)) for field in dataclasses.fields(Batch)]
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)


def joined(shares: list[Batch]) -> Batch:
    """Put the workers' rows together; of the augmentation's draws the rows are the second axis."""
    wrong = [share.wrong for share in shares if share.wrong is not None]
    assert len(wrong) in (0, len(shares))
    return Batch(
        real=torch.cat([share.real for share in shares]),
        text_embedding=torch.cat([share.text_embedding for share in shares]),
        wrong=torch.cat(wrong) if wrong else None,
        wrong_text_embedding=torch.cat([share.wrong_text_embedding for share in shares]),
        augmentation_draws=torch.cat([share.augmentation_draws for share in shares], dim=1),
    )


def pixels_of(images: Tensor | None) -> np.ndarray:
    """Undo the scaling: (n, S, S, 3) whole numbers."""
    assert images is not None
    values = (images.permute(0, 2, 3, 1).double() + 1) * 127.5
    assert (values - values.round()).abs().max() < 1e-3
    return values.round().long().numpy()


def pictures_of(batch: Batch) -> list[int]:
    return pixels_of(batch.real)[:, 0, 0, 2].tolist()


def picture_of_text(embedding: Tensor) -> list[int]:
    """Return whose captions were averaged; all of them must be of one picture."""
    shares, pictures = embedding[:, :NUM_IMAGES].max(dim=1)
    assert (shares - 1).abs().max() < 1e-6
    return pictures.tolist()


def test_real_pictures_are_scaled_and_channels_last(training_set: TrainingSet) -> None:
    batch = source(training_set).batch(0)
    assert batch.real.shape == (8, 3, IMAGE_SIZE, IMAGE_SIZE) and batch.real.dtype == torch.float32
    assert batch.real.is_contiguous(memory_format=torch.channels_last)
    assert batch.real.min() >= -1 and batch.real.max() <= 1
    for text in (batch.text_embedding, batch.wrong_text_embedding):
        assert text.shape == (8, NUM_IMAGES + NUM_CAPTIONS) and text.dtype == torch.float32


def test_bytes_0_and_255_become_minus_one_and_one() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(1, 1, 1, 3)
    scaled = random_crops(pixels, torch.tensor([[0.0, 0.0, 0.9]]), 16)
    torch.testing.assert_close(scaled[0, 0].flatten(), torch.arange(256) * 2 / 255 - 1)
    assert scaled.min() == -1 and scaled.max() == 1


def test_crops_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    draws = rng.random((30, 3))
    crops = random_crops(torch.from_numpy(pixels), torch.from_numpy(draws), 11)
    for picture, (top, left, flip), crop in zip(pixels, draws, crops, strict=True):
        top, left = int(top * 6), int(left * 6)
        expected = picture[top : top + 11, left : left + 11]
        expected = expected[:, ::-1] if flip < 0.5 else expected
        torch.testing.assert_close(crop, torch.from_numpy(expected / 127.5 - 1).permute(2, 0, 1).float())


@pytest.mark.parametrize(("load_size", "size"), [(20, 8), (9, 9), (9, 1)])
def test_a_gpu_would_cut_what_a_processor_cuts(load_size: int, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, load_size, load_size, 3), dtype=torch.uint8, generator=generator)
    top, left = torch.randint(0, load_size - size + 1, (2, 40), generator=generator)
    mirrored = torch.rand(40, generator=generator) < 0.5
    at_once, one_by_one = (cut(pixels, top, left, mirrored, size) for cut in (_cut_at_once, _cut_one_by_one))
    assert torch.equal(at_once, one_by_one) and at_once.stride() == one_by_one.stride()


@pytest.mark.parametrize(("load_size", "size"), [(76, 64), (304, 256), (5, 5), (9, 1)])
def test_the_largest_and_smallest_draws_stay_inside(load_size: int, size: int) -> None:
    pixels = torch.zeros(4, load_size, load_size, 3, dtype=torch.uint8)
    pixels[:, -1, -1] = 255
    pixels[:, 0, 0] = 255
    last = np.nextafter(1.0, 0.0)
    draws = torch.tensor(
        [[0.0, 0.0, last], [last, last, last], [0.0, 0.0, 0.0], [last, last, 0.0]], dtype=torch.float64
    )
    crops = random_crops(pixels, draws, size)
    assert crops.shape == (4, 3, size, size)
    for crop, row, column in zip(crops, (0, -1, 0, -1), (0, -1, -1, 0), strict=True):
        assert crop[0, row, column] == 1


def test_every_offset_and_both_sides_are_as_likely(training_set: TrainingSet) -> None:
    one = source(training_set)
    tops: Counter[int] = Counter()
    lefts: Counter[int] = Counter()
    flips: Counter[bool] = Counter()
    pairs: set[tuple[int, int]] = set()
    for step in range(300):
        pixels = pixels_of(one.batch(step).real)
        flipped = pixels[:, 0, 0, 1] > pixels[:, 0, -1, 1]
        left = pixels[..., 1].min(axis=(1, 2))
        for crop, offset, is_flipped in zip(pixels, left, flipped, strict=True):
            unflipped = crop[:, ::-1] if is_flipped else crop
            assert (unflipped[..., 0] == crop[0, 0, 0] + np.arange(IMAGE_SIZE)[:, None]).all()
            assert (unflipped[..., 1] == offset + np.arange(IMAGE_SIZE)[None]).all()
            assert len(np.unique(crop[..., 2])) == 1
        tops.update(pixels[:, 0, 0, 0].tolist())
        lefts.update(left.tolist())
        flips.update(flipped.tolist())
        pairs.update(zip(pixels[:, 0, 0, 0].tolist(), left.tolist(), strict=True))
    assert set(tops) == set(lefts) == set(range(13)) and set(flips) == {True, False}
    assert len(pairs) == 13 * 13  # top and left are drawn apart
    for counts in (tops, lefts, flips):
        assert chisquare(list(counts.values())).pvalue > PROBABLE


def darker_or_lighter() -> PictureTransform:
    brightness = albumentations.RandomBrightnessContrast(brightness_limit=(-0.5, 0.5), contrast_limit=(0, 0), p=1)
    return PictureTransform(albumentations.to_dict(albumentations.Compose([brightness])))


@pytest.mark.parametrize("make_transform", [lambda: None, darker_or_lighter], ids=["plain", "transformed"])
@pytest.mark.parametrize("wrong_pairs", WRONG_PAIRS)
@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_the_shares_of_all_workers_are_the_global_batch(
    num_workers: int,
    wrong_pairs: str,
    make_transform: Callable[[], PictureTransform | None],
    training_set: TrainingSet,
) -> None:
    whole = source(training_set, wrong_pairs=wrong_pairs, transform=make_transform())
    workers = [
        source(training_set, wrong_pairs=wrong_pairs, rank=rank, num_workers=num_workers, transform=make_transform())
        for rank in range(num_workers)
    ]
    for step in (0, 1, 2, 3, 50):
        shares = [worker.batch(step) for worker in workers]
        assert {len(share.real) for share in shares} == {8 // num_workers}
        assert equal(joined(shares), whole.batch(step))
        noise = torch.cat([worker.noise(step, 6) for worker in workers])
        assert torch.equal(noise, whole.noise(step, 6))


@pytest.mark.parametrize("wrong_pairs", WRONG_PAIRS)
def test_a_batch_does_not_depend_on_the_ones_before_it(wrong_pairs: str, training_set: TrainingSet) -> None:
    walked = source(training_set, wrong_pairs=wrong_pairs)
    batches = [(walked.batch(step), walked.noise(step, 4)) for step in range(10)]
    for step in (9, 4, 0, 7, 7):  # within and across epochs, backwards, twice, without noise in between
        resumed = source(training_set, wrong_pairs=wrong_pairs)
        assert equal(resumed.batch(step), batches[step][0])
        assert torch.equal(resumed.noise(step, 4), batches[step][1])
        assert equal(walked.batch(step), batches[step][0])


@pytest.mark.parametrize("wrong_pairs", WRONG_PAIRS)
def test_pictures_on_the_device_give_the_batches_of_the_memory_map(wrong_pairs: str, training_set: TrainingSet) -> None:
    mapped, resident = (
        source(training_set, wrong_pairs=wrong_pairs, rank=1, num_workers=2, device_data_bytes=budget)
        for budget in (0, training_set.shards.num_bytes)
    )
    assert all(equal(mapped.batch(step), resident.batch(step)) for step in (0, 1, 2, 3, 11))


@pytest.mark.parametrize("wrong_pairs", WRONG_PAIRS)
def test_reading_a_step_ahead_changes_nothing(wrong_pairs: str, training_set: TrainingSet) -> None:
    plain, ahead = (
        source(training_set, wrong_pairs=wrong_pairs, transform=darker_or_lighter()),
        source(training_set, wrong_pairs=wrong_pairs, transform=darker_or_lighter()),
    )
    ahead._reads_ahead = True  # as for a GPU
    for step in (0, 1, 2, 3, 4, 9, 10, 2, 2):  # within and across epochs, backwards, twice
        assert equal(plain.batch(step), ahead.batch(step))


def test_pictures_are_kept_on_the_device_within_the_budget_alone(
    training_set: TrainingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    enough = training_set.shards.num_bytes
    assert enough == NUM_IMAGES * LOAD_SIZE * LOAD_SIZE * 3
    sources = {budget: source(training_set, device_data_bytes=budget) for budget in (enough, enough - 1)}
    transformed = source(training_set, device_data_bytes=enough, transform=darker_or_lighter())
    monkeypatch.setattr(training_set.shards, "gather", None)  # the memory map can no longer be read
    sources[enough].batch(0)
    for reader in (sources[enough - 1], transformed):
        with pytest.raises(TypeError):
            reader.batch(0)


def test_a_transform_changes_the_pictures_and_nothing_else(training_set: TrainingSet) -> None:
    plain, changed = (
        source(training_set, wrong_pairs="other_image", transform=transform).batch(5)
        for transform in (None, darker_or_lighter())
    )
    assert plain.wrong is not None and changed.wrong is not None
    assert not torch.equal(plain.real, changed.real) and not torch.equal(plain.wrong, changed.wrong)
    assert equal(plain, dataclasses.replace(changed, real=plain.real, wrong=plain.wrong))


def test_another_seed_gives_another_batch(training_set: TrainingSet) -> None:
    one, two = source(training_set, seed=0), source(training_set, seed=1)
    assert pictures_of(one.batch(0)) != pictures_of(two.batch(0))
    assert not torch.equal(one.noise(0, 4), two.noise(0, 4))


def test_no_two_purposes_and_steps_share_their_draws() -> None:
    draws = {
        generator_for(seed, purpose, counter).random()
        for seed in range(5)
        for purpose in Purpose
        for counter in range(20)
    }
    assert len(draws) == 5 * len(Purpose) * 20


def test_each_epoch_shows_every_picture_once_in_another_order(training_set: TrainingSet) -> None:
    one = source(training_set)
    assert one.steps_per_epoch == 3
    orders = [
        [picture for step in range(3) for picture in pictures_of(one.batch(3 * epoch + step))] for epoch in range(20)
    ]
    assert all(sorted(order) == list(range(NUM_IMAGES)) for order in orders)
    assert len({tuple(order) for order in orders}) == 20


def test_a_remainder_is_left_out_of_an_epoch_but_not_of_the_training(training_set: TrainingSet) -> None:
    one = source(training_set, batch_size=10)
    assert one.steps_per_epoch == 2
    seen: set[int] = set()
    for epoch in range(12):
        epoch_pictures = pictures_of(one.batch(2 * epoch)) + pictures_of(one.batch(2 * epoch + 1))
        assert len(set(epoch_pictures)) == 20
        seen.update(epoch_pictures)
    assert seen == set(range(NUM_IMAGES))


def test_a_text_is_of_the_picture_beside_it(training_set: TrainingSet) -> None:
    one = source(training_set)
    for step in range(20):
        batch = one.batch(step)
        assert picture_of_text(batch.text_embedding) == pictures_of(batch)


@pytest.mark.parametrize("captions_averaged", [1, 2, 4, NUM_CAPTIONS])
def test_different_captions_are_averaged_each_as_often(captions_averaged: int, training_set: TrainingSet) -> None:
    one = source(training_set, captions_averaged=captions_averaged)
    counts = {"text_embedding": torch.zeros(NUM_CAPTIONS), "wrong_text_embedding": torch.zeros(NUM_CAPTIONS)}
    for step in range(60):
        batch = one.batch(step)
        for name in counts:
            shares = getattr(batch, name)[:, NUM_IMAGES:]
            used = shares > 0
            assert (used.sum(dim=1) == captions_averaged).all()
            torch.testing.assert_close(shares[used], torch.full((8 * captions_averaged,), 1 / captions_averaged))
            counts[name] += used.sum(dim=0)
    for count in counts.values():
        assert count.sum() == 60 * 8 * captions_averaged
        assert chisquare(count.numpy()).pvalue > PROBABLE


def test_right_and_wrong_captions_are_drawn_apart(training_set: TrainingSet) -> None:
    one = source(training_set, captions_averaged=1)
    batches = [one.batch(step) for step in range(20)]
    right = torch.cat([batch.text_embedding[:, NUM_IMAGES:].argmax(dim=1) for batch in batches])
    wrong = torch.cat([batch.wrong_text_embedding[:, NUM_IMAGES:].argmax(dim=1) for batch in batches])
    assert 0.1 < (right == wrong).float().mean() < 0.3  # one of five by chance


def test_a_wrong_text_is_of_another_class_each_of_its_pictures_as_likely(training_set: TrainingSet) -> None:
    one = source(training_set)
    counts = {class_id: np.zeros(NUM_IMAGES) for class_id in CLASSES}
    for step in range(600):
        batch = one.batch(step)
        for picture, wrong in zip(pictures_of(batch), picture_of_text(batch.wrong_text_embedding), strict=True):
            counts[int(CLASS_IDS[picture])][wrong] += 1
    for class_id, count in counts.items():
        others = class_id != CLASS_IDS
        assert not count[~others].any()
        assert count[others].all()
        assert chisquare(count[others]).pvalue > PROBABLE


def test_a_wrong_picture_is_of_another_class_each_as_likely(training_set: TrainingSet) -> None:
    one = source(training_set, wrong_pairs="other_image")
    counts = {class_id: np.zeros(NUM_IMAGES) for class_id in CLASSES}
    for step in range(300):
        batch = one.batch(step)
        for picture, wrong in zip(pictures_of(batch), pixels_of(batch.wrong)[:, 0, 0, 2], strict=True):
            counts[int(CLASS_IDS[picture])][wrong] += 1
    for class_id, count in counts.items():
        others = class_id != CLASS_IDS
        assert not count[~others].any() and count[others].all()
        assert chisquare(count[others]).pvalue > PROBABLE


def test_a_wrong_picture_is_cut_and_mirrored_on_its_own(training_set: TrainingSet) -> None:
    one = source(training_set, wrong_pairs="other_image")
    tops: Counter[tuple[int, int]] = Counter()
    mirrored: Counter[tuple[bool, bool]] = Counter()
    for step in range(200):
        batch = one.batch(step)
        real, wrong = pixels_of(batch.real), pixels_of(batch.wrong)
        tops.update(zip(real[:, 0, 0, 0].tolist(), wrong[:, 0, 0, 0].tolist(), strict=True))
        flips = [(pixels[:, 0, 0, 1] > pixels[:, 0, -1, 1]).tolist() for pixels in (real, wrong)]
        mirrored.update(zip(*flips, strict=True))
    assert len(tops) == 13 * 13 and len(mirrored) == 4
    for counts in (tops, mirrored):
        assert chisquare(list(counts.values())).pvalue > PROBABLE


def test_a_transform_changes_a_wrong_picture_on_its_own(tmp_path: Path) -> None:
    """All pictures are of one grey; what the transform makes of it differs between the real and the wrong picture."""
    grey = np.full((NUM_IMAGES, LOAD_SIZE, LOAD_SIZE, 3), 100, np.uint8)
    write_shard(shard_path(tmp_path, 0), range(NUM_IMAGES), {LOAD_SIZE: grey})
    shards = ImageShards(tmp_path, LOAD_SIZE)
    training_set = TrainingSet(shards=shards, class_ids=CLASS_IDS, embeddings=telling_embeddings(), boxes=BOXES)
    one = source(training_set, wrong_pairs="other_image", transform=darker_or_lighter())
    batches = [one.batch(step) for step in range(20)]
    greys = [np.concatenate([pixels_of(pixels)[:, 0, 0, 0] for pixels in pictures])
             for pictures in zip(*((batch.real, batch.wrong) for batch in batches), strict=True)]  # fmt: skip
    assert min(len(set(values.tolist())) for values in greys) > 50
    assert abs(np.corrcoef(greys)[0, 1]) < 0.2


def test_the_next_text_is_that_of_the_next_picture_of_the_global_batch(training_set: TrainingSet) -> None:
    one = source(training_set, wrong_pairs="next_text")
    for step in range(6):
        batch = one.batch(step)
        assert batch.wrong is None
        assert torch.equal(batch.wrong_text_embedding, batch.text_embedding.roll(-1, dims=0))
        assert picture_of_text(batch.wrong_text_embedding) == pictures_of(batch)[1:] + pictures_of(batch)[:1]


def test_the_last_row_of_a_worker_gets_the_next_workers_first_text(training_set: TrainingSet) -> None:
    workers = [source(training_set, wrong_pairs="next_text", rank=rank, num_workers=2) for rank in range(2)]
    first, second = (worker.batch(0) for worker in workers)
    assert torch.equal(first.wrong_text_embedding[-1], second.text_embedding[0])
    assert torch.equal(second.wrong_text_embedding[-1], first.text_embedding[0])


def test_what_is_exchanged_changes_the_wrong_pairs_alone(training_set: TrainingSet) -> None:
    """So other_text, which was there first, draws what it always did."""
    text, image, following = (source(training_set, wrong_pairs=form).batch(3) for form in WRONG_PAIRS)
    assert text.wrong is None and following.wrong is None and image.wrong is not None
    for batch in (image, following):
        assert equal(text, dataclasses.replace(batch, wrong=None, wrong_text_embedding=text.wrong_text_embedding))
    assert torch.equal(image.wrong_text_embedding, image.text_embedding)
    assert not torch.equal(text.wrong_text_embedding, following.wrong_text_embedding)


@pytest.mark.parametrize("wrong_pairs", WRONG_PAIRS)
def test_the_parts_of_a_share_are_its_rows_in_order(wrong_pairs: str, training_set: TrainingSet) -> None:
    batch = source(training_set, wrong_pairs=wrong_pairs).batch(0)
    for count in (1, 2, 4):
        parts = batch.parts(count)
        assert [len(part.real) for part in parts] == [8 // count] * count
        assert {part.augmentation_draws.shape for part in parts} == {(3, 8 // count, 4)}
        assert equal(joined(parts), batch)
        assert all(part.real.is_contiguous(memory_format=torch.channels_last) for part in parts)


def test_noise_is_standard_normal_and_another_one_each_step(training_set: TrainingSet) -> None:
    one = source(training_set)
    noise = torch.stack([one.noise(step, 100) for step in range(50)])
    assert noise.dtype == torch.float32 and noise.shape == (50, 8, 100)
    assert len(noise.flatten().unique()) > 0.99 * noise.numel()
    assert abs(noise.mean()) < 0.02 and abs(noise.var() - 1) < 0.03


def test_draws_for_the_augmentation_are_uniform_and_apart_for_real_fake_and_wrong(training_set: TrainingSet) -> None:
    one = source(training_set)
    draws = torch.stack([one.batch(step).augmentation_draws for step in range(200)])
    assert draws.shape == (200, 3, 8, 4) and draws.min() >= 0 and draws.max() < 1
    assert len(draws.flatten().unique()) > 0.99 * draws.numel()
    for kind in range(3):
        assert chisquare(torch.histc(draws[:, kind], 10, 0, 1).numpy()).pvalue > PROBABLE
    correlations = np.corrcoef(draws.movedim(1, 0).flatten(1).numpy())
    assert np.abs(correlations - np.eye(3)).max() < 0.05


@pytest.fixture(scope="module")
def large_training_set(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    """Write noise of 304x304."""
    folder = tmp_path_factory.mktemp("large")
    pixels = np.random.default_rng(5).integers(0, 256, (NUM_IMAGES, 304, 304, 3), dtype=np.uint8)
    write_shard(shard_path(folder, 0), range(NUM_IMAGES), {304: pixels})
    return TrainingSet(
        shards=ImageShards(folder, 304), class_ids=CLASS_IDS, embeddings=telling_embeddings(), boxes=BOXES
    )


@pytest.mark.parametrize("wrong_pairs", WRONG_PAIRS)
def test_pictures_of_128_are_the_means_of_the_256_crops(wrong_pairs: str, large_training_set: TrainingSet) -> None:
    whole, halved = (
        source(large_training_set, wrong_pairs=wrong_pairs, image_size=size).batch(4) for size in (256, 128)
    )
    for of_256, of_128 in ((whole.real, halved.real), (whole.wrong, halved.wrong)):
        if of_256 is None or of_128 is None:
            assert of_256 is of_128 and wrong_pairs != "other_image"
            continue
        assert of_128.shape == (8, 3, 128, 128)
        assert of_128.is_contiguous(memory_format=torch.channels_last)
        quarters = [of_256[:, :, top::2, left::2] for top in (0, 1) for left in (0, 1)]
        torch.testing.assert_close(of_128, sum(quarters) / 4, rtol=0, atol=1e-6)
    assert equal(whole, dataclasses.replace(halved, real=whole.real, wrong=whole.wrong))


def test_each_side_is_cut_from_the_load_size_that_is_next(large_training_set: TrainingSet) -> None:
    assert [crop_size_for(size) for size in (64, 128, 256)] == [64, 256, 256]
    batch = source(large_training_set, image_size=256).batch(0)
    assert batch.real.shape == (8, 3, 256, 256)


def test_numbers_that_do_not_fit_together_are_refused(training_set: TrainingSet) -> None:
    with pytest.raises(ValueError, match="batch_size 8 cannot be shared equally among 3 workers"):
        source(training_set, num_workers=3)
    with pytest.raises(ValueError, match="batch_size 25 is larger than the 24 training pictures"):
        source(training_set, batch_size=25)
    with pytest.raises(ValueError, match=r"gan\.captions_averaged 6 exceeds 5 captions a picture"):
        source(training_set, captions_averaged=6)
    assert source(training_set, batch_size=24).steps_per_epoch == 1


def test_one_class_alone_is_refused(training_set: TrainingSet) -> None:
    alone = dataclasses.replace(training_set, class_ids=np.full(NUM_IMAGES, 4))
    with pytest.raises(ValueError, match="two classes or more"):
        source(alone)


def write_crops(folder: Path, image_ids: list[int], split: str = "train") -> None:
    pixels = telling_pictures(LOAD_SIZE)[: len(image_ids)]
    write_shard(shard_path(folder / split, 0), image_ids, {LOAD_SIZE: pixels})


def write_images(folder: Path, image_ids: list[int]) -> None:
    rows = [
        {name: None for name in IMAGES.names}
        | {
            "image_id": image_id,
            "class_id": image_id % 3,
            "split": split,
            "bbox": [0, 0, 1, 1],
            "crop_box": [0, 0, 1, 1],
        }
        for image_id in image_ids
        for split in ("train", "test")
    ]
    write_table(folder / "images.parquet", pa.Table.from_pylist(rows, schema=IMAGES))


def write_embeddings(path: Path, image_ids: list[int]) -> np.ndarray:
    """Write two captions a picture; the embedding names both."""
    values = np.array([[image_id, caption] for image_id in image_ids for caption in range(2)], np.float32)
    columns = [
        pa.array(np.repeat(image_ids, 2), pa.int64()),
        pa.array(np.tile([0, 1], len(image_ids)), pa.int32()),
        pa.array(["a bird"] * len(values)),
        pa.array(values.tolist(), pa.list_(pa.float32(), 2)),
    ]
    write_table(path, pa.Table.from_arrays(columns, schema=embeddings_schema(2, {})))
    return values.reshape(-1, 2, 2)


def test_a_training_set_is_loaded_in_the_order_of_its_images(tmp_path: Path) -> None:
    image_ids = [5, 3, 8, 4]
    write_crops(tmp_path, image_ids)
    write_images(tmp_path, image_ids)
    embeddings = write_embeddings(tmp_path / "train.parquet", image_ids)
    loaded = load_training_set(tmp_path, tmp_path / "train.parquet", "train", IMAGE_SIZE)
    assert loaded.shards.image_ids == image_ids
    assert loaded.class_ids.tolist() == [2, 0, 2, 1]
    assert torch.equal(loaded.embeddings, torch.from_numpy(embeddings))


@pytest.mark.parametrize("stale", ["shards", "embeddings"])
def test_files_of_different_lengths_are_refused_by_name(stale: str, tmp_path: Path) -> None:
    image_ids = [5, 3, 8, 4]
    write_crops(tmp_path, image_ids[:-1] if stale == "shards" else image_ids)
    write_images(tmp_path, image_ids)
    write_embeddings(tmp_path / "train.parquet", image_ids[:-1] if stale == "embeddings" else image_ids)
    with pytest.raises(ValueError, match="do not hold the pictures of images") as refused:
        load_training_set(tmp_path, tmp_path / "train.parquet", "train", IMAGE_SIZE)
    assert str(tmp_path / "train") in str(refused.value) and "dvc repro" in str(refused.value)


def test_shards_in_another_order_are_refused(tmp_path: Path) -> None:
    write_crops(tmp_path, [3, 5, 8])
    write_images(tmp_path, [5, 3, 8])
    write_embeddings(tmp_path / "train.parquet", [5, 3, 8])
    with pytest.raises(ValueError, match="do not hold the pictures of images"):
        load_training_set(tmp_path, tmp_path / "train.parquet", "train", IMAGE_SIZE)


@pytest.mark.parametrize("image_ids", [[3, 5, 8], [5, 3, 9]], ids=["another_order", "another_picture"])
def test_embeddings_of_other_pictures_are_refused(image_ids: list[int], tmp_path: Path) -> None:
    write_crops(tmp_path, [5, 3, 8])
    write_images(tmp_path, [5, 3, 8])
    write_embeddings(tmp_path / "train.parquet", image_ids)
    with pytest.raises(ValueError, match="do not hold the pictures of images"):
        load_training_set(tmp_path, tmp_path / "train.parquet", "train", IMAGE_SIZE)


@pytest.mark.parametrize("wrong_pairs", ["other_text", "next_text"])
def test_a_box_behind_the_texts_is_where_the_object_is_after_crop_and_mirror(
    wrong_pairs: str, training_set: TrainingSet
) -> None:
    """The pictures' pixels say which row and column they were, so the object's can be counted in the batch."""
    boxed, plain = (source(training_set, wrong_pairs=wrong_pairs, with_boxes=on) for on in (True, False))
    for step in range(4):
        batch, without = boxed.batch(step), plain.batch(step)
        assert torch.equal(batch.real, without.real)
        for texts, texts_without in (
            (batch.text_embedding, without.text_embedding),
            (batch.wrong_text_embedding, without.wrong_text_embedding),
        ):
            assert torch.equal(texts[:, :-4], texts_without)
            for picture, box in zip(pixels_of(batch.real), texts[:, -4:] * IMAGE_SIZE, strict=True):
                left, top, right, bottom = PIXEL_BOXES[picture[0, 0, 2]].tolist()
                rows, columns = picture[:, 0, 0], picture[0, :, 1]
                inside_y = np.flatnonzero((rows >= top) & (rows < bottom))
                inside_x = np.flatnonzero((columns >= left) & (columns < right))
                expected = [inside_x[0], inside_y[0], inside_x[-1] + 1, inside_y[-1] + 1]
                assert box.numpy() == pytest.approx(expected, abs=1e-4)


def test_boxes_of_pictures_of_128_are_those_of_their_256_crops(large_training_set: TrainingSet) -> None:
    one, half = (source(large_training_set, with_boxes=True, image_size=size).batch(2) for size in (256, 128))
    assert torch.equal(one.text_embedding, half.text_embedding) and half.real.shape[2:] == (128, 128)
    assert len(set(one.text_embedding[:, -4].tolist())) > 1


def test_boxes_do_not_depend_on_the_number_of_workers(training_set: TrainingSet) -> None:
    whole = source(training_set, with_boxes=True).batch(3)
    shares = [source(training_set, with_boxes=True, rank=rank, num_workers=2).batch(3) for rank in (0, 1)]
    assert equal(joined(shares), whole)
