"""What a rater ranks by; part of what a study's id stands for."""

from typing import NamedTuple


class Question(NamedTuple):
    """One question."""

    name: str
    title: str
    text: str


QUESTIONS = (
    Question("quality", "Quality", "Which look most real and best made? Never mind the sentence."),
    Question("match", "Match", "Which show best what the sentence says? Never mind how real they look."),
)
