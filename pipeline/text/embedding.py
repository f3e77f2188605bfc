"""DVC stage embed_captions on the files of the pipeline: captions -> embeddings.

They come from the encoder in models/text_encoder, in jobs that any number of workers share out, or out of the released
files of the published code (see pipeline.data.released).
"""

import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipeline.data.files import replaced_folder, write_json
from pipeline.data.released import read_released, released_encoder
from pipeline.data.tables import EncoderId, embeddings_schema, read_embedding_dim, read_images, write_table
from pipeline.text.char_cnn_rnn import ALPHABET, READS_AT_MOST, num_cut
from pipeline.text.encoders import TextEncoder, load_text_encoder
from pipeline.text.pretrained import PretrainedEncoder

CAPTIONS_PER_JOB = 1024  # whatever the number of workers: equal jobs give equal bytes
SPLITS = ("train", "test")

Vectors = npt.NDArray[np.float32]  # (N, embedding_dim)


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingJob:
    """Some captions to embed, on one worker."""

    encoder_dir: Path
    encoder_sha256: str
    captions: tuple[str, ...]
    batch_size: int
    device: str
    writes: tuple[Path, ...] = ()

    @property
    def reads(self) -> list[Path]:
        """List the encoder's snapshot."""
        return [self.encoder_dir]


class JobResult(NamedTuple):
    """The embeddings of a job's captions, and of how many the encoder did not see the end."""

    vectors: Vectors
    num_cut: int


MapJobs = Callable[[Callable[[EmbeddingJob], JobResult], Sequence[EmbeddingJob]], Sequence[JobResult]]


class Embedded(NamedTuple):
    """The embeddings of one split's captions, picture after picture."""

    encoder: EncoderId
    vectors: Vectors
    num_cut: int


def embed_captions(
    crops_dir: Path,
    source_dir: Path,
    out_dir: Path,
    report_path: Path,
    *,
    is_released: bool,
    batch_size: int,
    device: str,
    map_jobs: MapJobs,
) -> None:
    """Embed every caption of both splits into <out_dir>/{train,test}.parquet.

    Args:
        crops_dir: with images.parquet.
        source_dir: the text encoder's snapshot, or what `stackgan import-embeddings` wrote.
        out_dir: replaced whole.
        report_path: JSON.
        is_released: which of them.
        batch_size: captions a forward pass; an embedding does not depend on it, up to float32 rounding.
        device: torch device to encode on.
        map_jobs: calls a function on every job and returns the results in their order; where device is a GPU, it gives
            one to each job.

    Raises:
        ValueError: the encoder or a released picture is missing, a caption cannot be encoded, or a value is not finite.
    """
    encoder = None if is_released else load_text_encoder(source_dir)
    encoders: list[EncoderId] = []
    num_captions_cut = 0
    captions_of: dict[str, list[str]] = {}
    with replaced_folder(out_dir) as partial_dir:
        for split in SPLITS:
            rows = read_images(crops_dir, split)
            captions = captions_of[split] = [caption for row in rows for caption in row["captions"]]
            if encoder is None:
                embedded = released_embeddings(rows, source_dir / f"{split}.parquet")
            else:
                jobs = plan_jobs(captions, source_dir, encoder.sha256, batch_size=batch_size, device=device)
                embedded = _joined(encoder, map_jobs(embed_and_count, jobs))
            _require_finite(embedded, captions)
            write_table(partial_dir / f"{split}.parquet", _table(rows, embedded))
            encoders.append(embedded.encoder)
            num_captions_cut += embedded.num_cut
    report: dict[str, Any] = {
        "source": "released" if is_released else "encoder",
        "encoder": encoders[0].name,
        "encoder_sha256": encoders[0].sha256,  # of the train split; each split has its own released pickle
        "embedding_dim": read_embedding_dim(out_dir / f"{SPLITS[0]}.parquet"),
        "num_captions": {split: len(captions) for split, captions in captions_of.items()},
        "encoder_reads_at_most": encoder.reads_at_most if encoder else READS_AT_MOST,
        "num_captions_cut": num_captions_cut,
    }
    if not isinstance(encoder, PretrainedEncoder):  # the alphabet is the char-CNN-RNN's
        every_caption = [caption for captions in captions_of.values() for caption in captions]
        report["num_with_characters_outside_the_alphabet"] = sum(bool(_unknown(caption)) for caption in every_caption)
    write_json(report_path, report)


def plan_jobs(
    captions: Sequence[str], encoder_dir: Path, encoder_sha256: str, *, batch_size: int, device: str
) -> list[EmbeddingJob]:
    """Cut captions, in their order, into jobs of CAPTIONS_PER_JOB."""
    return [
        EmbeddingJob(
            encoder_dir=encoder_dir,
            encoder_sha256=encoder_sha256,
            captions=tuple(captions[start : start + CAPTIONS_PER_JOB]),
            batch_size=batch_size,
            device=device,
        )
        for start in range(0, len(captions), CAPTIONS_PER_JOB)
    ]


def embed_and_count(job: EmbeddingJob) -> JobResult:
    """Embed one job's captions and count those that are cut, on the same worker: splitting into tokens takes time.

    Raises:
        ValueError: see embed_job.
    """
    vectors = embed_job(job)
    return JobResult(vectors, _loaded(job.encoder_dir, job.encoder_sha256, job.device).num_cut(job.captions))


def embed_job(job: EmbeddingJob) -> Vectors:
    """Embed one job's captions, on one thread: a task has one CPU. Equal captions are embedded once.

    Raises:
        ValueError: the encoder is not the one that the job was made for, or a caption cannot be encoded.
    """
    encoder = _loaded(job.encoder_dir, job.encoder_sha256, job.device)
    place_of = {caption: place for place, caption in enumerate(dict.fromkeys(job.captions))}
    with _one_thread():
        try:
            vectors = encoder.encode(list(place_of), job.batch_size).numpy()
        except ValueError as error:  # it numbers the captions as they were given here: of no use to anyone
            raise ValueError(re.sub(r"^captions\[\d+\]", "a caption", str(error))) from None
    return vectors[[place_of[caption] for caption in job.captions]]


@lru_cache(maxsize=1)
def _loaded(encoder_dir: Path, sha256: str, device: str) -> TextEncoder:
    """Read the encoder once a process, however many jobs that has; another sha256 is another encoder."""
    encoder = load_text_encoder(encoder_dir, device)
    if encoder.sha256 != sha256:
        raise ValueError(f"{encoder_dir} was written anew while its captions were embedded; run `dvc repro` again")
    return encoder


@contextmanager
def _one_thread() -> Generator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _joined(encoder: TextEncoder, results: Sequence[JobResult]) -> Embedded:
    vectors = np.concatenate([result.vectors for result in results])
    return Embedded(EncoderId(encoder.name, encoder.sha256), vectors, sum(result.num_cut for result in results))


def released_embeddings(rows: Sequence[dict[str, Any]], path: Path) -> Embedded:
    """Look the pictures' embeddings up by file name; the k-th is that of the k-th line of text_c10, as published.

    COCO's keys have no folder, and its pictures kept their numbers, not their names, when it was split anew in 2017: a
    name is looked up as it is and without its folder, COCO's without the prefix of 2014.
    """
    released = read_released(path)
    place_of = {_without_year(name): place for place, name in enumerate(released.file_names)}
    names = [_without_year(str(row["file_name"])) for row in rows]
    places = [place_of.get(name, place_of.get(PurePosixPath(name).name)) for name in names]
    missing = [row["file_name"] for row, place in zip(rows, places, strict=True) if place is None]
    if missing:
        others = f" and {len(missing) - 1} more of {len(rows)} pictures" if len(missing) > 1 else ""
        raise ValueError(
            f"{path} has no embeddings of {missing[0]}{others}; bring those of this data set and split, or set "
            "embed_captions.source: models/text_encoder"
        )
    for row in rows:
        if len(row["captions"]) > released.vectors.shape[1]:
            raise ValueError(
                f"{path} has {released.vectors.shape[1]} embeddings a picture, fewer than the {len(row['captions'])} "
                f"captions of {row['file_name']}; lower crop_images.captions_per_image"
            )
    found = zip(places, rows, strict=True)
    vectors = [released.vectors[place, : len(row["captions"])] for place, row in found if place is not None]
    cut = sum(num_cut(row["captions"]) for row in rows)
    return Embedded(released_encoder(path), np.concatenate(vectors), cut)


def _without_year(file_name: str) -> str:
    return re.sub(r"COCO_(train|val)2014_", "", file_name)


def _require_finite(embedded: Embedded, captions: Sequence[str]) -> None:
    is_bad = ~np.isfinite(embedded.vectors).all(axis=1)
    if is_bad.any():
        caption = captions[int(is_bad.argmax())]
        raise ValueError(
            f"the embedding of {caption!r} is not finite, nor are {int(is_bad.sum()) - 1} others: "
            f"{embedded.encoder.name} is no good encoder; fit or choose another"
        )


def _table(rows: Sequence[dict[str, Any]], embedded: Embedded) -> pa.Table:
    dim = embedded.vectors.shape[1]
    columns = [
        pa.array([row["image_id"] for row in rows for _ in row["captions"]], pa.int64()),
        pa.array([number for row in rows for number in range(len(row["captions"]))], pa.int32()),
        pa.array([caption for row in rows for caption in row["captions"]], pa.string()),
        pa.FixedSizeListArray.from_arrays(pa.array(embedded.vectors.reshape(-1)), dim),
    ]
    return pa.Table.from_arrays(columns, schema=embeddings_schema(dim, embedded.encoder._asdict()))


def _unknown(caption: str) -> set[str]:
    return set(caption.lower()) - set(ALPHABET)
