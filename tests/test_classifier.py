"""The classifier: what it learns, what it is measured on, and where its weights come from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.models import Inception_V3_Weights

from pipeline.data.files import file_sha256
from pipeline.data.tables import read_images
from pipeline.evaluation.classifier import load_classifier, new_network, pretrained_network, resized
from pipeline.evaluation.classifier_training import held_out_rows, train_classifier
from tests.evaluation_data import colour_of, coloured, write_crops

Train = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def crops_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crops")
    write_crops(folder, images_per_class=8)
    return folder


@pytest.fixture(scope="module")
def train(crops_dir: Path) -> Train:
    def call(models_dir: Path, **changes: Any) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "crops_dir": crops_dir,
            "network": "resnet18",
            "weights": "none",
            "classes": "test",
            "held_out_share": 0.25,
            "num_epochs": 8,
            "batch_size": 6,
            "learning_rate": 1e-3,
            "seed": 0,
        }
        return train_classifier(models_dir=models_dir, **settings | changes)

    return call


@pytest.fixture(scope="module")
def trained(train: Train, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("trained")
    return folder, train(folder)


def test_it_learns_colours_that_it_is_shown(trained: tuple[Path, dict[str, Any]]) -> None:
    report = trained[1]
    assert report["held_out_accuracy"] == 1
    assert report["chance"] == pytest.approx(1 / 3, abs=1e-6)
    assert (report["num_classes"], report["num_train_images"], report["num_held_out"]) == (3, 18, 6)


def test_a_loaded_classifier_names_the_class_of_new_pictures_of_any_size(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    classifier = load_classifier(trained[0])
    for size in (64, 256):
        images = np.stack([coloured(colour_of(c), size, np.random.default_rng(c)) for c in classifier.class_ids])
        guesses = classifier.log_probabilities(images, batch_size=2).argmax(dim=1).tolist()
        assert guesses == [0, 1, 2]


def test_the_snapshot_says_what_rebuilds_and_describes_it(
    trained: tuple[Path, dict[str, Any]], crops_dir: Path
) -> None:
    classifier = load_classifier(trained[0])
    assert set(classifier.class_ids) == {row["class_id"] for row in read_images(crops_dir, "test")}
    assert classifier.sha256 == file_sha256(trained[0] / "classifier.safetensors")
    assert classifier.held_out_accuracy == trained[1]["held_out_accuracy"]
    assert (classifier.network_name, classifier.input_size) == ("resnet18", 64)


@pytest.mark.parametrize("batch_size", [1, 3, 11])
def test_batch_size_does_not_move_the_probabilities(trained: tuple[Path, dict[str, Any]], batch_size: int) -> None:
    classifier = load_classifier(trained[0])
    images = np.random.default_rng(0).integers(0, 256, (11, 256, 256, 3), dtype=np.uint8)
    batched, whole = (classifier.log_probabilities(images, size) for size in (batch_size, 64))
    assert whole.dtype == torch.float64
    torch.testing.assert_close(batched, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(whole.exp().sum(dim=1), torch.ones(11, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_same_seed_trains_the_same_weights_and_leaves_the_global_generator_alone(
    train: Train, tmp_path: Path
) -> None:
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    reports = [train(tmp_path / name, num_epochs=1, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert reports[0] == reports[1]
    hashes = [load_classifier(tmp_path / name).sha256 for name in ("a", "b", "c")]
    assert hashes[0] == hashes[1] != hashes[2]


def test_all_classes_means_those_of_both_splits(train: Train, tmp_path: Path) -> None:
    seen: list[int] = []
    report = train(tmp_path, classes="all", num_epochs=1, on_epoch=lambda epoch, loss: seen.append(epoch))
    assert (report["num_classes"], report["num_train_images"], report["num_held_out"]) == (6, 36, 12)
    assert load_classifier(tmp_path).class_ids == (1, 2, 3, 4, 5, 6)
    assert seen == [1]


def test_bfloat16_training_learns_too(train: Train, tmp_path: Path) -> None:
    losses: list[float] = []
    train(tmp_path, precision="bfloat16", num_epochs=4, on_epoch=lambda epoch, loss: losses.append(loss))
    assert losses[-1] < 0.8 * losses[0]


def test_one_picture_at_least_of_each_class_is_held_out_and_one_is_kept() -> None:
    labels = np.repeat(np.arange(5), [1, 2, 3, 10, 40])
    kept, held_out = held_out_rows(labels, 0.2, seed=1)
    assert np.bincount(labels[held_out], minlength=5).tolist() == [0, 1, 1, 2, 8]
    assert sorted([*kept, *held_out]) == list(range(len(labels)))
    most, _ = held_out_rows(labels, 0.99, seed=1)
    assert np.bincount(labels[most], minlength=5).tolist() == [1, 1, 1, 1, 1]


def test_which_pictures_are_held_out_follows_from_the_seed() -> None:
    labels = np.repeat(np.arange(4), 10)
    first, again, other = (held_out_rows(labels, 0.3, seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_shrinking_equals_pillows_bilinear_filter() -> None:
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    ours = resized(torch.from_numpy(image).permute(2, 0, 1)[None].float(), 64)[0].permute(1, 2, 0).numpy()
    theirs = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR), np.float32)
    assert np.abs(ours - theirs).max() < 1.01  # Pillow rounds, twice


@pytest.mark.slow
def test_inception_v3_trains_with_its_auxiliary_head_and_is_saved_without(train: Train, tmp_path: Path) -> None:
    write_crops(tmp_path / "crops", images_per_class=2)
    report = train(tmp_path, crops_dir=tmp_path / "crops", network="inception_v3", num_epochs=1)
    assert report["num_train_images"] == report["num_held_out"] == 3 and "from scratch" in report["note"]
    classifier = load_classifier(tmp_path)
    assert classifier.input_size == 299
    log_p = classifier.log_probabilities(np.zeros((2, 64, 64, 3), np.uint8), batch_size=2)
    assert log_p.shape == (2, 3) and torch.isfinite(log_p).all()


def test_weights_of_a_file_are_kept_in_all_but_the_last_layers(tmp_path: Path) -> None:
    path = tmp_path / "inception.safetensors"
    source = new_network("inception_v3", 1000, seed=7)
    # As the published file: it counts no batches.
    state = {key: value for key, value in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    save_file(state, path)
    loaded = pretrained_network("inception_v3", str(path), 3, seed=0).state_dict()
    assert loaded["fc.weight"].shape == (3, 2048) and loaded["AuxLogits.fc.weight"].shape == (3, 768)
    for key, value in state.items():
        assert key.startswith(("fc.", "AuxLogits.fc.")) or torch.equal(loaded[key], value), key


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.safetensors", None, "missing.safetensors is missing"),
        ("torn.safetensors", b"torn", "is not a safetensors file"),
        ("weights.pth", b"", "must be none, imagenet or a .safetensors file"),
    ],
)
def test_weights_that_cannot_be_read_are_refused_by_name(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"train_classifier\.weights.*{message}"):
        pretrained_network("inception_v3", str(tmp_path / name), 3, seed=0)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet.safetensors"
    save_file(new_network("resnet18", 10, seed=0).state_dict(), path)
    with pytest.raises(ValueError, match="not torchvision's inception_v3"):
        pretrained_network("inception_v3", str(path), 3, seed=0)
    with pytest.raises(ValueError, match="resnet18 is trained from scratch: set it to none"):
        pretrained_network("resnet18", str(path), 3, seed=0)


def test_imagenet_weights_that_cannot_be_had_are_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torn_path = tmp_path / "hub" / "checkpoints" / Path(Inception_V3_Weights.IMAGENET1K_V1.url).name
    torn_path.parent.mkdir(parents=True)
    torn_path.write_bytes(b"half of a download")
    with pytest.raises(ValueError, match=r"weights is imagenet, but.*\.safetensors file.*set weights to none"):
        pretrained_network("inception_v3", "imagenet", 3, seed=0)


def test_a_batch_of_one_picture_is_refused(train: Train, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train_classifier\.batch_size 1"):
        train(tmp_path, batch_size=1)
    assert not list(tmp_path.iterdir())


def test_missing_crops_are_refused(train: Train, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"images\.parquet is missing"):
        train(tmp_path / "models", crops_dir=tmp_path)


def test_train_classes_are_those_of_the_train_split_alone(train: Train, tmp_path: Path) -> None:
    report = train(tmp_path, classes="train", num_epochs=1)
    classifier = load_classifier(tmp_path)
    assert (classifier.classes, classifier.class_ids) == ("train", (1, 2, 5))
    assert "it knows the train classes, so it cannot name those of the pictures" in str(report["note"])


def test_features_are_what_the_last_layer_sees(trained: tuple[Path, dict[str, Any]]) -> None:
    classifier = load_classifier(trained[0])
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    features = classifier.features(images, batch_size=2)
    assert features.shape == (5, classifier.feature_dim) == (5, 512)
    assert classifier.crop_size == 64
    logits = features @ classifier.network.get_parameter("fc.weight").T + classifier.network.get_parameter("fc.bias")
    expected = classifier.log_probabilities(images, batch_size=5)
    torch.testing.assert_close(logits.double().log_softmax(1), expected, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def imagenet_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in the form of torchvision's, BatchNorm statistics that are not 0 and 1, no counts of batches."""
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    network, generator = new_network("inception_v3", 1000, seed=7), torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
    state = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    save_file(state, path)
    return path


def test_an_imagenet_network_is_kept_as_it_is(train: Train, imagenet_path: Path, tmp_path: Path) -> None:
    report = train(tmp_path, network="inception_v3", classes="imagenet", weights=str(imagenet_path))
    assert (report["num_classes"], report["held_out_accuracy"]) == (1000, None)
    assert report["weights"] == "inception.safetensors"  # not where this machine has it
    classifier = load_classifier(tmp_path)
    assert (classifier.num_classes, classifier.class_ids, classifier.held_out_accuracy) == (1000, (), None)

    # What it says of pictures is what torchvision's own network says, whose BatchNorms are layers of their own.
    original = new_network("inception_v3", 1000, seed=0)
    original.load_state_dict(load_file(imagenet_path), strict=False)
    images = np.random.default_rng(0).integers(0, 256, (2, 299, 299, 3), dtype=np.uint8)
    with torch.inference_mode():
        logits = original.eval()(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)
    expected = logits.double().log_softmax(dim=1)
    torch.testing.assert_close(classifier.log_probabilities(images, batch_size=2), expected, rtol=1e-5, atol=1e-4)
    assert expected.std() > 0.01


@pytest.mark.parametrize(("network", "weights"), [("resnet18", "imagenet"), ("inception_v3", "none")])
def test_an_imagenet_network_needs_weights(train: Train, tmp_path: Path, network: str, weights: str) -> None:
    with pytest.raises(ValueError, match=r"train_classifier\.classes is imagenet.*set network to inception_v3, and we"):
        train(tmp_path, network=network, classes="imagenet", weights=weights)


def test_an_imagenet_network_lacks_no_weight(train: Train, imagenet_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "headless.safetensors"
    save_file({key: value for key, value in load_file(imagenet_path).items() if key != "fc.weight"}, path)
    with pytest.raises(ValueError, match=r"not torchvision's inception_v3: 1 weights are missing.*fc\.weight"):
        train(tmp_path / "models", network="inception_v3", classes="imagenet", weights=str(path))
