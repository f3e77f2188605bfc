"""The `stackgan` command.

A command imports what it needs when it runs, so that `stackgan --help` answers at once.
"""

import argparse
import logging
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import shtab

from pipeline.data.captions import Caption, captions_of_arguments, captions_of_lines
from pipeline.study_cli import add_study
from pipeline.submit_cli import add_submit

DISTRIBUTION = "stackgan-pipeline"


def main() -> None:
    """Run the command; people's mistakes end it in one line, status 1."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    arguments = _parser().parse_args()
    try:
        lines = arguments.run(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(*lines, sep="\n")


def _generate(arguments: argparse.Namespace) -> Iterable[object]:
    from pipeline.generating import generate

    return generate(
        _captions_of(arguments),
        arguments.out,
        models_dir=arguments.models,
        seed=arguments.seed,
        num_noises=arguments.noises,
        both_stages=arguments.both_stages,
        num_interpolated=arguments.interpolate,
    )


def _captions_of(arguments: argparse.Namespace) -> list[Caption]:
    if arguments.captions and arguments.file:
        raise ValueError("captions are given both as arguments and with --file: choose one")
    if "-" in arguments.captions and len(arguments.captions) > 1:
        raise ValueError("- reads captions from standard input: give it alone, or captions alone")
    if arguments.captions == ["-"] or arguments.file == "-":
        return captions_of_lines(sys.stdin.buffer, "standard input")
    if arguments.file:
        try:
            with Path(arguments.file).open("rb") as file:
                return captions_of_lines(file, arguments.file)
        except OSError as error:
            raise ValueError(f"--file {arguments.file} cannot be read ({error.strerror or error})") from None
    return captions_of_arguments(arguments.captions)


def _import_embeddings(arguments: argparse.Namespace) -> Iterable[str]:
    from pipeline.data.released import EMBEDDINGS_NAME, import_released

    imported = import_released(
        arguments.folder,
        arguments.out,
        embeddings_name=arguments.embeddings or EMBEDDINGS_NAME,
        captions_per_image=arguments.captions,
    )
    return [
        f"{split.path}: {split.num_images} pictures, {split.captions_per_image} captions each, "
        f"{split.embedding_dim} numbers"
        for split in imported
    ]


def _register(arguments: argparse.Namespace) -> Iterable[str]:
    from pipeline.registry import register

    return [register(arguments.models)]


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "(not installed)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stackgan", description="Pictures from sentences with StackGAN.")
    parser.add_argument("--version", action="version", version=f"stackgan {_version()}")
    shtab.add_argument_to(parser, "--print-completion", help="print a script for the completion of your shell")
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser(
        "generate",
        help="paint sentences with the trained models",
        usage="stackgan generate CAPTION [CAPTION ...] --out PATH [options]",
        description="Paint sentences with the trained models. Each PNG carries its caption, seed and model hashes.",
    )
    command.add_argument(
        "captions",
        nargs="*",
        metavar="CAPTION",
        help='such as "a small red bird with black wings"; a lone - reads them from standard input, one a line',
    )
    command.add_argument("--file", metavar="PATH", help="read captions from here instead, one a line, UTF-8")
    command.add_argument(
        "--out", required=True, metavar="PATH", help="a .png for one picture; a folder/ for many, and their grid.png"
    )
    command.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, another picture (default 0)")
    command.add_argument(
        "--noises", type=int, default=1, metavar="N", help="pictures of each caption, with seeds S to S + N - 1"
    )
    command.add_argument("--both-stages", action="store_true", help="write the sketches of Stage-I beside Stage-II")
    command.add_argument(
        "--interpolate", type=int, metavar="N", help="N pictures on the way between two captions, with equal noise"
    )
    command.add_argument(
        "--models", type=Path, default=Path("models"), metavar="DIR", help="folder of the snapshots (default models)"
    )
    command.set_defaults(run=_generate)
    command = commands.add_parser(
        "import-embeddings", help="bring the published code's pickled embeddings into Parquet"
    )
    command.add_argument("folder", type=Path, help="data folder of the published code, such as Data/birds")
    command.add_argument("--out", type=Path, required=True, help="the folder for train.parquet and test.parquet")
    command.add_argument(
        "--embeddings",
        metavar="NAME",
        help="the file of embeddings in train/ and test/ (default char-CNN-RNN-embeddings.pickle)",
    )
    command.add_argument("--captions", type=int, metavar="K", help="keep the first K of each picture (default all)")
    command.set_defaults(run=_import_embeddings)
    command = commands.add_parser("register", help="register the trained models in MLflow, for `mlflow models serve`")
    command.add_argument(
        "--models", type=Path, default=Path("models"), metavar="DIR", help="folder of the snapshots (default models)"
    )
    command.set_defaults(run=_register)
    _add_tables(commands.add_parser("tables", help="train the systems of the paper's tables, and show their scores"))
    add_submit(commands)
    add_study(commands.add_parser("study", help="let people rank the methods' pictures in the browser"))
    return parser


def _add_tables(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser("run", help="queue systems as DVC experiments, run them, and show the tables")
    command.add_argument(
        "systems", nargs="*", metavar="SYSTEM", help="choices of conf/gan (default: all of the paper's tables)"
    )
    _add_overrides(command)
    command.add_argument("--queue-only", action="store_true", help="leave running them to `dvc exp run --run-all`")
    command.set_defaults(run=_run_tables)
    command = commands.add_parser("show", help="print the tables from the tracked runs, and write a page with pictures")
    _add_overrides(command)
    command.add_argument("--html", type=Path, metavar="PATH", help="the page (default reports/tables.html)")
    command.set_defaults(run=_show_tables)


def _add_overrides(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-S",
        dest="overrides",
        action="append",
        default=[],
        metavar="OVERRIDE",
        help="settings of all systems, as for `dvc exp run`: -S dataset=cub -S hardware=gpu",
    )


def _run_tables(arguments: argparse.Namespace) -> Iterable[str]:
    from pipeline.paper_tables import run_tables

    return run_tables(arguments.systems, arguments.overrides, is_queued_only=arguments.queue_only)


def _show_tables(arguments: argparse.Namespace) -> Iterable[str]:
    from pipeline.paper_tables import PAGE_PATH, show_tables

    return show_tables(arguments.overrides, arguments.html or PAGE_PATH)
