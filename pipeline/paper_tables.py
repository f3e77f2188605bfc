"""`stackgan tables`: train the systems of the paper's tables, and show what is tracked of them."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.evaluation.comparison import FINAL_METHOD, Evaluation, as_text, make_tables, write_page
from pipeline.evaluation.published import SYSTEMS
from pipeline.params import DatasetParams, load_params
from pipeline.systems import composed, known_systems, queue, run_queued, system_of
from pipeline.tracked import evaluations

PAGE_PATH = Path("reports/tables.html")


def run_tables(choices: Sequence[str], overrides: Sequence[str], *, is_queued_only: bool) -> list[str]:
    """Queue systems with DVC, run them, and show the tables.

    Args:
        choices: of conf/gan; none for all of the paper's tables.
        overrides: group=choice or section.key=value, for each of them.
        is_queued_only: leave running them to `dvc exp run --run-all`.

    Raises:
        ValueError: they cannot be queued, one failed, or the tables cannot be shown.
    """
    choices = choices or [system.choice for system in SYSTEMS]
    names = queue(choices, overrides)
    if is_queued_only:
        return [f"queued: {', '.join(names)}; `dvc exp run --run-all` runs them, `stackgan tables show` shows them"]
    run_queued(names)
    return show_tables(composed(overrides)["dataset"]["name"], PAGE_PATH)


def show_tables(dataset: str | None, page_path: Path) -> list[str]:
    """Write the page of the paper's tables from the newest tracked scores of each system, and return them as text.

    Args:
        dataset: whose tracked runs; None for that of params.yaml.
        page_path: the .html file.

    Raises:
        ValueError: nothing is tracked of the data set, or the newest scores are of unlike protocols.
    """
    dataset = dataset or load_params("dataset", DatasetParams).name
    known = known_systems(first=[system.choice for system in SYSTEMS])
    newest: dict[str, Evaluation] = {}
    for tracked in evaluations(dataset):
        choice = system_of(tracked.settings, known)
        if choice is None or choice in newest:
            continue
        captions, pictures = tracked.gallery(FINAL_METHOD)
        newest[choice] = Evaluation(
            run_id=tracked.run_id,
            methods=tracked.report()["methods"],
            settings=tracked.settings,
            captions=captions,
            pictures=pictures,
        )
    tables = make_tables(newest)
    write_page(tables, newest, dataset, page_path)
    return [*as_text(tables, dataset), f"With pictures: {page_path}"]
