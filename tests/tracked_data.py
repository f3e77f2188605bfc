"""Tracked evaluations as the stages would leave them in MLflow, in a SQLite file of their own."""

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from mlflow.entities import Param
from mlflow.tracking import MlflowClient
from PIL import Image

from pipeline.tracking import experiment_name, tracking_uri

CAPTIONS = ("a red bird", "a blue bird")


def scores(mean: float, half_interval: float = 0.1, seed: int = 0) -> dict[str, Any]:
    """Return one method's scores, as far as the tables read them; the seed makes the protocol another."""
    return {
        "image_size": 64,
        "inception_score": {"mean": mean, "std": 0.05, "low": mean - half_interval, "high": mean + half_interval},
        "fid": 12.34,
        "r_precision": {"value": 0.5, "standard_error": 0.01, "chance": 0.1},
        "protocol": {"num_images": 20, "seed": seed},
    }


def track_evaluation(
    settings: Mapping[str, str],
    mean: float,
    *,
    dataset: str = "demo",
    seed: int = 0,
    status: str = "FINISHED",
    with_gallery: bool = True,
) -> str:
    """Track an evaluation and the three runs behind it, each with its part of the settings, and return its id."""
    client = MlflowClient(tracking_uri())
    name = experiment_name(dataset)
    found = client.get_experiment_by_name(name)
    experiment_id = found.experiment_id if found else client.create_experiment(name)

    def run(stage: str, **upstream: str) -> str:
        tags = {
            "stage": stage,
            "mlflow.source.git.commit": "c0ffee0011",
            **{f"upstream.{key}": run_id for key, run_id in upstream.items()},
        }
        run_id = client.create_run(experiment_id, tags=tags, run_name=stage).info.run_id
        sections = (stage, "gan") if stage.startswith("train_") else (stage,)
        own = [Param(key, value) for key, value in settings.items() if key.startswith(sections)]
        client.log_batch(run_id, params=own)
        return run_id

    stage1 = run("train_stage1")
    stage2 = run("train_stage2", train_stage1=stage1)
    samples = run("generate_samples", train_stage1=stage1, train_stage2=stage2)
    if with_gallery:
        client.log_dict(samples, {"captions": [{"caption": caption} for caption in CAPTIONS]}, "gallery/captions.json")
        for number in range(len(CAPTIONS)):
            client.log_image(samples, picture(number), f"gallery/stackgan_{number}.png")
    evaluation = run("evaluate_inception", generate_samples=samples)
    methods = {"stackgan": scores(mean, seed=seed)}
    client.log_dict(evaluation, {"methods": methods}, "reports/evaluate_inception.json")
    client.set_terminated(evaluation, status)
    return evaluation


def picture(number: int) -> Image.Image:
    """Return the gallery's picture of a caption."""
    return Image.fromarray(np.full((8, 8, 3), 100 + number, np.uint8))


def grey_of(png: bytes) -> int:
    """Return which picture a PNG file holds."""
    with Image.open(io.BytesIO(png)) as image:
        return int(np.asarray(image)[0, 0, 0]) - 100


def as_json(value: object) -> object:
    """Return a value as it comes back from JSON."""
    return json.loads(json.dumps(value))
