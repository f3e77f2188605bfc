"""The scores of samples/: closed forms, bounds, invariances, and what is refused."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.cluster import map_shards
from pipeline.data.files import file_sha256
from pipeline.data.shards import Images, ImageShards, shard_path, write_shard
from pipeline.data.tables import read_images
from pipeline.evaluation.classifier import load_classifier, new_network
from pipeline.evaluation.classifier_training import train_classifier
from pipeline.evaluation.judging import Judged, JudgeJob, area_reduced
from pipeline.evaluation.pictures import (
    PictureSet,
    noise,
    picture_at,
    read_samples,
    real_counterparts,
    real_parts,
    real_train,
)
from pipeline.evaluation.protocol import fingerprint
from pipeline.evaluation.scores import evaluate_samples, within_caption_distance
from pipeline.text.encoders import load_text_encoder
from pipeline.text.image_encoders import FeatureProjection, encode_images, load_image_encoder, save_image_encoder
from pipeline.text.retrieval import r_precision
from tests.evaluation_data import paint_noise, paint_truth, write_crops, write_encoders, write_samples

NUM_WRONG = 7
CLASSIFIER: dict[str, Any] = dict(held_out_share=0.2, num_epochs=1, batch_size=4, learning_rate=1e-3, seed=0)


class Inputs(NamedTuple):
    crops_dir: Path
    samples_dir: Path
    classifier_dir: Path
    text_encoder_dir: Path

    def score(self, **changes: Any) -> dict[str, Any]:
        return self.evaluate(**changes)["methods"]

    def evaluate(self, **changes: Any) -> dict[str, Any]:
        settings = {"num_splits": 3, "num_wrong_captions": NUM_WRONG, "batch_size": 8, "seed": 0, "map_jobs": in_order}
        return evaluate_samples(**(self._asdict() | settings | changes))


def in_order(work: Callable[[JudgeJob], Judged], jobs: Sequence[JudgeJob]) -> list[Judged]:
    return [work(job) for job in jobs]


def pictures_of(pictures: PictureSet) -> Images:
    return np.concatenate([part.load() for part in pictures.parts])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("scores")
    inputs = Inputs(folder / "crops", folder / "samples", folder / "classifier", folder / "text_encoder")
    write_crops(inputs.crops_dir)
    methods = {"untrained": paint_noise(256), "stage1": paint_truth(64), "stackgan": paint_truth(256)}
    write_samples(inputs.samples_dir, read_images(inputs.crops_dir, "test"), methods, copies=2)
    write_encoders(inputs.text_encoder_dir)
    train_classifier(
        crops_dir=inputs.crops_dir,
        models_dir=inputs.classifier_dir,
        network="resnet18",
        weights="none",
        classes="test",
        **CLASSIFIER | {"num_epochs": 10},
    )
    return inputs


@pytest.fixture(scope="module")
def scores(inputs: Inputs) -> dict[str, Any]:
    return inputs.score()


def test_every_method_is_scored_beside_the_real_pictures(scores: dict[str, Any]) -> None:
    assert list(scores) == ["real_test", "real_train", "untrained", "stage1", "stackgan", "noise"]
    assert [of_method["image_size"] for of_method in scores.values()] == [256, 256, 256, 64, 256, 256]
    assert [of_method["protocol"]["num_images"] for of_method in scores.values()] == [15, 15, 30, 30, 30, 15]


def test_pictures_that_follow_their_captions_agree_and_noise_agrees_by_chance(scores: dict[str, Any]) -> None:
    for method in ("real_test", "stage1", "stackgan"):
        assert scores[method]["class_agreement"]["value"] == 1, method
        assert scores[method]["class_agreement"]["standard_error"] == 0, method
    # All noise looks alike, so the classifier names one class of three for it.
    assert scores["untrained"]["class_agreement"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert scores["untrained"]["class_agreement"]["chance"] == pytest.approx(1 / 3, abs=1e-6)


def test_the_inception_score_orders_real_and_noise(scores: dict[str, Any]) -> None:
    assert 2 < scores["real_test"]["inception_score"]["mean"] <= 3
    assert scores["untrained"]["inception_score"]["mean"] < 1.1

    assert scores["noise"]["inception_score"]["mean"] < 1.1


def test_the_bounds_order_the_distances_to_real_pictures(scores: dict[str, Any]) -> None:
    for method in ("stage1", "stackgan"):
        for key in ("fid", "kid"):
            assert scores[method][key] < min(scores[bound][key] for bound in ("real_train", "untrained", "noise")), key
    assert scores["noise"]["precision"] == scores["noise"]["recall"] == 0
    assert all(scores["real_test"][key] is None for key in ("fid", "kid", "precision", "recall"))


def test_what_means_nothing_for_a_bound_is_left_empty(scores: dict[str, Any]) -> None:
    for bound in ("real_train", "noise"):
        for key in ("r_precision", "class_agreement", "within_caption_distance"):
            assert scores[bound][key] is None, (bound, key)
    assert scores["real_train"]["nearest_train_distance"] is None


@pytest.mark.slow
def test_a_generator_that_copies_its_training_pictures_is_found_out(inputs: Inputs, tmp_path: Path) -> None:
    train_ids, train_parts = real_parts(inputs.crops_dir, "train")
    images = read_images(inputs.crops_dir, "test")
    methods = {"stage1": paint_truth(256), "stackgan": lambda row: picture_at(train_parts, row["seed"] % 5 + 3)}
    write_samples(tmp_path, images, methods)
    result = inputs.evaluate(samples_dir=tmp_path)
    distances = {method: found["nearest_train_distance"] for method, found in result["methods"].items()}
    assert distances["stackgan"] < 0.01 * distances["real_test"]
    assert distances["stage1"] > 0.5 * distances["real_test"]
    seed_of = {row["sample_id"]: row["seed"] for row in read_samples(tmp_path)["stackgan"].rows}
    copies = result["neighbours"]["stackgan"]
    assert len(copies) == 6
    for entry in copies:
        assert entry["image_ids"][0] == train_ids[seed_of[entry["sample_id"]] % 5 + 3]
        assert len(entry["image_ids"]) == 5 and entry["distances"] == sorted(entry["distances"])


def test_every_score_carries_its_protocol(inputs: Inputs, scores: dict[str, Any]) -> None:
    protocol = scores["stackgan"]["protocol"]
    assert protocol["classifier_sha256"] == file_sha256(inputs.classifier_dir / "classifier.safetensors")
    assert protocol["text_encoder_sha256"] == file_sha256(inputs.text_encoder_dir / "text_encoder.safetensors")
    expected = {"num_splits": 3, "seed": 0, "num_wrong_captions": NUM_WRONG, "classifier": "resnet18"}
    assert protocol | expected == protocol
    assert protocol["classifier_held_out_accuracy"] == 1
    assert protocol["num_real_images"] == 15
    assert scores["stackgan"]["fingerprint"] == fingerprint(protocol) == scores["untrained"]["fingerprint"]
    assert scores["stackgan"]["fingerprint"] != scores["real_test"]["fingerprint"]  # half as many pictures


def retrieval_of(crops_dir: Path, encoder_dir: Path, pictures: PictureSet, features: torch.Tensor) -> float:
    """R-precision of pictures' features, from captions drawn and embedded one by one."""
    text_encoder = load_text_encoder(encoder_dir)
    candidates = [(image["class_id"], text) for image in read_images(crops_dir, "test") for text in image["captions"]]
    wrong = torch.empty(len(pictures.rows), NUM_WRONG, text_encoder.embedding_dim)
    for index, row in enumerate(pictures.rows):
        others = [text for class_id, text in candidates if class_id != row["class_id"]]
        drawn = np.random.default_rng([0, row["image_id"], row["caption_id"]]).choice(len(others), NUM_WRONG, False)
        wrong[index] = text_encoder.encode([others[place] for place in drawn])
    return r_precision(features, text_encoder.encode([row["caption"] for row in pictures.rows]), wrong)


def test_r_precision_is_that_of_the_captions_of_other_classes(inputs: Inputs, scores: dict[str, Any]) -> None:
    pictures = read_samples(inputs.samples_dir)["stage1"]
    features = encode_images(load_image_encoder(inputs.text_encoder_dir), pictures_of(pictures))
    expected = retrieval_of(inputs.crops_dir, inputs.text_encoder_dir, pictures, features)
    assert scores["stage1"]["r_precision"]["value"] == pytest.approx(expected, abs=1e-6)
    assert scores["stage1"]["r_precision"]["chance"] == pytest.approx(1 / (NUM_WRONG + 1), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 100])
def test_batch_size_does_not_move_the_scores(inputs: Inputs, scores: dict[str, Any], batch_size: int) -> None:
    for method, other in inputs.score(batch_size=batch_size).items():
        for key in ("r_precision", "class_agreement", "within_caption_distance"):
            assert other[key] == scores[method][key], (method, key)
        assert other["inception_score"]["mean"] == pytest.approx(scores[method]["inception_score"]["mean"], abs=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_number_of_workers_does_not_move_a_digit(inputs: Inputs, num_workers: int) -> None:
    on_ray = [inputs.evaluate(map_jobs=partial(map_shards, num_workers=workers)) for workers in (num_workers, 3)]
    assert json.dumps(on_ray[0]) == json.dumps(on_ray[1])


@pytest.mark.slow
def test_the_order_in_which_parts_are_judged_does_not_move_a_digit(inputs: Inputs, scores: dict[str, Any]) -> None:
    def backwards(work: Callable[[JudgeJob], Judged], jobs: Sequence[JudgeJob]) -> list[Judged]:
        return [work(job) for job in reversed(jobs)][::-1]

    assert json.dumps(inputs.score(map_jobs=backwards)) == json.dumps(scores)


def test_the_same_inputs_write_the_same_bytes(inputs: Inputs, scores: dict[str, Any]) -> None:
    assert json.dumps(inputs.score()) == json.dumps(scores)
    assert json.dumps(inputs.score(seed=1)) != json.dumps(scores)


def test_copies_of_a_picture_are_at_distance_zero_and_opposites_at_one() -> None:
    rows = [{"image_id": image_id, "caption_id": 0} for image_id in (1, 1, 2, 2)]
    images = np.stack([np.full((64, 64, 3), value, np.uint8) for value in (90, 90, 0, 255)])
    assert within_caption_distance(rows[:2], images[:2]) == {"mean": 0.0, "num_pairs": 1}
    assert within_caption_distance(rows, images) == {"mean": 0.5, "num_pairs": 2}


def test_single_pictures_of_their_captions_have_no_distance(scores: dict[str, Any]) -> None:
    assert scores["real_test"]["within_caption_distance"] is None
    assert scores["stackgan"]["within_caption_distance"]["num_pairs"] == 15


def test_area_reduction_averages_blocks_and_rounds() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), dtype=np.uint8)
    means = images.reshape(3, 64, 4, 64, 4, 3).mean(axis=(2, 4))
    assert np.array_equal(area_reduced(images, 64), np.floor(means + 0.5).astype(np.uint8))
    assert np.array_equal(area_reduced(images[:, :64, :64], 64), images[:, :64, :64])


@pytest.mark.slow
def test_features_of_the_classifier_are_scored_as_they_were_trained_on(inputs: Inputs, tmp_path: Path) -> None:
    classifier_dir, encoder_dir = tmp_path / "classifier", tmp_path / "text_encoder"
    train_classifier(
        crops_dir=inputs.crops_dir,
        models_dir=classifier_dir,
        network="resnet18",
        weights="none",
        classes="train",
        **CLASSIFIER,
    )
    classifier = load_classifier(classifier_dir)
    write_encoders(encoder_dir)
    projection = FeatureProjection(classifier, embedding_dim=8)
    projection.initialise(torch.Generator().manual_seed(0))
    save_image_encoder(encoder_dir, projection)
    found = inputs.score(classifier_dir=classifier_dir, text_encoder_dir=encoder_dir)["stackgan"]
    assert found["class_agreement"] is None  # it knows the train classes alone
    assert found["protocol"]["resizer"] == "antialiased bilinear to 64 (classifier), the classifier's (encoder)"

    # The whole 256x256 pictures reach the classifier, not those reduced by area.
    pictures = read_samples(inputs.samples_dir)["stackgan"]
    features = classifier.features(pictures_of(pictures), batch_size=8)
    expected = retrieval_of(inputs.crops_dir, encoder_dir, pictures, projection(features).detach())
    assert found["r_precision"]["value"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_an_imagenet_network_scores_pictures_but_names_no_class(inputs: Inputs, tmp_path: Path) -> None:
    save_file(new_network("inception_v3", 1000, seed=7).state_dict(), tmp_path / "inception.safetensors")
    train_classifier(
        crops_dir=inputs.crops_dir,
        models_dir=tmp_path / "classifier",
        network="inception_v3",
        weights=str(tmp_path / "inception.safetensors"),
        classes="imagenet",
        **CLASSIFIER,
    )
    images = read_images(inputs.crops_dir, "test")[:4]
    write_samples(tmp_path / "samples", images, {"stage1": paint_truth(64)})
    classifier_dir, samples_dir = tmp_path / "classifier", tmp_path / "samples"
    found = inputs.score(classifier_dir=classifier_dir, samples_dir=samples_dir, num_splits=2)["stage1"]
    assert found["class_agreement"] is None
    protocol = found["protocol"]
    assert (protocol["classifier_num_classes"], protocol["classifier_held_out_accuracy"]) == (1000, None)
    assert found["inception_score"]["mean"] >= 1 and found["fid"] > 0


@pytest.mark.parametrize("size", [32, 100])
def test_pictures_of_another_size_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"pictures of {size}x{size}"):
        area_reduced(np.zeros((1, size, size, 3), np.uint8), 64)


def test_every_caption_of_a_picture_goes_with_the_middle_of_the_real_one(inputs: Inputs) -> None:
    samples = read_samples(inputs.samples_dir)
    several = replace(
        samples["stage1"], rows=[row | {"caption_id": k} for row in samples["stage1"].rows for k in (0, 2)]
    )
    real = real_counterparts(inputs.crops_dir, [several])
    assert len(real.rows) == 30
    shards = ImageShards(inputs.crops_dir / "test", 304)
    for index in (0, 1, 29):
        place = shards.image_ids.index(real.rows[index]["image_id"])
        assert np.array_equal(real.picture_of(index), shards.gather(np.array([place]))[0, 24:280, 24:280])


def test_training_pictures_are_drawn_equally_often(inputs: Inputs) -> None:
    drawn = real_train(inputs.crops_dir, 40, seed=0)
    counts = Counter(row["image_id"] for row in drawn.rows)
    assert set(counts) == {image["image_id"] for image in read_images(inputs.crops_dir, "train")}
    assert set(counts.values()) == {2, 3}  # 40 of 15
    shards = ImageShards(inputs.crops_dir / "train", 304)
    for row in (0, 39):
        place = shards.image_ids.index(drawn.rows[row]["image_id"])
        assert np.array_equal(drawn.picture_of(row), shards.gather(np.array([place]))[0, 24:280, 24:280])
    assert drawn.rows != real_train(inputs.crops_dir, 40, seed=1).rows


def test_noise_depends_on_the_seed_and_the_number_of_the_picture_alone() -> None:
    few, many, other = noise(3, seed=0), noise(260, seed=0), noise(3, seed=1)
    assert len(many.parts) == 2 and sum(part.count for part in many.parts) == 260
    assert np.array_equal(few.picture_of(2), many.picture_of(2))
    assert not np.array_equal(few.picture_of(2), other.picture_of(2))
    last = many.picture_of(259)
    assert last.shape == (256, 256, 3)
    assert abs(float(last.mean()) - 127.5) < 1 and (last.min(), last.max()) == (0, 255)


def test_samples_of_pictures_that_are_not_there_are_refused(inputs: Inputs) -> None:
    stage1 = read_samples(inputs.samples_dir)["stage1"]
    strange = replace(stage1, rows=[row | {"image_id": 4711} for row in stage1.rows])
    with pytest.raises(ValueError, match="picture 4711, which the test split lacks"):
        real_counterparts(inputs.crops_dir, [strange])


def test_fewer_pictures_than_splits_are_refused_by_method(inputs: Inputs) -> None:
    with pytest.raises(ValueError, match=r"^real_test: 15 pictures .* evaluate_inception\.num_splits"):
        inputs.score(num_splits=16)


def test_more_wrong_captions_than_there_are_is_refused(inputs: Inputs) -> None:
    with pytest.raises(ValueError, match=r"evaluate_inception\.num_wrong_captions is 31.*30 captions: lower it"):
        inputs.score(num_wrong_captions=31)


def test_a_classifier_of_other_classes_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    images = [image | {"class_id": 77} for image in read_images(inputs.crops_dir, "test")]
    write_samples(tmp_path, images, {"stage1": lambda row: np.zeros((64, 64, 3), np.uint8)})
    with pytest.raises(ValueError, match="the classifier does not know class 77: rerun train_classifier"):
        inputs.score(samples_dir=tmp_path)


def test_shards_of_other_pictures_are_refused(inputs: Inputs, tmp_path: Path) -> None:
    images = read_images(inputs.crops_dir, "test")
    write_samples(tmp_path, images, {"stage1": lambda row: np.zeros((64, 64, 3), np.uint8)})
    write_shard(shard_path(tmp_path / "stage1", 0), [5], {64: np.zeros((1, 64, 64, 3), np.uint8)})
    with pytest.raises(ValueError, match=r"stage1 holds 9 pictures that are not the 15 of samples\.parquet"):
        inputs.score(samples_dir=tmp_path)
    shard_path(tmp_path / "stage1", 0).write_bytes(b"torn")
    with pytest.raises(ValueError, match="is not a whole Arrow file"):
        inputs.score(samples_dir=tmp_path)
