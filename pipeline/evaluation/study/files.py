"""study/ on the disk: what raters are shown, and apart from it the key that tells which method is which.

study.json      captions, blinded candidates and every rater's ballots; its hash, over all of it, is the study's id
key.json        candidate -> method, and which prompts are checks: for the analysis, never for a rater
pictures/       <picture_id>.png, all of one size, without metadata

study.json names the hash of every picture, of the key and of the code that asks, so a ballot that names the study's id
is bound to all of them.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.data.files import file_sha256, write_json
from pipeline.evaluation.study.design import Check, Plan, PlannedPrompt, Prompt, Repeat, Showing

CONTRACT = "study/v1"

# What decides what a rater sees and is asked; with another page, or another way to draw, it is another study.
ASKING_CODE = (
    "design.py",
    "preparing.py",
    "questions.py",
    "macros.html.j2",
    "ballot.html.j2",
    "offline.html.j2",
    "ballot.js",
    "study.css",
)
REMEDY = "run `dvc repro prepare_human_study` to make it"


@dataclass(frozen=True, kw_only=True)
class Study:
    """What may be seen by raters."""

    study_id: str
    code_sha256: str  # of the code that asks its questions, as it was when it was prepared
    key_sha256: str
    prompts: dict[str, Prompt]
    showings: tuple[tuple[Showing, ...], ...]  # of each rater, slot by slot
    picture_sha256: dict[str, str]  # picture_id -> of its file
    folder: Path

    @property
    def num_raters(self) -> int:
        """Return how many raters it is planned for."""
        return len(self.showings)

    def picture_path(self, picture_id: str) -> Path:
        """Return where a picture lies.

        Raises:
            KeyError: it is none of this study's; no path is made of an id that is not known.
        """
        if picture_id not in self.picture_sha256:
            raise KeyError(picture_id)
        return self.folder / "pictures" / f"{picture_id}.png"


@dataclass(frozen=True, kw_only=True)
class Key:
    """What raters must not see."""

    methods: tuple[str, ...]
    controls: tuple[str, ...]
    method_of: dict[str, str]  # candidate_id -> method
    checks: dict[str, Check]  # prompt_id -> what an attentive rater does
    repeats: tuple[Repeat, ...]

    @cached_property
    def first_slots(self) -> dict[tuple[int, int], int]:
        """Return, for each (rater, slot) that asks a second time, the slot that asked first."""
        return {(repeat.rater, repeat.slot): repeat.first_slot for repeat in self.repeats}


def write_study(
    folder: Path, planned: Sequence[PlannedPrompt], plan: Plan, *, methods: Sequence[str], controls: Sequence[str]
) -> None:
    """Write key.json and study.json beside the pictures that `folder` holds."""
    # By name, for the order in which they were made would tell the checks from the others.
    by_name = sorted(planned, key=lambda one: one.prompt.prompt_id)
    key: dict[str, Any] = {
        "contract": CONTRACT,
        "methods": list(methods),
        "controls": list(controls),
        "method_of": dict(sorted(item for one in planned for item in one.method_of.items())),
        "checks": {one.prompt.prompt_id: one.check._asdict() for one in by_name if one.check},
        "repeats": [list(repeat) for repeat in plan.repeats],
    }
    write_json(folder / "key.json", key)
    content: dict[str, Any] = {
        "contract": CONTRACT,
        "code_sha256": study_code_sha256(),
        "key_sha256": file_sha256(folder / "key.json"),
        "prompts": [one.prompt._asdict() for one in by_name],
        "showings": [[list(showing) for showing in of_rater] for of_rater in plan.showings],
        "picture_sha256": {path.stem: file_sha256(path) for path in sorted((folder / "pictures").iterdir())},
    }
    write_json(folder / "study.json", {"study_id": _id_of(content), **content})


def read_study(folder: Path) -> Study:
    """Read study.json.

    Raises:
        ValueError: it is missing, of another contract, was altered, or a picture is not the one it names.
    """
    document = _read(folder / "study.json")
    content = {name: value for name, value in document.items() if name != "study_id"}
    if document.get("study_id") != _id_of(content):
        raise ValueError(f"{folder / 'study.json'} was altered: its content does not have its id; {REMEDY}")
    study = Study(
        study_id=document["study_id"],
        code_sha256=document["code_sha256"],
        key_sha256=document["key_sha256"],
        prompts={
            prompt["prompt_id"]: Prompt(
                prompt["prompt_id"],
                prompt["caption"],
                {candidate: tuple(ids) for candidate, ids in prompt["candidates"].items()},
            )
            for prompt in document["prompts"]
        },
        showings=tuple(
            tuple(Showing(prompt_id, tuple(ids)) for prompt_id, ids in of_rater) for of_rater in document["showings"]
        ),
        picture_sha256=document["picture_sha256"],
        folder=folder,
    )
    for picture_id, sha256 in study.picture_sha256.items():
        path = study.picture_path(picture_id)
        if not path.is_file() or file_sha256(path) != sha256:
            raise ValueError(f"{path} is missing or is not the study's picture; {REMEDY}")
    return study


def require_own_code(study: Study) -> None:
    """Check that a study is asked by the code that it was prepared with.

    Raises:
        ValueError: it is not, so that the ballots to come would not be comparable with those that are given.
    """
    if study.code_sha256 != study_code_sha256():
        raise ValueError(
            f"{study.folder / 'study.json'} was prepared with other pages or questions than those of this version: "
            "check out the version that it was prepared with to go on asking, or run `dvc repro prepare_human_study` "
            "for a new study"
        )


def read_key(study: Study) -> Key:
    """Read key.json.

    Raises:
        ValueError: it is missing, or not the study's.
    """
    path = study.folder / "key.json"
    document = _read(path)
    if file_sha256(path) != study.key_sha256:
        raise ValueError(f"{path} is not the study's key; {REMEDY}")
    return Key(
        methods=tuple(document["methods"]),
        controls=tuple(document["controls"]),
        method_of=document["method_of"],
        checks={prompt_id: Check(**check) for prompt_id, check in document["checks"].items()},
        repeats=tuple(Repeat(*repeat) for repeat in document["repeats"]),
    )


def study_code_sha256() -> str:
    """Return one hash over the code that plans a study and asks its questions."""
    folder = Path(__file__).parent
    return hashlib.sha256("".join(file_sha256(folder / name) for name in ASKING_CODE).encode()).hexdigest()


def _id_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: {REMEDY}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); {REMEDY}") from None
    if not isinstance(document, dict) or document.get("contract") != CONTRACT:
        raise ValueError(f"{path} is not of contract {CONTRACT}; {REMEDY}")
    return document
