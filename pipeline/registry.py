"""MLflow's model registry: the trained generator as a version that `mlflow models serve` answers with.

The version is made of the run that trained Stage-II, found by the hash of the models, and of pipeline/serving.py.
"""

import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

from pipeline.tracking import read_stage_node, tracking_uri, tree_sha256, writer_of

PARTS = ("text_encoder", "stage2")  # of the models' folder: what painting a caption needs
PACKAGES = ("mlflow", "numpy", "pandas", "pillow", "pyarrow", "safetensors", "torch", "torchvision")


def register(models_dir: Path) -> str:
    """Register the models, and return models:/<name>/<version>; the same models again are the same version.

    Raises:
        ValueError: no tracked training wrote them, or a part is missing.
        ConnectionError: MLflow does not answer, or refuses.
    """
    from mlflow.exceptions import MlflowException

    try:
        return _registered(models_dir)
    except MlflowException as error:
        raise ConnectionError(f"MLflow at {tracking_uri()}: {' '.join(str(error).split())[:300]}") from None


def _registered(models_dir: Path) -> str:
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.tracking import MlflowClient
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    node = read_stage_node("train_stage2")
    uri = tracking_uri()
    mlflow.set_tracking_uri(uri)
    client = MlflowClient(uri)
    name = f"stackgan-{node.dataset}"
    hashes = {part: tree_sha256(models_dir / part) for part in PARTS}
    run = writer_of(client, node.dataset, node.outs[0], hashes["stage2"])
    if run is None:
        raise ValueError(f"no finished run of train_stage2 in {uri} wrote {models_dir / 'stage2'}: `dvc repro` first")
    tags = {f"sha256.{part}": sha256 for part, sha256 in hashes.items()}
    try:
        client.create_registered_model(name, description="StackGAN: a caption in, a PNG of 256x256 pixels out.")
    except MlflowException:  # it is there
        client.get_registered_model(name)
    for known in client.search_model_versions(f"name = '{name}'"):
        if tags.items() <= known.tags.items():
            return f"models:/{name}/{known.version}"
    with tempfile.TemporaryDirectory() as folder:
        parts = Path(folder) / "models"
        for part in PARTS:
            shutil.copytree(models_dir / part, parts / part)
        package = Path(folder) / "pipeline"
        shutil.copytree(Path(__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
        model = mlflow.initialize_logged_model(
            "generator", source_run_id=run.info.run_id, tags=tags, model_type="pyfunc"
        )
        mlflow.pyfunc.log_model(
            model_id=model.model_id,
            name="generator",
            python_model=str(package / "serving.py"),
            artifacts={"models": str(parts)},
            code_paths=[str(package)],
            signature=ModelSignature(
                inputs=Schema([ColSpec("string", "caption")]),
                outputs=Schema([ColSpec("binary", "png")]),
                params=ParamSchema([ParamSpec("seed", "long", 0)]),
            ),
            pip_requirements=[f"{package}=={version(package)}" for package in PACKAGES],
        )
    made = client.create_model_version(
        name, f"models:/{model.model_id}", run.info.run_id, tags, model_id=model.model_id
    )
    return f"models:/{name}/{made.version}"
