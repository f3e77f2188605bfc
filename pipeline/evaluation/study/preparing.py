"""A blinded study out of samples/: the same captions for every method, and nothing in it that names one."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pipeline.data.choosing import chosen_rows
from pipeline.data.files import file_sha256, replaced_folder
from pipeline.data.shards import Images, ImageShards
from pipeline.data.tables import read_images
from pipeline.evaluation.pictures import (
    FINAL,
    REAL,
    REAL_CROP_SIZE,
    REAL_LOAD_SIZE,
    PictureSet,
    ShardPart,
    read_samples,
)
from pipeline.evaluation.study.design import Blinding, Check, CheckKind, PlannedPrompt, Prompt, plan_showings
from pipeline.evaluation.study.files import write_study

logger = logging.getLogger(__name__)

WRONG = "real_test of another caption"

Caption = dict[str, Any]  # a row of samples.parquet
CaptionKey = tuple[int, int]  # image_id, caption_id


class _Asked(NamedTuple):
    """A prompt before it is blinded."""

    caption: Caption
    methods: tuple[str, ...]
    check: CheckKind | None


def prepare_study(
    *,
    samples_dir: Path,
    systems_dir: Path,
    crops_dir: Path,
    out_dir: Path,
    methods: Sequence[str],
    controls: Sequence[str],
    methods_per_ballot: int,
    num_captions: int,
    pictures_per_caption: int,
    num_raters: int,
    num_real_checks: int,
    num_shuffled_checks: int,
    num_repeats: int,
    picture_size: int,
    seed: int,
) -> None:
    """Write study/.

    Args:
        samples_dir: samples/, whose variations are shown.
        systems_dir: samples/ of other systems, each in a folder of its name.
        crops_dir: the real pictures, for the checks and for the method `real_test`.
        out_dir: study/, replaced whole.
        methods: that are compared: of samples/, `real_test`, or a folder of `systems_dir` for its final pictures.
        controls: shown beside them in every ballot, and left out when ranks are counted.
        methods_per_ballot: 0 for all.
        num_captions: of as many classes as there are; all of them where variations hold fewer.
        pictures_per_caption: of each method.
        num_raters: that ballots are planned for.
        num_real_checks: prompts of each rater with a real picture among the others.
        num_shuffled_checks: prompts with a real picture and one of another caption.
        num_repeats: ballots of each rater that are asked for twice.
        picture_size: side in pixels that all pictures are brought to, so that none tells its method by its size.
        seed: of captions, names and orders.

    Raises:
        ValueError: a method is not there, or systems were not given the same captions.
    """
    source = _Source(samples_dir, systems_dir, crops_dir, (*methods, *controls), pictures_per_caption)
    captions = [source.captions[index] for index in chosen_rows(source.class_ids, num_captions, seed)]
    if len(captions) < num_captions:
        logger.warning("the study asks for %d captions; samples hold variations of %d", num_captions, len(captions))
    rng = np.random.default_rng(seed)
    asked = [_Asked(caption, (*methods, *controls), None) for caption in captions]
    size = (methods_per_ballot or len(methods)) + len(controls)
    checks: list[tuple[CheckKind, int, tuple[str, ...]]] = [
        ("real", num_real_checks, (REAL,)),
        ("shuffled", num_shuffled_checks, (REAL, WRONG)),
    ]
    left = np.resize(rng.permutation(len(captions)), num_real_checks + num_shuffled_checks).tolist()
    for kind, count, own in checks:
        for index in [left.pop() for _ in range(count)]:
            others = [method for method in (*methods, *controls) if method != REAL]
            drawn = [others[place] for place in rng.permutation(len(others)).tolist()]
            asked.append(_Asked(captions[index], (*own, *drawn[: size - len(own)]), kind))

    blinding = Blinding(hashlib.sha256(json.dumps([seed, source.identity]).encode()).digest())
    planned = [_planned(number, one, pictures_per_caption, blinding) for number, one in enumerate(asked)]
    plan = plan_showings(
        planned,
        methods=methods,
        controls=controls,
        methods_per_ballot=methods_per_ballot,
        num_raters=num_raters,
        num_repeats=num_repeats,
        seed=seed,
    )
    with replaced_folder(out_dir) as partial_dir:
        (partial_dir / "pictures").mkdir()
        for one, of_prompt in zip(planned, asked, strict=True):
            _write_pictures(partial_dir / "pictures", one, source.pictures(of_prompt, rng), picture_size)
        write_study(partial_dir, planned, plan, methods=methods, controls=controls)


def _planned(number: int, asked: _Asked, pictures_per_caption: int, blinding: Blinding) -> PlannedPrompt:
    """Put names that tell nothing in the place of a prompt's methods and pictures."""
    candidates = {method: blinding.name("candidate", number, method) for method in asked.methods}
    pictures = {
        candidate: tuple(blinding.name("picture", number, method, index) for index in range(pictures_per_caption))
        for method, candidate in candidates.items()
    }
    check = None
    if asked.check:
        check = Check(asked.check, candidates[REAL], candidates.get(WRONG))
    return PlannedPrompt(
        Prompt(blinding.name("prompt", number), str(asked.caption["caption"]), dict(sorted(pictures.items()))),
        dict(sorted((candidate, method) for method, candidate in candidates.items())),
        check,
    )


def _write_pictures(folder: Path, planned: PlannedPrompt, pictures: Mapping[str, Images], size: int) -> None:
    """Write each candidate's pictures, (V, S, S, 3) uint8, at one size and in one format."""
    for candidate, method in planned.method_of.items():
        for picture_id, pixels in zip(planned.prompt.candidates[candidate], pictures[method], strict=True):
            image = Image.fromarray(pixels)
            if image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BICUBIC)
            image.save(folder / f"{picture_id}.png", optimize=True)


class _Source:
    """Where the pictures of a method and caption come from."""

    def __init__(self, samples_dir: Path, systems_dir: Path, crops_dir: Path, methods: Sequence[str], count: int):
        self._count = count
        self._sets = {method: _variations(method, samples_dir, systems_dir) for method in methods if method != REAL}
        rows = {method: _rows_by_caption(pictures) for method, pictures in self._sets.items()}
        first = next(iter(rows))
        for method, by_caption in rows.items():
            if [*by_caption] != [*rows[first]]:
                raise ValueError(
                    f"{first} and {method} were not painted for the same captions: generate samples of both with the "
                    "same data set and the same section generate_samples"
                )
            least = min(map(len, by_caption.values()))
            if least < count:
                raise ValueError(
                    f"prepare_human_study.pictures_per_caption is {count}; {method} has {least} of a caption: raise "
                    "generate_samples.variations_per_caption"
                )
        self._rows = rows
        self.captions: list[Caption] = [self._sets[first].rows[places[0]] for places in rows[first].values()]
        self._real = ImageShards(crops_dir / "test", REAL_LOAD_SIZE)
        self._place_of = {image["image_id"]: place for place, image in enumerate(read_images(crops_dir, "test"))}
        self.identity = {
            method: [*(file_sha256(part.path) for part in pictures.parts if isinstance(part, ShardPart))]
            for method, pictures in self._sets.items()
        }

    @property
    def class_ids(self) -> list[int]:
        """Return the class of each caption."""
        return [caption["class_id"] for caption in self.captions]

    def pictures(self, asked: _Asked, rng: np.random.Generator) -> dict[str, Images]:
        """Return the pictures of each of a prompt's methods, (V, S, S, 3) uint8."""
        found: dict[str, Images] = {}
        key = asked.caption["image_id"], asked.caption["caption_id"]
        for method in asked.methods:
            if method == REAL:
                found[method] = self._real_crops(asked.caption["image_id"], rng)
            elif method == WRONG:
                found[method] = self._real_crops(self._another(asked.caption, rng)["image_id"], rng)
            else:
                places = self._rows[method][key][: self._count]
                found[method] = np.stack([self._sets[method].picture_of(place) for place in places])
        return found

    def _real_crops(self, image_id: int, rng: np.random.Generator) -> Images:
        """Cut a real picture as training does, at random places and every second one mirrored, to as many pictures."""
        stored = self._real.gather(np.array([self._place_of[image_id]]))[0]
        crops: list[Images] = []
        for number in range(self._count):
            top, left = rng.integers(0, REAL_LOAD_SIZE - REAL_CROP_SIZE, 2, endpoint=True).tolist()
            crop = stored[top : top + REAL_CROP_SIZE, left : left + REAL_CROP_SIZE]
            crops.append(crop[:, ::-1] if number % 2 else crop)
        return np.stack(crops)

    def _another(self, caption: Caption, rng: np.random.Generator) -> Caption:
        """Draw a caption of another class, or of another picture where there is one class."""
        others = [one for one in self.captions if one["class_id"] != caption["class_id"]]
        others = others or [one for one in self.captions if one["image_id"] != caption["image_id"]]
        if not others:
            raise ValueError(
                "a check with a shuffled caption needs captions of two pictures; set num_shuffled_checks to 0"
            )
        return others[int(rng.integers(len(others)))]


def _variations(method: str, samples_dir: Path, systems_dir: Path) -> PictureSet:
    """Find a method in samples/, or a system's final pictures among the systems."""
    sets = read_samples(samples_dir / "variations")
    if method in sets:
        return sets[method]
    folder = systems_dir / method
    if folder.is_dir():
        of_system = read_samples(folder / "variations")
        if FINAL in of_system:
            return of_system[FINAL]
    systems = sorted(path.name for path in systems_dir.iterdir() if path.is_dir()) if systems_dir.is_dir() else []
    raise ValueError(
        f"prepare_human_study names {method!r}, which is no method of {samples_dir} ({', '.join(sets)}), not "
        f"{REAL}, and no folder with samples in {systems_dir} ({', '.join(systems) or 'there is none'})"
    )


def _rows_by_caption(pictures: PictureSet) -> dict[CaptionKey, list[int]]:
    places: dict[CaptionKey, list[int]] = {}
    for place, row in enumerate(pictures.rows):
        places.setdefault((row["image_id"], row["caption_id"]), []).append(place)
    return places
