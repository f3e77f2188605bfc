"""A prepared study: the same bytes again, bound by its hash, and nothing in it that tells a method."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data.files import write_json
from pipeline.data.tables import read_images
from pipeline.evaluation.study.files import read_key, read_study
from tests.evaluation_data import TEST_COLOURS, paint_noise, write_samples
from tests.study_data import METHODS, VARIATIONS, write_inputs, write_study


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_inputs(folder)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_prompt_shows_each_method_with_as_many_pictures_of_one_size(inputs: Path) -> None:
    study, key = write_study(inputs)
    ranked = [prompt for prompt in study.prompts.values() if prompt.prompt_id not in key.checks]
    assert len(ranked) == 6 and len(key.checks) == 3
    colours = [next(colour for colour in TEST_COLOURS if colour in prompt.caption) for prompt in ranked]
    assert sorted(colours) == sorted(TEST_COLOURS * 2), "captions are of as many classes as there are"
    for prompt in ranked:
        assert {key.method_of[candidate] for candidate in prompt.candidates} == {"stage1", "stackgan", "untrained"}
    for prompt in study.prompts.values():
        assert all(len(pictures) == VARIATIONS for pictures in prompt.candidates.values())
    for picture_id in study.picture_sha256:
        with Image.open(study.picture_path(picture_id)) as image:
            assert (image.size, image.mode, image.format, image.info) == ((96, 96), "RGB", "PNG", {})


def test_checks_hold_real_pictures_and_as_many_candidates_as_other_ballots(inputs: Path) -> None:
    study, key = write_study(inputs)
    kinds = sorted(check.kind for check in key.checks.values())
    assert kinds == ["real", "real", "shuffled"]
    for prompt_id, check in key.checks.items():
        prompt = study.prompts[prompt_id]
        assert len(prompt.candidates) == 3 and key.method_of[check.better] == "real_test"
        right = next(colour for colour in TEST_COLOURS if colour in prompt.caption)
        assert colour_seen(study.picture_path(prompt.candidates[check.better][0])) == right
        if check.kind == "shuffled":
            assert check.worse is not None and key.method_of[check.worse] == "real_test of another caption"
            assert colour_seen(study.picture_path(prompt.candidates[check.worse][0])) != right
        assert all(sum(one.prompt_id == prompt_id for one in of_rater) == 1 for of_rater in study.showings)


def colour_seen(path: Path) -> str:
    """Return which test colour the middle of a picture has."""
    with Image.open(path) as image:
        red, _, blue = np.asarray(image)[30:60, 30:60].mean((0, 1))
    if blue > 150:
        return "white"
    return "yellow" if red > 150 else "green"


def test_the_same_inputs_write_the_same_bytes_and_another_seed_other_names(inputs: Path) -> None:
    write_study(inputs)
    first = files_of(inputs / "study")
    write_study(inputs)
    assert files_of(inputs / "study") == first
    write_study(inputs, seed=4)
    assert not {name for name in files_of(inputs / "study") if name.endswith(".png")} & set(first)


def test_nothing_that_raters_may_see_tells_a_method(inputs: Path) -> None:
    study, key = write_study(inputs)
    text = (inputs / "study" / "study.json").read_text()
    for word in ("stage1", "stackgan", "untrained", "real", "shuffled", "repeat", "check"):
        assert word not in text
    # Neither names in their order, nor the order of prompts or candidates, go with methods or kinds.
    for prompt in study.prompts.values():
        assert list(prompt.candidates) == sorted(prompt.candidates)
    assert list(study.prompts) == sorted(study.prompts)
    orders = [tuple(key.method_of[c] for c in prompt.candidates) for prompt in study.prompts.values()]
    assert len(set(orders)) > 2
    names = [path.name for path in (inputs / "study" / "pictures").iterdir()]
    assert {len(name) for name in names} == {20} and len(names) == 9 * 3 * VARIATIONS


def test_many_methods_are_shown_in_blocks_with_all_controls(inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(inputs / "crops", tmp_path / "crops")
    images = read_images(inputs / "crops", "test")
    methods = {**METHODS, "third": paint_noise(96), "fourth": paint_noise(96)}
    write_samples(tmp_path / "samples" / "variations", images, methods, copies=VARIATIONS)
    study, key = write_study(tmp_path, methods=("stage1", "stackgan", "third", "fourth"), methods_per_ballot=2)
    for of_rater in study.showings:
        for showing in of_rater:
            shown = [key.method_of[candidate] for candidate in showing.candidate_ids]
            assert len(shown) == 3
            if showing.prompt_id not in key.checks:
                assert "untrained" in shown


def test_another_systems_final_pictures_are_a_method_and_real_ones_may_be(inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    shutil.copytree(inputs / "samples", tmp_path / "systems" / "gan_int_cls")
    study, key = write_study(tmp_path, methods=("gan_int_cls", "stackgan"), controls=("real_test",))
    by_method: dict[str, list[bytes]] = {}
    for prompt in study.prompts.values():
        for candidate, pictures in prompt.candidates.items():
            if prompt.prompt_id not in key.checks:
                found = by_method.setdefault(key.method_of[candidate], [])
                found += [study.picture_path(picture).read_bytes() for picture in pictures]
    assert set(by_method) == {"gan_int_cls", "stackgan", "real_test"}
    assert by_method["gan_int_cls"] == by_method["stackgan"], "both are the same system's pictures here"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"methods": ("stage1", "nobody")},
            r"'nobody', which is no method of .*samples \(untrained, stage1, stackgan\)",
        ),
        ({"pictures_per_caption": 3}, "pictures_per_caption is 3; stage1 has 2 of a caption: raise generate_samples"),
    ],
)
def test_what_is_not_there_is_named_with_the_remedy(inputs: Path, changed: dict[str, Any], message: str) -> None:
    before = files_of(inputs / "study") if (inputs / "study").exists() else {}
    with pytest.raises(ValueError, match=message):
        write_study(inputs, **changed)
    assert not before or files_of(inputs / "study") == before


def test_systems_of_other_captions_are_refused(inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    images = read_images(inputs / "crops", "test")[:-1]
    write_samples(tmp_path / "systems" / "other" / "variations", images, METHODS, copies=VARIATIONS)
    with pytest.raises(ValueError, match="stackgan and other were not painted for the same captions"):
        write_study(tmp_path, methods=("stackgan", "other"))


def test_fewer_captions_than_asked_for_are_all_taken_and_said(inputs: Path, caplog: pytest.LogCaptureFixture) -> None:
    study, key = write_study(inputs, num_captions=99)
    assert len(study.prompts) - len(key.checks) == 15
    assert "asks for 99 captions; samples hold variations of 15" in caplog.text


def test_an_altered_study_picture_or_key_is_refused(inputs: Path) -> None:
    write_study(inputs)
    study_path, key_path = inputs / "study" / "study.json", inputs / "study" / "key.json"
    for change in (
        lambda document: document["prompts"][0].update(caption="another"),
        lambda document: document["showings"][0].reverse(),
        lambda document: document.update(code_sha256="0"),
    ):
        write_study(inputs)
        document = json.loads(study_path.read_text())
        change(document)
        write_json(study_path, document)
        with pytest.raises(ValueError, match=r"study\.json was altered"):
            read_study(inputs / "study")

    study, _ = write_study(inputs)
    document = json.loads(key_path.read_text())
    first, second, *_ = document["method_of"]
    document["method_of"][first], document["method_of"][second] = (
        document["method_of"][second],
        document["method_of"][first],
    )
    write_json(key_path, document)
    with pytest.raises(ValueError, match=r"key\.json is not the study's key"):
        read_key(study)

    one, other, *_ = study.picture_sha256
    shutil.copy(study.picture_path(one), study.picture_path(other))
    with pytest.raises(ValueError, match=f"{other}.png is missing or is not the study's picture"):
        read_study(inputs / "study")


def test_no_path_is_made_of_an_unknown_pictures_id(inputs: Path) -> None:
    study, _ = write_study(inputs)
    for name in ("../key", "..%2fkey", "key.json", ""):
        with pytest.raises(KeyError):
            study.picture_path(name)
