"""What the scores say, in words: whether the trained generator follows its captions, and how that was measured."""

import math
from collections.abc import Mapping
from typing import Any

from pipeline.evaluation.pictures import NOISE, REAL, REAL_TRAIN
from pipeline.evaluation.protocol import require_comparable

# From the upper bound to the lower one.
METHOD_NAMES = {
    REAL: "Real",
    REAL_TRAIN: "Real, training classes",
    "stackgan": "Stage-II",
    "stage1": "Stage-I",
    "untrained": "Untrained",
    NOISE: "Noise",
}
BOUNDS = (REAL, REAL_TRAIN, NOISE)


def method_name(method: str) -> str:
    """Return what the page calls a method."""
    return METHOD_NAMES.get(method, method)


def verdict(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say in plain words whether the trained generator follows its captions more often than the untrained one.

    Raises:
        ValueError: the two were not scored by one protocol.
    """
    trained = next((method for method in ("stackgan", "stage1") if method in methods), None)
    if trained is None or "untrained" not in methods:
        return ["There are no scores of a trained and an untrained generator to compare, so nothing can be said of it."]
    require_comparable({method_name(method): methods[method]["protocol"] for method in (trained, "untrained")})
    name, num_wrong = METHOD_NAMES[trained], methods[trained]["protocol"]["num_wrong_captions"]
    sentences = [
        f"The text encoder ranks a {name} picture's own caption above {num_wrong} captions of other classes in "
        + _comparison(methods, trained, "r_precision"),
    ]
    if methods[trained]["class_agreement"]:  # there is none where the classifier knows no test class
        sentences.append(
            f"The classifier sees the class of its caption in a {name} picture in "
            + _comparison(methods, trained, "class_agreement")
        )
    return sentences


def _comparison(methods: Mapping[str, Mapping[str, Any]], trained: str, score: str) -> str:
    ours, untrained = methods[trained][score], methods["untrained"][score]
    real = f"real pictures {methods[REAL][score]['value']:.0%}, " if REAL in methods else ""
    # Both shares err; their errors are taken as independent, though the captions are the same.
    error = math.hypot(ours["standard_error"], untrained["standard_error"])
    difference = ours["value"] - untrained["value"]
    if difference > 2 * error:
        judgement = "clearly more often than for the untrained generator"
    elif difference > 0:
        judgement = "more often than for the untrained generator, but by less than two standard errors: no proof"
    else:
        judgement = "not more often than for the untrained generator"
    return (
        f"{ours['value']:.0%} of cases (untrained {untrained['value']:.0%}, {real}guessing {ours['chance']:.0%}): "
        f"{judgement}."
    )


def common_protocol(methods: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return what the scores were computed with, each entry once where all methods share it."""
    entries: list[tuple[str, str]] = []
    for key in {key: None for scores in methods.values() for key in scores["protocol"]}:
        values = {method: str(scores["protocol"].get(key, "-")) for method, scores in methods.items()}
        same = len(set(values.values())) == 1
        entries.append(
            (key, next(iter(values.values())) if same else ", ".join(f"{m}: {v}" for m, v in values.items()))
        )
    return entries
