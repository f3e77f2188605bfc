"""`stackgan tables`: train the systems of the paper's tables, and show what is tracked of them."""

import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline.evaluation.comparison import Evaluation, as_text, make_tables, write_page
from pipeline.evaluation.pictures import FINAL
from pipeline.evaluation.published import SYSTEMS
from pipeline.systems import choices, composed, queue, run_queued, settings_of
from pipeline.tracked import evaluations

logger = logging.getLogger(__name__)

PAGE_PATH = Path("reports/tables.html")


def run_tables(systems: Sequence[str], overrides: Sequence[str], *, is_queued_only: bool) -> list[str]:
    """Queue systems with DVC, run them, and show the tables.

    Args:
        systems: choices of conf/gan; none for all of the paper's tables.
        overrides: group=choice or section.key=value, for each of them.
        is_queued_only: leave running them to `dvc exp run --run-all`.

    Raises:
        ValueError: they cannot be queued, one failed, or the tables cannot be shown.
    """
    names = queue(systems or [system.choice for system in SYSTEMS], overrides)
    if is_queued_only:
        return [f"queued: {', '.join(names)}; `dvc exp run --run-all` runs them, `stackgan tables show` shows them"]
    run_queued(names)
    return show_tables(overrides, PAGE_PATH)


def show_tables(overrides: Sequence[str], page_path: Path) -> list[str]:
    """Write the page of the paper's tables, and return them as text.

    A system's row is its newest tracked scores among those of just these settings.

    Args:
        overrides: those that the systems were run with.
        page_path: the .html file.

    Raises:
        ValueError: nothing is tracked of these settings, or the scores are of unlike protocols.
    """
    dataset = str(composed(overrides)["dataset"]["name"])
    known = _known(overrides)
    newest: dict[str, Evaluation] = {}
    num_others = 0
    for tracked in evaluations(dataset):
        system = next((name for name, keys in known.items() if keys.items() <= tracked.settings.items()), None)
        num_others += system is None
        if system is None or system in newest:
            continue
        captions, pictures = tracked.gallery(FINAL)
        newest[system] = Evaluation(
            run_id=tracked.run_id,
            methods=tracked.report()["methods"],
            settings=tracked.settings,
            captions=captions,
            pictures=pictures,
        )
    if num_others:
        logger.info(
            "left out: %d tracked evaluations on %s, of other settings than %s",
            num_others, dataset, " ".join(f"-S {override}" for override in overrides) or "the default ones",
        )  # fmt: skip
    tables = make_tables(newest)
    write_page(tables, newest, dataset, page_path)
    return [*as_text(tables, dataset), f"With pictures: {page_path}"]


def _known(overrides: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the settings of every choice of conf/gan, the paper's systems first: of two equal ones they are meant."""
    first = [system.choice for system in SYSTEMS]
    others = [choice for choice in choices() if choice not in first]
    return {choice: settings_of(choice, overrides) for choice in (*first, *others)}
