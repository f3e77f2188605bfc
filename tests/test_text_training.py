"""pipeline.text.training: whatever the encoder, the report's scores are those of what was frozen, on classes unseen."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.files import file_sha256
from pipeline.data.shards import ImageShards
from pipeline.data.tables import read_images
from pipeline.evaluation.classifier import Classifier, load_classifier
from pipeline.evaluation.classifier_training import train_classifier
from pipeline.params import FitTextEncoderParams
from pipeline.text.encoders import load_text_encoder
from pipeline.text.freezing import freeze_pretrained
from pipeline.text.image_encoders import encode_images, load_image_encoder
from pipeline.text.retrieval import class_retrieval
from pipeline.text.training import fit_on_crops
from tests.evaluation_data import CAPTIONS_PER_IMAGE, write_crops
from tests.pretrained_data import write_bert


def params_of(**changes: Any) -> FitTextEncoderParams:
    values: dict[str, Any] = {
        "encoder": "char_cnn_rnn",
        "pretrained_model": "",
        "image_features": "data/crops/train",
        "rnn": "gru",
        "conv_dims": (16, 16, 16),
        "embedding_dim": 20,
        "num_steps": 12,
        "batch_size": 40,
        "learning_rate": 7e-4,
        "lr_decay": 0.98,
        "seed": 0,
    }
    return FitTextEncoderParams(**values | changes)


@pytest.fixture(scope="module")
def crops_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crops")
    write_crops(folder)
    return folder


@pytest.fixture(scope="module")
def classifiers(crops_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Classifier]:
    """Return one of the train classes and one of the test classes."""
    found: dict[str, Classifier] = {}
    for classes in ("train", "test"):
        folder = tmp_path_factory.mktemp(classes)
        train_classifier(
            crops_dir=crops_dir,
            models_dir=folder,
            network="resnet18",
            weights="none",
            classes=classes,
            held_out_share=0.2,
            num_epochs=2,
            batch_size=6,
            learning_rate=1e-3,
            seed=0,
        )
        found[classes] = load_classifier(folder)
    return found


def fitted(crops_dir: Path, folder: Path, features: Classifier | None = None, **changes: Any) -> dict[str, Any]:
    fit_on_crops(crops_dir, folder / "encoder", folder / "report.json", params_of(**changes), "cpu", features)
    return json.loads((folder / "report.json").read_text())


def zero_shot_of(crops_dir: Path, encoder_dir: Path, features: Classifier | None = None) -> dict[str, float]:
    """Score the snapshots anew, from the files of the pipeline."""
    rows = read_images(crops_dir, "test")
    images = ImageShards(crops_dir / "test", 76).all()[:, 6:70, 6:70]
    class_ids = torch.tensor([row["class_id"] for row in rows])
    scores = class_retrieval(
        encode_images(load_image_encoder(encoder_dir, source=features), images),
        class_ids,
        load_text_encoder(encoder_dir).encode([caption for row in rows for caption in row["captions"]]),
        class_ids.repeat_interleave(CAPTIONS_PER_IMAGE),
    )
    return {key: round(float(value), 4) for key, value in scores._asdict().items()}


def test_the_report_names_the_encoder_and_scores_it_beside_chance(crops_dir: Path, tmp_path: Path) -> None:
    report = fitted(crops_dir, tmp_path)
    assert (report["encoder"], report["embedding_dim"], report["image_features"]) == (
        "char_cnn_rnn",
        20,
        "data/crops/train",
    )
    assert report["encoder_sha256"] == file_sha256(tmp_path / "encoder/text_encoder.safetensors")
    assert report["zero_shot"] == zero_shot_of(crops_dir, tmp_path / "encoder")
    assert report["zero_shot"]["num_classes"] == 3
    assert report["zero_shot"]["chance"] == pytest.approx(1 / 3, abs=1e-4)
    assert np.isfinite([report["train_loss"], report["train_accuracy"]]).all()


def test_the_same_inputs_write_the_same_bytes(crops_dir: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        fitted(crops_dir, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 5
    for path in files:
        assert file_sha256(tmp_path / "a" / path) == file_sha256(tmp_path / "b" / path)


def test_a_pretrained_encoder_stays_as_it_is_and_the_image_encoder_takes_its_length(
    crops_dir: Path, tmp_path: Path
) -> None:
    model_dir = write_bert(tmp_path / "tiny")
    freeze_pretrained(str(model_dir), tmp_path / "alone")
    report = fitted(crops_dir, tmp_path, encoder="pretrained", pretrained_model=str(model_dir))
    encoder = load_text_encoder(tmp_path / "alone")
    assert (report["encoder"], report["encoder_sha256"]) == ("tiny", encoder.sha256)
    assert report["embedding_dim"] == encoder.embedding_dim == 24
    assert load_text_encoder(tmp_path / "encoder").sha256 == encoder.sha256
    assert load_image_encoder(tmp_path / "encoder").embedding_dim == 24
    assert report["num_parameters"] == sum(parameter.numel() for parameter in encoder.network.parameters())
    assert report["zero_shot"] == zero_shot_of(crops_dir, tmp_path / "encoder")


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["char_cnn_rnn", "pretrained"])
def test_the_classifiers_features_take_the_place_of_the_joint_network(
    crops_dir: Path, tmp_path: Path, classifiers: dict[str, Classifier], encoder: str
) -> None:
    model = str(write_bert(tmp_path / "tiny")) if encoder == "pretrained" else ""
    changes = {"encoder": encoder, "pretrained_model": model, "image_features": "models/classifier"}
    report = fitted(crops_dir, tmp_path, classifiers["train"], **changes)
    assert report["image_features"] == "models/classifier"
    assert report["zero_shot"] == zero_shot_of(crops_dir, tmp_path / "encoder", classifiers["train"])
    with pytest.raises(ValueError, match="another classifier's features"):
        load_image_encoder(tmp_path / "encoder", source=classifiers["test"])


def test_a_classifier_that_knows_the_test_classes_is_refused_with_the_remedy(
    crops_dir: Path, tmp_path: Path, classifiers: dict[str, Classifier]
) -> None:
    remedy = (
        r"trained on 3 test classes \(3, \.\.\.\).*set train_classifier\.classes: train, or keep image_features: data"
    )
    with pytest.raises(ValueError, match=remedy):
        fitted(crops_dir, tmp_path, classifiers["test"], image_features="models/classifier")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_model_leaves_the_encoder_before_it_as_it_was(crops_dir: Path, tmp_path: Path) -> None:
    fitted(crops_dir, tmp_path)
    sha256 = load_text_encoder(tmp_path / "encoder").sha256
    model_dir = write_bert(tmp_path / "tiny")
    (model_dir / "model.safetensors").rename(model_dir / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin in place of model\.safetensors"):
        fitted(crops_dir, tmp_path, encoder="pretrained", pretrained_model=str(model_dir))
    assert load_text_encoder(tmp_path / "encoder").sha256 == sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder", "report.json", "tiny"]
