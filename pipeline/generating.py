"""Paint sentences with the trained models into PNGs that say what they show: `stackgan generate`."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from pipeline.data.captions import Caption
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
from pipeline.text.char_cnn_rnn import ALPHABET, MAX_CHARS
from pipeline.text.encoders import CharCnnRnnEncoder, TextEncoder, load_text_encoder

logger = logging.getLogger(__name__)

QUICK = 8  # so many pictures are painted without a word


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
