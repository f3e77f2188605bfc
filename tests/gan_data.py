"""A small training set on the disk, as crop_images and embed_captions would write it, for the tests of pipeline.gan."""

from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa

from pipeline.data.shards import shard_path, write_shard
from pipeline.data.tables import IMAGES, embeddings_schema, write_table
from pipeline.gan.architecture import architecture_of
from pipeline.gan.job import TrainingJob
from pipeline.params import GanParams, HardwareParams, Speedup, TrainParams

EMBEDDING_DIM = 12
CAPTIONS_PER_IMAGE = 5

GAN = GanParams(
    stage1_size=64,
    stage2_size=256,
    generator_dim=8,
    discriminator_dim=4,
    z_dim=6,
    condition_dim=8,
    conditioning_augmentation=True,
    condition_spread="log_variance",
    condition_activation="none",
    truncated_noise=False,
    text_twice=True,
    num_residual_blocks=1,
    bottleneck_residuals=True,
    upsampling="nearest",
    sketch_layer=False,
    joint_kernel=1,
    third_activation=True,
    discriminator_text="own",
    unconditional_head=False,
    logit_bias=False,
    truncated_weights=True,
    spectral_normalisation=False,
    box_conditioned=False,
    captions_averaged=2,
    wrong_pairs="other_text",
    adversarial_loss="bce",
    kl_form="mean",
    kl_weight=2.0,
    interpolation_weight=0.0,
    redraw_noise=False,
    stage1_batch_statistics=False,
    gradient_penalty="none",
    gradient_penalty_weight=0.0,
    ema_decay=0.0,
)
ARCHITECTURE = architecture_of(GAN, EMBEDDING_DIM)
TRAIN = TrainParams(
    num_epochs=3,
    batch_size=4,
    accumulation=1,
    synchronised_batchnorm=False,
    learning_rate=2e-4,
    lr_halving_epochs=2,
    checkpoint_every_epochs=1,
    sample_every_epochs=2,
    differentiable_augmentation=False,
    transform={},
    seed=5,
)
CPU = HardwareParams(
    num_workers=1,
    min_workers=1,
    use_gpu=False,
    precision="float32",
    max_failures=0,
    device_data_mb=0,
    speedups=get_args(Speedup),
)


def write_training_set(folder: Path, num_train: int = 13, num_test: int = 6) -> None:
    """Write <folder>/crops and <folder>/embeddings with random pictures of three train and two test classes."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for split, count, num_classes in (("train", num_train, 3), ("test", num_test, 2)):
        ids = list(range(len(rows) + 1, len(rows) + 1 + count))
        images = {size: rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8) for size in (76, 304)}
        (folder / "crops" / split).mkdir(parents=True, exist_ok=True)
        write_shard(shard_path(folder / "crops" / split, 0), ids, images)
        for image_id in ids:
            class_id = image_id % num_classes + (10 if split == "test" else 0)
            rows.append(
                {
                    "image_id": image_id,
                    "class_id": class_id,
                    "class_name": f"class {class_id}",
                    "split": split,
                    "file_name": f"{image_id}.jpg",
                    "width": 10,
                    "height": 10,
                    "bbox": [0.0, 0.0, 10.0, 10.0],
                    "crop_box": [0, 0, 10, 10],
                    "object_area_ratio_before": 1.0,
                    "object_area_ratio": 1.0,
                    "captions": [f"bird {image_id} seen {number}" for number in range(CAPTIONS_PER_IMAGE)],
                }
            )
        columns = [
            pa.array(np.repeat(ids, CAPTIONS_PER_IMAGE), pa.int64()),
            pa.array(np.tile(range(CAPTIONS_PER_IMAGE), count), pa.int32()),
            pa.array([f"bird {image_id} seen {number}" for image_id in ids for number in range(CAPTIONS_PER_IMAGE)]),
            pa.FixedSizeListArray.from_arrays(
                pa.array(rng.standard_normal(count * CAPTIONS_PER_IMAGE * EMBEDDING_DIM).astype(np.float32)),
                EMBEDDING_DIM,
            ),
        ]
        schema = embeddings_schema(EMBEDDING_DIM, {"name": "test", "sha256": "0"})
        write_table(folder / "embeddings" / f"{split}.parquet", pa.Table.from_arrays(columns, schema=schema))
    write_table(folder / "crops" / "images.parquet", pa.Table.from_pylist(rows, schema=IMAGES))


def training_job(
    data_dir: Path,
    storage_dir: Path,
    *,
    stage_number: int = 1,
    stage1_dir: Path | None = None,
    train: TrainParams = TRAIN,
) -> TrainingJob:
    """Return a job on a training set that write_training_set wrote."""
    assert stage_number in (1, 2)
    return TrainingJob(
        stage_number=1 if stage_number == 1 else 2,
        crops_dir=data_dir / "crops",
        embeddings_dir=data_dir / "embeddings",
        stage1_dir=stage1_dir,
        storage_dir=storage_dir,
        gan=GAN,
        train=train,
        hardware=CPU,
        provenance={},
    )
