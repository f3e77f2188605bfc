"""samples/ holds the same captions for every method, whoever paints them."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image

from pipeline.cluster import map_shards
from pipeline.data.shards import ImageShards
from pipeline.data.tables import read_table
from pipeline.gan.samples import PaintJob, generate_samples
from pipeline.gan.stages import new_stage
from tests.gan_data import ARCHITECTURE, CAPTIONS_PER_IMAGE, write_training_set


def backwards_and_twice(work: Callable[[PaintJob], None], jobs: Sequence[PaintJob]) -> list[None]:
    """Run the last job first and each job twice, as when a task's worker died after it wrote its shard."""
    return [[work(job), work(job)][1] for job in reversed(jobs)][::-1]


@pytest.fixture(scope="module", autouse=True)
def a_ray_that_ends_with_these_tests() -> Iterator[None]:
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def trained_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a training set and snapshots of both stages."""
    folder = tmp_path_factory.mktemp("trained")
    write_training_set(folder)
    new_stage(1, ARCHITECTURE, seed=0).save(folder / "stage1")
    new_stage(2, ARCHITECTURE, seed=0, stage1_dir=folder / "stage1").save(folder / "stage2")
    return folder


def generate(trained_dir: Path, out_dir: Path, **options: Any) -> None:
    settings: dict[str, Any] = {
        "captions_per_image": 2, "num_varied_captions": 3, "variations_per_caption": 2, "batch_size": 5, "seed": 1,
        "device": "cpu", "map_jobs": lambda work, jobs: [work(job) for job in jobs], **options,
    }  # fmt: skip
    generate_samples(
        stage1_dir=trained_dir / "stage1",
        stage2_dir=trained_dir / "stage2",
        crops_dir=trained_dir / "crops",
        embeddings_dir=trained_dir / "embeddings",
        out_dir=out_dir,
        **settings,
    )


def test_samples_hold_the_same_captions_and_seeds_for_every_method(trained_dir: Path, tmp_path: Path) -> None:
    generate(trained_dir, tmp_path / "samples")
    rows = read_table(tmp_path / "samples" / "samples.parquet", "samples/v1").to_pylist()
    methods = {row["method"] for row in rows}
    assert methods == {"untrained", "stage1", "stackgan"} and len(rows) == 3 * 6 * 2
    keys = {name: [(r["caption"], r["seed"], r["class_id"]) for r in rows if r["method"] == name] for name in methods}
    assert keys["untrained"] == keys["stage1"] == keys["stackgan"]
    assert len({seed for _, seed, _ in keys["stackgan"]}) == 12
    assert len(ImageShards(tmp_path / "samples" / "stage1", 64)) == 12
    assert len(ImageShards(tmp_path / "samples" / "stackgan", 256)) == 12
    assert (tmp_path / "samples" / "grid_stackgan.png").is_file()

    gallery_dir = tmp_path / "samples" / "gallery"
    shown = json.loads((gallery_dir / "captions.json").read_text())["captions"]
    place = {row["caption"]: index for index, row in enumerate(row for row in rows if row["method"] == "stackgan")}
    places = [place[row["caption"]] for row in shown]
    assert len(shown) == 8 and places == sorted(places) and (places[0], places[-1]) == (0, 11)
    for method, size in (("untrained", 256), ("stage1", 64), ("stackgan", 256)):
        pictures = ImageShards(tmp_path / "samples" / method, size).all()
        for number, index in enumerate(places):
            assert np.array_equal(np.array(Image.open(gallery_dir / f"{method}_{number}.png")), pictures[index])

    varied = read_table(tmp_path / "samples" / "variations" / "samples.parquet", "samples/v1").to_pylist()
    assert len(varied) == 3 * 3 * 2
    of_methods = {name: [(r["caption"], r["seed"]) for r in varied if r["method"] == name] for name in methods}
    assert of_methods["untrained"] == of_methods["stage1"] == of_methods["stackgan"]
    captions, seeds = zip(*of_methods["stackgan"], strict=True)
    assert captions[::2] == captions[1::2] and set(captions) <= {caption for caption, _, _ in keys["stackgan"]}
    assert len({*seeds, *(seed for _, seed, _ in keys["stackgan"])}) == 12 + 6
    pictures = ImageShards(tmp_path / "samples" / "variations" / "stackgan", 256).all()
    assert all((one != other).any() for one, other in zip(pictures[::2], pictures[1::2], strict=True))


def test_more_captions_than_a_picture_has_are_refused(trained_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"captions_per_image is 9; a picture has {CAPTIONS_PER_IMAGE}"):
        generate(trained_dir, tmp_path / "samples", captions_per_image=9)


def test_samples_in_several_shards_are_the_same_pictures(
    trained_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("one", 500), ("several", 5)):
        monkeypatch.setattr("pipeline.gan.samples.IMAGES_PER_SHARD", size)
        generate(trained_dir, tmp_path / name)
    rows = [read_table(tmp_path / name / "samples.parquet", "samples/v1").to_pylist() for name in ("one", "several")]
    assert rows[0] == rows[1]
    assert len(list((tmp_path / "several" / "stackgan").glob("shard_*.arrow"))) == 3  # 12 pictures
    one, several = (ImageShards(tmp_path / name / "stackgan", 256) for name in ("one", "several"))
    assert one.image_ids == several.image_ids == [row["sample_id"] for row in rows[0] if row["method"] == "stackgan"]
    assert np.array_equal(one.all(), several.all())
    grids = [(tmp_path / name / "grid_stackgan.png").read_bytes() for name in ("one", "several")]
    assert grids[0] == grids[1]


@pytest.mark.slow
def test_samples_are_the_same_bytes_whoever_paints_them(
    trained_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.gan.samples.IMAGES_PER_SHARD", 7)
    ways = {
        "one": partial(map_shards, num_workers=1),
        "three": partial(map_shards, num_workers=3),
        "backwards": backwards_and_twice,
    }
    files: dict[str, dict[Path, bytes]] = {}
    for name, map_jobs in ways.items():
        generate(trained_dir, tmp_path / name, map_jobs=map_jobs)
        written = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        files[name] = {path.relative_to(tmp_path / name): path.read_bytes() for path in written}
    assert files["one"] == files["three"]
    assert files["one"] == files["backwards"]
