"""DVC stage embed_captions on the files of the pipeline: captions -> embeddings.

They come from the encoder in models/text_encoder, in jobs that any number of workers share out, or out of the released
files of the published code (see pipeline.data.released).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data.files import replaced_folder, write_json
from pipeline.data.released import read_released, released_encoder
from pipeline.data.tables import EncoderId, embeddings_schema, read_images, write_table
from pipeline.text.char_cnn_rnn import ALPHABET, MAX_CHARS
from pipeline.text.encoders import load_text_encoder

CAPTIONS_PER_JOB = 1024  # whatever the number of workers: equal jobs give equal bytes
SPLITS = ("train", "test")

Vectors = npt.NDArray[np.float32]  # (N, embedding_dim)


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingJob:
    """Some captions to embed, on one worker."""

    encoder_dir: Path
    captions: tuple[str, ...]
    batch_size: int
    device: str


MapJobs = Callable[[Callable[[EmbeddingJob], Vectors], Sequence[EmbeddingJob]], Sequence[Vectors]]


class _Embedded(NamedTuple):
    """The embeddings of one split's captions, picture after picture."""

    encoder: EncoderId
    vectors: Vectors


def embed_captions(
    crops_dir: Path,
    encoder_dir: Path,
    released_dir: Path,
    out_dir: Path,
    report_path: Path,
    *,
    source: Literal["encoder", "released"],
    batch_size: int,
    device: str,
    map_jobs: MapJobs,
) -> None:
    """Embed every caption of both splits into <out_dir>/{train,test}.parquet.

    Args:
        crops_dir: with images.parquet.
        encoder_dir: the text encoder's snapshot.
        released_dir: for source `released`: what `stackgan import-embeddings` wrote.
        out_dir: replaced whole.
        report_path: JSON.
        source: where embeddings come from.
        batch_size: captions a forward pass; changes only the speed.
        device: torch device to encode on.
        map_jobs: calls a function on every job and returns the results in their order.

    Raises:
        ValueError: the encoder or a released picture is missing, a caption cannot be encoded, or a value is not finite.
    """
    num_captions: dict[str, int] = {}
    every_caption: list[str] = []
    encoder, dim = EncoderId("", ""), 0
    with replaced_folder(out_dir) as partial_dir:
        for split in SPLITS:
            rows = read_images(crops_dir, split)
            captions = [caption for row in rows for caption in row["captions"]]
            if source == "released":
                encoder, vectors = _released(rows, released_dir / f"{split}.parquet")
            else:
                encoder, vectors = _encoded(captions, encoder_dir, batch_size, device, map_jobs)
            if not np.isfinite(vectors).all():
                bad = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
                raise ValueError(f"the embedding of {captions[bad]!r} is not finite: {encoder.name} is no good encoder")
            dim = vectors.shape[1]
            columns = [
                pa.array([row["image_id"] for row in rows for _ in row["captions"]], pa.int64()),
                pa.array([number for row in rows for number in range(len(row["captions"]))], pa.int32()),
                pa.array(captions, pa.string()),
                pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim),
            ]
            schema = embeddings_schema(dim, encoder._asdict())
            write_table(partial_dir / f"{split}.parquet", pa.Table.from_arrays(columns, schema=schema))
            num_captions[split] = len(captions)
            every_caption += captions
    report = {
        "source": source,
        "encoder": encoder.name,
        "encoder_sha256": encoder.sha256,
        "embedding_dim": dim,
        "num_captions": num_captions,
        "num_longer_than_201_characters": sum(len(caption) > MAX_CHARS for caption in every_caption),
        "num_with_characters_outside_the_alphabet": sum(bool(_unknown(caption)) for caption in every_caption),
    }
    write_json(report_path, report)


def embed_job(job: EmbeddingJob) -> Vectors:
    """Embed one job's captions."""
    return load_text_encoder(job.encoder_dir, job.device).encode(job.captions, job.batch_size).numpy()


def _encoded(captions: Sequence[str], encoder_dir: Path, batch_size: int, device: str, map_jobs: MapJobs) -> _Embedded:
    encoder = load_text_encoder(encoder_dir)
    jobs = [
        EmbeddingJob(
            encoder_dir=encoder_dir,
            captions=tuple(captions[start : start + CAPTIONS_PER_JOB]),
            batch_size=batch_size,
            device=device,
        )
        for start in range(0, len(captions), CAPTIONS_PER_JOB)
    ]
    return _Embedded(EncoderId(encoder.name, encoder.sha256), np.concatenate(map_jobs(embed_job, jobs)))


def _released(rows: Sequence[dict[str, Any]], path: Path) -> _Embedded:
    """Look the pictures' embeddings up by file name; the k-th is that of the k-th line of text_c10, as published.

    COCO's released keys have no folder, so names are compared with it and, where that fails, without it.
    """
    released = read_released(path)
    places = {name: place for place, name in enumerate(released.file_names)}
    chosen: list[int] = []
    for row in rows:
        name = str(row["file_name"])
        place = places.get(name, places.get(PurePosixPath(name).name))
        if place is None:
            raise ValueError(
                f"{path} has no embeddings of {name}; bring those of this data set and split, or set "
                "embed_captions.source: encoder"
            )
        if len(row["captions"]) > released.vectors.shape[1]:
            raise ValueError(
                f"{path} has {released.vectors.shape[1]} embeddings a picture, fewer than the {len(row['captions'])} "
                f"captions of {name}; lower crop_images.captions_per_image"
            )
        chosen.append(place)
    vectors = [released.vectors[place, : len(row["captions"])] for place, row in zip(chosen, rows, strict=True)]
    return _Embedded(released_encoder(path), np.concatenate(vectors))


def _unknown(caption: str) -> set[str]:
    return set(caption.lower()) - set(ALPHABET)
