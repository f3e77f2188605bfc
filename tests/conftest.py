"""Fixtures that several test files share: dots in CUB's layout, the DAG at home, databases, the real data."""

import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image, ImageDraw

from tests.database_servers import running_postgres
from tests.repository import copied_repository

CLASS_NAMES = {1: "001.Red_Dot", 2: "002.Green_Dot", 3: "003.Blue_Dot"}
TEST_CLASS_ID = 1  # class 1 is in the zero-shot test split too, so both split rules agree
IMAGES_PER_CLASS = 3
COLOURS = {1: (200, 40, 30), 2: (40, 180, 60), 3: (30, 60, 210)}


# The longest files start first, so that parallel workers end at about the same time.
LONG_FILES = [
    "test_submit",
    "test_pipeline",
    "test_cluster",
    "test_submit_refusals",
    "test_training",
    "test_study_browser",
    "test_scores",
]


def pytest_configure() -> None:
    """Compute on one thread, here and in processes that tests start: tiny networks lose time on more."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow itself turns it off only where CI is set
    for name in ("CI", "BUILD_NUMBER"):  # with these, pytest prints whole differences, megabytes of them
        os.environ.pop(name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest files."""
    order = {name: index for index, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that need a GPU where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA GPU")


@pytest.fixture(scope="session", autouse=True)
def one_ray_for_all_tests_of_a_process() -> Iterator[None]:
    """Stop Ray once, after the last test that may use it and before the summary."""
    yield
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


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


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ballots.db'}"
    import sqlalchemy as sa

    url = sa.make_url(request.getfixturevalue("postgres"))
    name = f"study_{uuid.uuid4().hex}"
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return url.set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def at_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `repository`, in which the whole DAG ran as a user runs it, and a copy of its `models`.

    The DAG runs once, in whichever process of the tests asks first. test_pipeline may change the repository.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all processes
    folder /= "home"
    with FileLock(f"{folder}.lock"):
        if not (folder / "models").exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process in which the DAG failed
            repository = copied_repository(folder / "repository")
            repository.run("dvc", "exp", "run", "-S", "size=tiny")
            shutil.copytree(repository.folder / "models", folder / "models.partial")
            (folder / "models.partial").rename(folder / "models")
    return folder


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
