"""A small study on the disk, out of coloured squares, for the tests of the study."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.data.tables import read_images
from pipeline.evaluation.study.answers import Ballot, Ranks
from pipeline.evaluation.study.design import Showing
from pipeline.evaluation.study.files import Key, Study, read_key, read_study
from pipeline.evaluation.study.preparing import prepare_study
from tests.evaluation_data import Painter, paint_noise, paint_truth, write_crops, write_samples

SECRET = "of the tests, and longer than thirty-two characters"
VARIATIONS = 2
PARAMS: dict[str, Any] = {
    "methods": ("stage1", "stackgan"),
    "controls": ("untrained",),
    "methods_per_ballot": 0,
    "num_captions": 6,
    "pictures_per_caption": VARIATIONS,
    "num_raters": 4,
    "num_real_checks": 2,
    "num_shuffled_checks": 1,
    "num_repeats": 2,
    "picture_size": 96,
    "seed": 3,
}
METHODS: dict[str, Painter] = {"untrained": paint_noise(64), "stage1": paint_truth(64), "stackgan": paint_truth(96)}


def write_inputs(folder: Path, methods: dict[str, Painter] | None = None) -> None:
    """Write crops/ and samples/variations, with several pictures of each test picture's first caption."""
    write_crops(folder / "crops")
    images = read_images(folder / "crops", "test")
    write_samples(folder / "samples" / "variations", images, methods or METHODS, copies=VARIATIONS)


def write_study(folder: Path, **changed: Any) -> tuple[Study, Key]:
    """Prepare study/ out of what write_inputs wrote."""
    prepare_study(
        samples_dir=folder / "samples",
        systems_dir=folder / "systems",
        crops_dir=folder / "crops",
        out_dir=folder / "study",
        **{**PARAMS, **changed},
    )
    study = read_study(folder / "study")
    return study, read_key(study)


def ranks_by(order: Sequence[str], showing: Showing, key: Key) -> Ranks:
    """Rank a showing as one who prefers methods in this order; those not in it share the last rank."""
    places = {
        candidate: order.index(key.method_of[candidate]) if key.method_of[candidate] in order else len(order)
        for candidate in showing.candidate_ids
    }
    distinct = sorted(set(places.values()))
    return {candidate: 1 + distinct.index(place) for candidate, place in places.items()}


def ballot(study: Study, rater: int, slot: int, quality: Ranks, match: Ranks | None = None, **changed: Any) -> Ballot:
    """Return a simulated rater's ballot."""
    values = {"revision": 0, "seconds": 20.0, "origin": "simulated"} | changed
    return Ballot(study_id=study.study_id, rater=rater, slot=slot, quality=quality, match=match or quality, **values)


ATTENTIVE = ("real_test", "stackgan", "stage1", "untrained")


def ballots_of(study: Study, key: Key, rater: int, order: Sequence[str] = ATTENTIVE, **changed: Any) -> list[Ballot]:
    """Return all ballots of a simulated rater who prefers methods in one order."""
    return [
        ballot(study, rater, slot, ranks_by(order, showing, key), **changed)
        for slot, showing in enumerate(study.showings[rater])
    ]
