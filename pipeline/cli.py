"""The `stackgan` command."""

import argparse
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from pipeline.data.captions import Caption, captions_of_arguments, captions_of_lines
from pipeline.data.released import EMBEDDINGS_NAME, import_released
from pipeline.data.tables import EncoderId
from pipeline.gan.painting import (
    MAX_GRID,
    Picture,
    Subject,
    load_painters,
    pictures_of,
    subjects_between,
    write_picture,
    write_pictures,
)
from pipeline.paper_tables import PAGE_PATH, run_tables, show_tables
from pipeline.registry import register
from pipeline.study_cli import add_study
from pipeline.submit_cli import add_submit
from pipeline.text.char_cnn_rnn import ALPHABET, MAX_CHARS
from pipeline.text.encoders import CharCnnRnnEncoder, TextEncoder, load_text_encoder

logger = logging.getLogger(__name__)

QUICK = 8  # so many pictures are painted without a word


def main() -> None:
    """Run the command; people's mistakes end it in one line, status 1."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    arguments = _parser().parse_args()
    try:
        lines = arguments.run(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(*lines, sep="\n")


def generate(
    captions: Sequence[Caption],
    out: str,
    *,
    models_dir: Path,
    seed: int = 0,
    num_noises: int = 1,
    both_stages: bool = False,
    num_interpolated: int | None = None,
) -> list[Path]:
    """Paint captions with the trained snapshots into PNGs that say what they show.

    Args:
        captions: any sentences; see pipeline.text.encoders for what is read of them.
        out: a .png for one picture, or a folder for any number and a grid of them.
        models_dir: with text_encoder/ and stage2/.
        seed: of the noise; an equal caption, seed and model give an equal picture, whatever is painted beside it.
        num_noises: pictures of each caption, with the seeds seed, seed + 1, ...
        both_stages: paint Stage-I's sketches too.
        num_interpolated: paint so many points on the line between two captions in place of the captions.

    Returns:
        What was written.

    Raises:
        ValueError: no caption, one that cannot be embedded, a number out of range, a missing model, models that do not
            belong together, or a place that cannot be written.
    """
    _require_ranges(len(captions), seed, num_noises, num_interpolated)
    num_pictures = (num_interpolated or len(captions)) * num_noises * (1 + both_stages)
    is_folder = _is_folder(out, num_pictures)
    encoder = load_text_encoder(models_dir / "text_encoder")
    painters = load_painters(models_dir, EncoderId(encoder.name, encoder.sha256), both_stages=both_stages)
    embeddings = _embedded(encoder, captions)
    texts = [caption.text for caption in captions]
    if num_interpolated:
        subjects = subjects_between(texts, embeddings, num_interpolated)
    else:
        subjects = [Subject(embedding=row, caption=text) for row, text in zip(embeddings, texts, strict=True)]
    pictures = pictures_of(subjects, range(seed, seed + num_noises), painters)
    try:
        if is_folder:
            return _write_folder(pictures, Path(out))
        write_picture(pictures[0], Path(out))
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written ({error.strerror or error})") from None
    return [Path(out)]


def _require_ranges(num_captions: int, seed: int, num_noises: int, num_interpolated: int | None) -> None:
    if num_captions == 0:
        raise ValueError('no caption: give one, such as "a small red bird", or --file captions.txt, or - to read them')
    if seed < 0:
        raise ValueError(f"--seed {seed}: give a whole number from 0")
    if num_noises < 1:
        raise ValueError(f"--noises {num_noises}: give a whole number from 1")
    if num_interpolated is not None and num_interpolated < 2:
        raise ValueError(f"--interpolate {num_interpolated}: give a whole number from 2, both ends are counted")
    if num_interpolated is not None and num_captions != 2:
        raise ValueError(f"--interpolate goes from one caption to another: give two, not {num_captions}")


def _is_folder(out: str, num_pictures: int) -> bool:
    """Say whether `out` stands for a folder: it is one, ends in a slash, or has no ending."""
    if not out:
        raise ValueError("--out is empty: give a name that ends in .png, or a folder")
    path = Path(out)
    if path.is_dir() or out.endswith("/") or not path.suffix:
        if path.is_file():
            raise ValueError(f"--out {out} is a file: give a name that ends in .png, or a folder")
        return True
    if path.suffix.lower() != ".png":
        raise ValueError(f"--out {out}: give a name that ends in .png, or in / for a folder")
    if num_pictures > 1:
        raise ValueError(f"--out {out}: {num_pictures} pictures need a folder, such as {path.with_suffix('')}/")
    return False


def _embedded(encoder: TextEncoder, captions: Sequence[Caption]) -> Tensor:
    """Embed each caption alone, so that its bytes do not depend on the others: (N, embedding_dim) float32."""
    rows: list[Tensor] = []
    for caption in captions:
        try:
            rows.append(encoder.encode([caption.text], 1))
        except ValueError as error:
            raise ValueError(str(error).replace("captions[0]", caption.place)) from None
    _note_unread(encoder, [caption.text for caption in captions])
    return torch.cat(rows)


def _note_unread(encoder: TextEncoder, captions: Sequence[str]) -> None:
    """Say what the encoder does not see of captions."""
    num_cut = encoder.num_cut(captions)
    if num_cut:
        logger.warning("captions of which only the first %s are read: %d", encoder.reads_at_most, num_cut)
    if not isinstance(encoder, CharCnnRnnEncoder):
        return
    num_unknown = sum(char not in ALPHABET for caption in captions for char in caption.lower()[:MAX_CHARS])
    if num_unknown:
        logger.warning("characters that the text encoder does not know, passed over: %d", num_unknown)


def _write_folder(pictures: Sequence[Picture], out_dir: Path) -> list[Path]:
    if len(pictures) > MAX_GRID:
        logger.warning("grid.png shows the first %d of %d pictures", MAX_GRID, len(pictures))
    console, is_long = Console(stderr=True), len(pictures) > QUICK
    if is_long and not console.is_terminal:
        logger.info("painting %d pictures", len(pictures))
    disable = not (is_long and console.is_terminal)
    with Progress(console=console, transient=True, redirect_stdout=False, disable=disable) as bar:
        return list(bar.track(write_pictures(pictures, out_dir), len(pictures) + 1, description="painting"))


def _generate(arguments: argparse.Namespace) -> Iterable[object]:
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
    imported = import_released(
        arguments.folder,
        arguments.out,
        embeddings_name=arguments.embeddings,
        captions_per_image=arguments.captions,
    )
    return [
        f"{split.path}: {split.num_images} pictures, {split.captions_per_image} captions each, "
        f"{split.embedding_dim} numbers"
        for split in imported
    ]


def _register(arguments: argparse.Namespace) -> Iterable[str]:
    return [register(arguments.models)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stackgan", description="Pictures from sentences with StackGAN.")
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
        default=EMBEDDINGS_NAME,
        metavar="NAME",
        help=f"the file of embeddings in train/ and test/ (default {EMBEDDINGS_NAME})",
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
    command.add_argument("--html", type=Path, default=PAGE_PATH, metavar="PATH", help=f"the page (default {PAGE_PATH})")
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
    return run_tables(arguments.systems, arguments.overrides, is_queued_only=arguments.queue_only)


def _show_tables(arguments: argparse.Namespace) -> Iterable[str]:
    return show_tables(arguments.overrides, arguments.html)
