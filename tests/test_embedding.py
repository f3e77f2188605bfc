"""embed_captions: the same bytes whatever the workers, the released embeddings at the right captions, all counted."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

from pipeline.cluster import map_shards
from pipeline.data.released import import_released
from pipeline.data.tables import read_embeddings, read_encoder, read_images, write_table
from pipeline.text import embedding
from pipeline.text.char_cnn_rnn import CharCnnRnn
from pipeline.text.embedding import EmbeddingJob, JobResult, embed_captions, embed_job, plan_jobs
from pipeline.text.encoders import load_text_encoder, save_text_encoder
from pipeline.text.freezing import freeze_pretrained
from tests.gan_data import CAPTIONS_PER_IMAGE, write_training_set
from tests.pretrained_data import minilm_dir
from tests.released_data import pickled_arrays, pickled_names

DIM = 12


def in_order(work: Callable[[EmbeddingJob], JobResult], jobs: Sequence[EmbeddingJob]) -> list[JobResult]:
    return [work(job) for job in jobs]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write crops of 13 train and 6 test pictures, and a small random char-CNN-RNN."""
    folder = tmp_path_factory.mktemp("data")
    write_training_set(folder)
    network = CharCnnRnn(conv_dims=(16, 16, 16), rnn="gru", embedding_dim=DIM)
    network.initialise(torch.Generator().manual_seed(0))
    save_text_encoder(folder / "encoder", network)
    return folder


def embed(data_dir: Path, out_dir: Path, **changes: Any) -> dict[str, Any]:
    """Embed into out_dir/embeddings and return the report."""
    options: dict[str, Any] = {"is_released": False, "batch_size": 5, "device": "cpu", "map_jobs": in_order}
    embed_captions(
        changes.pop("crops_dir", data_dir / "crops"),
        changes.pop("source_dir", data_dir / ("released" if changes.get("is_released") else "encoder")),
        out_dir / "embeddings",
        out_dir / "report.json",
        **options | changes,
    )
    return json.loads((out_dir / "report.json").read_text())


def bytes_of(out_dir: Path) -> list[bytes]:
    return [(out_dir / "embeddings" / f"{split}.parquet").read_bytes() for split in ("train", "test")]


def test_each_caption_has_its_own_embedding(data_dir: Path, tmp_path: Path) -> None:
    report = embed(data_dir, tmp_path)
    encoder = load_text_encoder(data_dir / "encoder")
    for split in ("train", "test"):
        rows, found = read_images(data_dir / "crops", split), read_embeddings(tmp_path / f"embeddings/{split}.parquet")
        assert found.image_ids == [row["image_id"] for row in rows]
        assert found.captions == [row["captions"] for row in rows]
        for row, vectors in zip(rows, found.vectors, strict=True):
            torch.testing.assert_close(torch.tensor(vectors), encoder.encode(row["captions"]), atol=1e-5, rtol=0)
    assert (report["source"], report["encoder"], report["encoder_sha256"]) == (
        "encoder",
        "char_cnn_rnn",
        encoder.sha256,
    )
    assert report["num_captions"] == {"train": 13 * CAPTIONS_PER_IMAGE, "test": 6 * CAPTIONS_PER_IMAGE}


@pytest.mark.slow
def test_bytes_do_not_depend_on_the_number_of_workers(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "CAPTIONS_PER_JOB", 7)
    written: list[list[bytes]] = []
    try:
        for num_workers in (1, 2):
            out_dir = tmp_path / f"{num_workers}"
            embed(data_dir, out_dir, map_jobs=partial(map_shards, num_workers=num_workers))
            written.append(bytes_of(out_dir))
    finally:
        ray.shutdown()
    embed(data_dir, tmp_path / "here")
    assert written[0] == written[1] == bytes_of(tmp_path / "here")


def write_released(data_dir: Path, leave_out: int = 0, num_captions: int = CAPTIONS_PER_IMAGE) -> dict[str, Any]:
    """Write data_dir/released with the pictures in another order; return the embeddings by file name."""
    rng = np.random.default_rng(1)
    by_name: dict[str, Any] = {}
    for split in ("train", "test"):
        rows = read_images(data_dir / "crops", split)[::-1]
        names = [row["file_name"].removesuffix(".jpg") for row in rows][: len(rows) - leave_out]
        arrays = [rng.standard_normal((num_captions, DIM)).astype(np.float32) for _ in names]
        folder = data_dir / "pickles" / split
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "filenames.pickle").write_bytes(pickled_names(names, 2))
        (folder / "char-CNN-RNN-embeddings.pickle").write_bytes(pickled_arrays(arrays, 2))
        by_name |= {f"{name}.jpg": array for name, array in zip(names, arrays, strict=True)}
    import_released(data_dir / "pickles", data_dir / "released")
    return by_name


def test_released_embeddings_go_to_the_captions_of_their_pictures(data_dir: Path, tmp_path: Path) -> None:
    by_name = write_released(data_dir, num_captions=CAPTIONS_PER_IMAGE + 1)
    report = embed(data_dir, tmp_path, is_released=True)
    for split in ("train", "test"):
        path = tmp_path / f"embeddings/{split}.parquet"
        for row, vectors in zip(read_images(data_dir / "crops", split), read_embeddings(path).vectors, strict=True):
            np.testing.assert_array_equal(vectors, by_name[row["file_name"]][:CAPTIONS_PER_IMAGE])
        assert read_encoder(path).name == "char-CNN-RNN" == report["encoder"]
    assert report["source"] == "released"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"leave_out": 1}, r"released/train\.parquet has no embeddings of 1\.jpg; bring"),
        ({"leave_out": 3}, r"released/train\.parquet has no embeddings of 1\.jpg and 2 more of 13 pictures; bring"),
        ({"num_captions": CAPTIONS_PER_IMAGE - 1}, r"fewer than the .* captions of 1\.jpg; lower crop_images"),
    ],
)
def test_released_embeddings_that_do_not_reach_are_refused(
    changes: dict[str, int], message: str, data_dir: Path, tmp_path: Path
) -> None:
    write_released(data_dir, **changes)
    with pytest.raises(ValueError, match=message):
        embed(data_dir, tmp_path, is_released=True)
    assert not list(tmp_path.iterdir())


def test_missing_released_embeddings_are_refused_with_the_command(data_dir: Path, tmp_path: Path) -> None:
    for path in (data_dir / "released").glob("*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"train\.parquet is missing: run `stackgan import-embeddings`"):
        embed(data_dir, tmp_path, is_released=True)


def test_an_embedding_that_is_not_finite_is_refused_before_anything_is_written(data_dir: Path, tmp_path: Path) -> None:
    def broken(work: Callable[[EmbeddingJob], JobResult], jobs: Sequence[EmbeddingJob]) -> list[JobResult]:
        found = in_order(work, jobs)
        found[0].vectors[2, 3] = np.nan
        return found

    with pytest.raises(ValueError, match="the embedding of 'bird 1 seen 2' is not finite, nor are 0 others"):
        embed(data_dir, tmp_path, map_jobs=broken)
    assert not list(tmp_path.iterdir())


def with_captions(data_dir: Path, crops_dir: Path, changes: dict[tuple[int, int], str]) -> Path:
    """Write images.parquet with other captions at (row, caption), and return its folder."""
    table = pq.read_table(data_dir / "crops" / "images.parquet")
    captions: list[list[str]] = table.column("captions").to_pylist()
    for (row, number), caption in changes.items():
        captions[row][number] = caption
    place, field = table.schema.names.index("captions"), table.schema.field("captions")
    write_table(crops_dir / "images.parquet", table.set_column(place, field, pa.array(captions, field.type)))
    return crops_dir


def test_equal_captions_are_embedded_once(data_dir: Path, tmp_path: Path) -> None:
    again = {(place, 1): "bird 1 seen 0" for place in range(3)}
    report = embed(data_dir, tmp_path, crops_dir=with_captions(data_dir, tmp_path / "crops", again))
    found = read_embeddings(tmp_path / "embeddings/train.parquet")
    assert found.captions[0][:2] == ["bird 1 seen 0"] * 2 and found.captions[2][1] == "bird 1 seen 0"
    np.testing.assert_array_equal(found.vectors[:3, 1], found.vectors[[0, 0, 0], 0])
    assert report["num_captions"]["train"] == 13 * CAPTIONS_PER_IMAGE
    assert len({tuple(vector) for vector in found.vectors.reshape(-1, DIM)}) == 13 * CAPTIONS_PER_IMAGE - 3


@pytest.mark.parametrize("num_threads", [1, 2])
def test_bytes_do_not_depend_on_the_number_of_threads(num_threads: int, data_dir: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        embed(data_dir, tmp_path / "some")
        assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)
    embed(data_dir, tmp_path / "one")
    assert bytes_of(tmp_path / "some") == bytes_of(tmp_path / "one")


def test_a_caption_that_says_nothing_is_refused_in_its_own_words(data_dir: Path, tmp_path: Path) -> None:
    crops_dir = with_captions(data_dir, tmp_path / "crops", {(3, 2): "\u9ce5"})
    with pytest.raises(ValueError, match=r"^a caption \('\u9ce5'\) has no character that the encoder knows"):
        embed(data_dir, tmp_path, crops_dir=crops_dir)
    assert [path.name for path in tmp_path.iterdir()] == ["crops"]


def test_an_encoder_that_changes_between_plan_and_work_is_refused(data_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    network = CharCnnRnn(conv_dims=(4, 4, 4), rnn="relu", embedding_dim=DIM)
    for seed in (0, 1):
        network.initialise(torch.Generator().manual_seed(seed))
        save_text_encoder(folder, network)
        if seed == 0:
            (job,) = plan_jobs(["a", "b"], folder, load_text_encoder(folder).sha256, batch_size=2, device="cpu")
    with pytest.raises(ValueError, match="encoder was written anew while its captions were embedded"):
        embed_job(job)


def test_cocos_pictures_are_found_without_folder_and_year(tmp_path: Path) -> None:
    numbers = {"000000000009.jpg": 0.5, "000000000025.jpg": 1.5}
    (tmp_path / "pickles/train").mkdir(parents=True)
    keys = [
        f"COCO_{split}2014_{name.removesuffix('.jpg')}" for split, name in zip(("train", "val"), numbers, strict=True)
    ]
    arrays = [np.full((2, DIM), number, np.float32) for number in numbers.values()]
    (tmp_path / "pickles/train/filenames.pickle").write_bytes(pickled_names(keys, 2))
    (tmp_path / "pickles/train/char-CNN-RNN-embeddings.pickle").write_bytes(pickled_arrays(arrays, 2))
    import_released(tmp_path / "pickles", tmp_path / "released")
    for folder in ("", "train2017/", "train2014/COCO_train2014_"):
        rows = [{"file_name": f"{folder}{name}", "captions": ["a"]} for name in reversed(numbers)]
        found = embedding.released_embeddings(rows, tmp_path / "released/train.parquet")
        np.testing.assert_array_equal(found.vectors, [[1.5] * DIM, [0.5] * DIM])


def test_cut_and_unknown_characters_are_counted(data_dir: Path, tmp_path: Path) -> None:
    changes = {(0, 0): "a bird " * 40, (1, 0): "a b\u00efrd", (14, 1): "a bird \U0001f426 " * 40, (2, 0): "A Bird"}
    crops_dir = with_captions(data_dir, tmp_path / "crops", changes)
    write_released(data_dir)
    for is_released in (False, True):
        report = embed(data_dir, tmp_path, crops_dir=crops_dir, is_released=is_released)
        assert (report["encoder_reads_at_most"], report["num_captions_cut"]) == ("201 characters", 2)
        assert report["num_with_characters_outside_the_alphabet"] == 2


@pytest.mark.slow
def test_captions_that_a_pretrained_encoder_cuts_are_counted_whatever_the_workers_and_batches(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "CAPTIONS_PER_JOB", 16)
    freeze_pretrained(str(minilm_dir()), tmp_path / "minilm")
    # The first two are equal, so embedded once, and both are cut; 40 words are more than 201 characters and no cut.
    changes = {(0, 0): "bird " * 400, (0, 1): "bird " * 400, (14, 1): "wing " * 400, (3, 0): "feather " * 40}
    options = {"source_dir": tmp_path / "minilm", "crops_dir": with_captions(data_dir, tmp_path / "crops", changes)}
    reports = [embed(data_dir, tmp_path, batch_size=batch_size, **options) for batch_size in (1, 7)]
    try:
        for num_workers in (1, 2):
            reports.append(embed(data_dir, tmp_path, map_jobs=partial(map_shards, num_workers=num_workers), **options))
    finally:
        ray.shutdown()
    for report in reports:
        assert (report["encoder_reads_at_most"], report["num_captions_cut"]) == ("254 tokens", 3)
        assert "num_with_characters_outside_the_alphabet" not in report
