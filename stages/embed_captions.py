"""DVC stage: every caption to an embedding."""

from functools import partial
from pathlib import Path

from pipeline.cluster import map_shards
from pipeline.params import EmbedCaptionsParams, HardwareParams, load_params
from pipeline.text.embedding import embed_captions
from pipeline.tracking import run_stage, stage_run


def main(crops_dir: Path, source_dir: Path, embeddings_dir: Path, report_path: Path) -> None:
    """Write data/embeddings."""
    params = load_params("embed_captions", EmbedCaptionsParams)
    hardware = load_params("hardware", HardwareParams)
    with stage_run("embed_captions"):
        embed_captions(
            crops_dir, source_dir, embeddings_dir, report_path,
            is_released=source_dir.name == "released_embeddings", batch_size=params.batch_size, device=hardware.device,
            map_jobs=partial(map_shards, num_workers=hardware.num_workers, use_gpu=hardware.use_gpu),
        )  # fmt: skip


if __name__ == "__main__":
    run_stage(main)
