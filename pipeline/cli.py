"""The `stackgan` command."""

import argparse
import logging
import sys
from pathlib import Path

from PIL import Image, PngImagePlugin

from pipeline.data.files import replaced_file
from pipeline.gan.sampling import paint
from pipeline.gan.stages import load_stage
from pipeline.text.encoders import load_text_encoder


def main() -> None:
    """Run the command; people's mistakes end it in one line, status 1."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    arguments = _parser().parse_args()
    try:
        generate(arguments.caption, arguments.out, seed=arguments.seed, models_dir=arguments.models)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(arguments.out)


def generate(caption: str, out_path: Path, *, seed: int, models_dir: Path) -> None:
    """Paint one caption with the trained snapshots and write a PNG that names its caption, seed and model.

    Args:
        caption: any sentence; see pipeline.text.encoders for what is read of it.
        out_path: a .png file.
        seed: of the noise; an equal caption, seed and model give an equal picture.
        models_dir: with text_encoder/ and stage2/.

    Raises:
        ValueError: a snapshot is missing, the caption is empty, or out_path is not a .png.
    """
    if out_path.suffix.lower() != ".png":
        raise ValueError(f"--out {out_path}: give it a name that ends in .png")
    if seed < 0:
        raise ValueError(f"--seed {seed}: give a whole number from 0")
    encoder = load_text_encoder(models_dir / "text_encoder")
    stage, sha256 = load_stage(models_dir / "stage2")
    if encoder.embedding_dim != stage.dims.embedding_dim:
        raise ValueError(
            f"{models_dir}: the text encoder gives {encoder.embedding_dim} numbers, Stage-II was trained on "
            f"{stage.dims.embedding_dim}; run `dvc repro` so that they belong together"
        )
    image = Image.fromarray(paint(stage, encoder.encode([caption]), [seed])[0])
    text = PngImagePlugin.PngInfo()
    for key, value in (("caption", caption), ("seed", str(seed)), ("model_sha256", sha256)):
        text.add_itxt(key, value)
    with replaced_file(out_path) as partial_path:
        image.save(partial_path, format="PNG", pnginfo=text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stackgan", description="Pictures from sentences with StackGAN.")
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser("generate", help="paint a sentence with the trained models")
    command.add_argument("caption", help='such as "a small red bird with black wings"')
    command.add_argument("--out", type=Path, required=True, help="the .png file to write")
    command.add_argument("--seed", type=int, default=0, help="another seed, another picture (default 0)")
    command.add_argument("--models", type=Path, default=Path("models"), help="folder of the snapshots (default models)")
    return parser
