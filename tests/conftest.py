"""Fixtures that several test files share: dots in CUB's layout, the DAG at home, databases, the real data."""

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
import torch
from PIL import Image, ImageDraw

from tests.database_servers import running_postgres
from tests.repository import Repository

CLASS_NAMES = {1: "001.Red_Dot", 2: "002.Green_Dot", 3: "003.Blue_Dot"}
TEST_CLASS_ID = 1  # class 1 is in the zero-shot test split too, so both split rules agree
IMAGES_PER_CLASS = 3
COLOURS = {1: (200, 40, 30), 2: (40, 180, 60), 3: (30, 60, 210)}


def pytest_configure() -> None:
    """Compute on one thread, here and in processes that tests start: tiny networks lose time on more."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture
def cub_root(tmp_path: Path) -> Path:
    """Write nine JPEGs of dots in three classes, with boxes, ten captions each and testclasses.txt."""
    root = tmp_path / "raw" / "dots"
    names: list[str] = []
    labels: list[str] = []
    boxes: list[str] = []
    for class_id, class_name in CLASS_NAMES.items():
        for number in range(IMAGES_PER_CLASS):
            image_id = len(names) + 1
            width, height = 90 + 70 * number, 120 + 30 * class_id
            left, top, right, bottom = 11 + number, 20, width - 30 - 9 * number, height - 17 * class_id
            draw_dot(
                root / "images" / class_name / f"dot_{number}.jpg", width, height, (left, top, right, bottom), class_id
            )
            names.append(f"{image_id} {class_name}/dot_{number}.jpg")
            labels.append(f"{image_id} {class_id}")
            boxes.append(f"{image_id} {left}.0 {top}.0 {right - left}.0 {bottom - top}.0")
            write_lines(
                root / "text_c10" / class_name / f"dot_{number}.txt",
                [f"a dot of class {class_id}, picture {number}, caption {caption}" for caption in range(10)],
            )
    write_lines(root / "images.txt", names)
    write_lines(root / "image_class_labels.txt", labels[::-1])  # joined by id, not by line
    write_lines(root / "bounding_boxes.txt", boxes[3:] + boxes[:3])
    write_lines(root / "classes.txt", [f"{class_id} {name}" for class_id, name in CLASS_NAMES.items()])
    write_lines(root / "testclasses.txt", [CLASS_NAMES[TEST_CLASS_ID]])
    return root


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Yield the URL of a PostgreSQL server that runs for the tests."""
    with running_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ballots.db'}"
    url = sa.make_url(request.getfixturevalue("postgres"))
    name = f"study_{uuid.uuid4().hex}"
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return url.set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Run the whole DAG once, as a user would: `dvc exp run -S size=tiny`. Tests may change it, but not its models."""
    repository = Repository(tmp_path_factory.mktemp("home") / "repository")
    repository.run("dvc", "exp", "run", "-S", "size=tiny")
    shutil.copytree(repository.folder / "models", repository.folder.parent / "models")
    return repository


@pytest.fixture(scope="session")
def models_at_home(reproduced: Repository) -> Path:
    """Return the models that the DAG makes at size=tiny."""
    return reproduced.folder.parent / "models"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real pictures and captions: $REAL_DATA, or ../shared/data beside the repository."""
    folder = Path(os.environ.get("REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "cub" / "CUB_200_2011" / "images").is_dir():
        pytest.skip(f"no real CUB under {folder}: set REAL_DATA to a folder that holds cub/ and char_cnn_rnn/")
    return folder


def draw_dot(path: Path, width: int, height: int, box: tuple[int, int, int, int], class_id: int) -> None:
    """Draw an ellipse that fills `box` on a slanting ramp of grey, so that every pixel says where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = Image.linear_gradient("L").rotate(30).resize((width, height))
    image = Image.merge("RGB", (ramp, ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT), ramp))
    left, top, right, bottom = box
    ImageDraw.Draw(image).ellipse((left, top, right - 1, bottom - 1), fill=COLOURS[class_id])
    image.save(path, quality=95)


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
