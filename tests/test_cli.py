"""The `stackgan` command: results on stdout, a person's mistake in one line and status 1."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.cli import main
from pipeline.data.files import file_sha256
from pipeline.data.released import EMBEDDINGS_NAME
from pipeline.data.tables import EncoderId
from pipeline.gan.stages import new_stage
from pipeline.paper_tables import PAGE_PATH
from pipeline.text.char_cnn_rnn import CharCnnRnn
from pipeline.text.encoders import load_text_encoder, save_text_encoder
from tests.gan_data import ARCHITECTURE, EMBEDDING_DIM
from tests.released_data import ReleasedFolder

Generate = Callable[..., list[Path]]


@pytest.fixture
def released(tmp_path: Path) -> ReleasedFolder:
    return ReleasedFolder(tmp_path / "birds")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write untrained snapshots that belong together: text_encoder/ and stage2/."""
    folder = tmp_path_factory.mktemp("models")
    write_encoder(folder / "text_encoder", seed=0)
    encoder = load_text_encoder(folder / "text_encoder")
    new_stage(2, ARCHITECTURE, seed=0, encoder=EncoderId(encoder.name, encoder.sha256)).save(folder / "stage2")
    return folder


@pytest.fixture
def generate(models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Generate:
    """Return a function that runs `stackgan generate` and gives the paths it printed."""

    def run_generate(*arguments: object) -> list[Path]:
        run("generate", "--models", models, *arguments, monkeypatch=monkeypatch)
        return [Path(line) for line in capsys.readouterr().out.splitlines()]

    return run_generate


def write_encoder(folder: Path, seed: int) -> None:
    """Write an untrained encoder of weights so large that captions are not all alike to it."""
    network = CharCnnRnn(conv_dims=(8, 8, 8), embedding_dim=EMBEDDING_DIM)
    network.initialise(torch.Generator().manual_seed(seed))
    for parameter in network.parameters():
        parameter.data *= 4
    save_text_encoder(folder, network)


def run(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["stackgan", *map(str, arguments)])
    main()


def text_of(path: Path) -> dict[str, str]:
    with Image.open(path) as image:
        return image.text


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_sentence_becomes_a_picture_that_names_it(generate: Generate, models: Path, tmp_path: Path) -> None:
    assert generate("a small red bird", "--out", tmp_path / "new" / "bird.png") == [tmp_path / "new" / "bird.png"]
    assert text_of(tmp_path / "new" / "bird.png") == {
        "caption": "a small red bird",
        "seed": "0",
        "stage": "stage2",
        "model_sha256": file_sha256(models / "stage2" / "generator.safetensors"),
        "encoder_sha256": load_text_encoder(models / "text_encoder").sha256,
    }
    assert pixels_of(tmp_path / "new" / "bird.png").shape == (256, 256, 3)


def test_a_caption_has_the_same_bytes_from_anywhere_and_beside_anything(
    generate: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caption, other = "a small red bird", "a large blue bird that sits on a branch"
    (path,) = generate(caption, "--out", tmp_path / "bird.png", "--seed", 3)
    expected = file_sha256(path)
    (tmp_path / "captions.txt").write_bytes(f"{other}\n\n{caption} \r\n{other}\n".encode())
    written = generate("--file", tmp_path / "captions.txt", "--out", tmp_path / "file", "--seed", 3)
    assert [path.name for path in written] == [
        "0000_a-large-blue-bird-that-sits-on-a-branch.png",
        "0001_a-small-red-bird.png",
        "0002_a-large-blue-bird-that-sits-on-a-branch.png",
        "grid.png",
    ]
    other_sha256, own_sha256, again_sha256, _ = (file_sha256(path) for path in written)
    assert own_sha256 == expected != other_sha256 == again_sha256
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{caption}\n".encode())))
    assert file_sha256(generate("-", "--out", tmp_path / "bird.png", "--seed", 3)[0]) == expected
    noises = generate(other, caption, "--out", tmp_path / "noises", "--seed", 2, "--noises", 2, "--both-stages")
    assert expected in [file_sha256(path) for path in noises]


def test_noises_are_the_seeds_that_follow(generate: Generate, tmp_path: Path) -> None:
    *paths, grid = generate("a bird", "--out", f"{tmp_path}/birds/", "--seed", 4, "--noises", 3)
    assert [text_of(path)["seed"] for path in paths] == ["4", "5", "6"]
    assert len({path.read_bytes() for path in paths}) == 3
    assert text_of(grid)["seed"] == "4\n5\n6" and text_of(grid)["caption"] == "a bird"


def test_both_stages_are_written_each_in_its_size(generate: Generate, models: Path, tmp_path: Path) -> None:
    *paths, _ = generate("a bird", "--out", tmp_path, "--both-stages")
    assert [path.name for path in paths] == ["0000_a-bird_stage1.png", "0000_a-bird_stage2.png"]
    assert [pixels_of(path).shape[0] for path in paths] == [64, 256]
    assert [text_of(path)["model_sha256"] for path in paths] == [
        file_sha256(models / "stage2" / f"{name}.safetensors") for name in ("stage1_generator", "generator")
    ]


def test_an_interpolation_begins_and_ends_at_the_captions_with_the_noise_held(
    generate: Generate, tmp_path: Path
) -> None:
    first, second = "a small red bird", "a large blue bird"
    *points, _ = generate(first, second, "--interpolate", 4, "--out", tmp_path / "points", "--seed", 9)
    *ends, _ = generate(first, second, "--out", tmp_path / "ends", "--seed", 9)
    np.testing.assert_array_equal(pixels_of(points[0]), pixels_of(ends[0]))
    np.testing.assert_array_equal(pixels_of(points[3]), pixels_of(ends[1]))
    texts = [text_of(path) for path in points]
    assert [text["position"] for text in texts] == ["0", "0.333333", "0.666667", "1"]
    assert {(text["caption"], text["caption_to"], text["seed"]) for text in texts} == {(first, second, "9")}


def test_what_is_not_read_of_captions_is_counted(
    generate: Generate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    generate("a réd bird \U0001f426", "Bird " * 60, "a\tbird", "--out", tmp_path)
    assert caplog.messages == [
        "control characters replaced by spaces: 1",
        "captions of which only the first 201 characters are read: 1",
        "characters that the text encoder does not know, passed over: 2",
    ]


def test_files_of_others_stay_in_the_folder(generate: Generate, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "0000_a-bird.png").write_text("an older picture")
    generate("a bird", "--out", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000_a-bird.png", "grid.png", "notes.txt"]
    assert pixels_of(tmp_path / "0000_a-bird.png").shape == (256, 256, 3)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a bird", "飞鸟", "--out", "birds"], "caption 2 ('飞鸟') has no character that the encoder knows"),
        (["--file", "captions.txt", "--out", "birds"], "captions.txt line 2 ('飞鸟') has no character"),
        (["a bird", "--out", "captions.txt/"], "--out captions.txt/ is a file: give a name that ends in .png"),
        (["a bird", "--out", "file"], "--out file is a file"),
        (["a bird", "--out", "file/birds/"], "--out file/birds/ cannot be written (Not a directory)"),
    ],
)
def test_captions_and_places_that_cannot_be_used_are_named(
    arguments: list[str], message: str, generate: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("captions.txt", "file"):
        Path(name).write_text("a bird\n飞鸟\n", "utf-8")
    with pytest.raises(SystemExit) as ended:
        generate(*arguments)
    assert str(ended.value.code).startswith(f"error: {message}") and "\n" not in str(ended.value.code)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.txt", "file"]


def test_models_that_do_not_belong_together_are_refused(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["generate", "a bird", "--out", tmp_path / "bird.png", "--models", tmp_path]
    write_encoder(tmp_path / "text_encoder", seed=1)
    with pytest.raises(SystemExit, match=r"stage2/generator.json is missing: run `dvc repro`"):
        run(*arguments, monkeypatch=monkeypatch)
    (tmp_path / "stage2").symlink_to(models / "stage2")
    shas = [load_text_encoder(folder / "text_encoder").sha256[:12] for folder in (models, tmp_path)]
    config = json.loads((models / "stage2" / "generator.json").read_text())["config"]
    expected = (
        rf"{tmp_path}/stage2 was trained on embeddings of {config['encoder']['name']} {shas[0]}, "
        rf"{tmp_path}/text_encoder is \w+ {shas[1]}; run `dvc repro`, or with embed_captions.source: released"
    )
    with pytest.raises(SystemExit, match=expected):
        run(*arguments, monkeypatch=monkeypatch)
    assert not (tmp_path / "bird.png").exists()


def test_an_import_prints_what_it_wrote(
    released: ReleasedFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    run("import-embeddings", released.root, "--out", out, "--captions", 3, monkeypatch=monkeypatch)
    assert capsys.readouterr().out == (
        f"{out}/train.parquet: 3 pictures, 3 captions each, 6 numbers\n"
        f"{out}/test.parquet: 2 pictures, 3 captions each, 6 numbers\n"
    )


def test_a_pickle_that_would_run_code_ends_the_command_in_one_line(released: ReleasedFolder, tmp_path: Path) -> None:
    path = released.write("train", "skip-thought-embeddings", b"cos\nsystem\n(S'touch %s/ran'\ntR." % bytes(tmp_path))
    arguments = ["import-embeddings", released.root, "--out", tmp_path / "out", "--embeddings", path.name]
    done = subprocess.run([sys.executable, "-c", "from pipeline.cli import main; main()", *arguments],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {path}: it names 'os.system': it would run code")
    assert [entry.name for entry in tmp_path.iterdir()] == ["birds"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "a bird", "--out", ""], "--out is empty: give a name that ends in .png, or a folder"),
        (["generate", "-", "a bird", "--out", "c"], "- reads captions from standard input: give it alone"),
        (["generate", "a bird", "--out", "bird.txt"], "--out bird.txt: give a name that ends in .png, or in / for"),
        (["generate", "--out", "bird.png"], 'no caption: give one, such as "a small red bird"'),
        (["generate", "a bird", " ", "--out", "birds"], "caption 2 is empty: write a description or leave it out"),
        (["generate", "a", "b", "--out", "b.png"], "--out b.png: 2 pictures need a folder, such as b/"),
        (["generate", "a", "--out", "b.png", "--both-stages"], "--out b.png: 2 pictures need a folder"),
        (["generate", "a bird", "--out", "birds", "--noises", "0"], "--noises 0: give a whole number from 1"),
        (["generate", "a", "b", "--out", "c", "--interpolate", "1"], "--interpolate 1: give a whole number from 2"),
        (
            ["generate", "a", "--out", "b", "--interpolate", "3"],
            "--interpolate goes from one caption to another: give two, not 1",
        ),
        (["generate", "a", "--file", "b.txt", "--out", "c"], "captions are given both as arguments and with --file"),
        (["generate", "--file", "b.txt", "--out", "c"], "--file b.txt cannot be read (No such file or directory)"),
        (["generate", "a bird", "--out", "bird.png", "--seed", "-1"], "--seed -1: give a whole number from 0"),
        (["generate", "a bird", "--out", "bird.png", "--models", "no_models"], "no_models/text_encoder"),
        (["import-embeddings", "no_folder", "--out", "out"], "no_folder holds neither train/ nor test/"),
    ],
)
def test_a_mistake_ends_the_command_with_its_remedy(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run(*arguments, monkeypatch=monkeypatch)
    assert str(ended.value.code).startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[], ["paint"], ["generate"], ["import-embeddings", "folder"]])
def test_an_unknown_or_incomplete_command_shows_the_usage(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*arguments, monkeypatch=monkeypatch)
    assert ended.value.code == 2 and "usage: stackgan" in capsys.readouterr().err


HEAVY = {"torch", "torchvision", "mlflow", "ray", "pandas", "pyarrow", "numpy", "scipy", "matplotlib", "fastapi", "PIL"}


@pytest.mark.parametrize("arguments", ["--help", "study --help", "submit --help", "--version"])
def test_help_imports_nothing_heavy(arguments: str) -> None:
    """0.3 s in place of 4.7; the time itself depends on the machine."""
    code = (
        "import sys\nfrom pipeline.cli import main\ntry: main()\n"
        "except SystemExit: print(*(name for name in sys.modules if '.' not in name), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments.split()], capture_output=True, text=True, check=True)
    assert done.stdout
    assert not HEAVY & set(done.stderr.split())


def test_the_command_is_the_package_too_and_tells_its_version() -> None:
    done = subprocess.run([sys.executable, "-m", "pipeline", "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"stackgan \d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_the_commands(
    shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit):
        run("--print-completion", shell, monkeypatch=monkeypatch)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("generate", "import-embeddings", "--both-stages", "offline"))


@pytest.mark.parametrize(
    ("command", "default"),
    [(["import-embeddings"], EMBEDDINGS_NAME), (["tables", "show"], str(PAGE_PATH))],
    ids=["import-embeddings", "tables show"],
)
def test_help_names_the_default_that_the_command_takes(
    command: list[str], default: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parser repeats it, so that the help need not import the module that holds it."""
    with pytest.raises(SystemExit):
        run(*command, "--help", monkeypatch=monkeypatch)
    assert default in "".join(capsys.readouterr().out.split())
