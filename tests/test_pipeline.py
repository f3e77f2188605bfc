"""End to end, nothing replaced: DVC runs every stage, Ray two workers, MLflow writes SQLite, SIGKILL strikes."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from PIL import Image

from pipeline.evaluation.study.ballots import BallotBox
from pipeline.evaluation.study.files import read_key, read_study
from pipeline.gan.checkpoints import checkpoint_dirs
from tests.repository import Repository, wait_for
from tests.study_data import ballots_of

ROOT = Path(__file__).parent.parent
STAGES = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
DEADLINE_SEC = 300
NUM_EPOCHS = 80  # of a training in which something is killed
pytestmark = pytest.mark.timeout(900)  # in seconds: the first test runs the whole DAG, or waits for who does
HUMAN_RANK = ("prepare_human_study", "evaluate_human_rank")


@pytest.fixture(scope="module")
def repository(at_home: Path) -> Repository:
    return Repository(at_home / "repository")


def test_every_stage_ran_and_nothing_is_left_to_do(repository: Repository) -> None:
    assert repository.changed_stages() == set()
    assert "up to date" in repository.run("dvc", "repro").stdout
    for path in ("samples/grid_stackgan.png", "reports/index.html", "reports/evaluate_inception.json"):
        assert (repository.folder / path).is_file()


def test_each_stage_has_one_finished_run_whose_inputs_lead_to_their_writers(repository: Repository) -> None:
    runs = {stage: repository.runs(stage) for stage in STAGES}
    assert {stage: len(found) for stage, found in runs.items()} == dict.fromkeys(STAGES, 1)
    for stage, (run,) in runs.items():
        assert run.info.status == "FINISHED" and run.info.run_name == stage
        assert run.data.tags["mlflow.source.git.commit"] and run.data.tags["fingerprint"]
        assert run.data.tags["dataset"] == "demo"
        assert "outputs.json" in [file.path for file in repository.client.list_artifacts(run.info.run_id)]
    upstream = runs["train_stage2"][0].data.tags
    assert upstream["upstream.train_stage1"] == runs["train_stage1"][0].info.run_id
    assert upstream["upstream.embed_captions"] == runs["embed_captions"][0].info.run_id
    grids = repository.client.list_artifacts(runs["train_stage1"][0].info.run_id, "grids")
    assert [file.path for file in grids] == ["grids/epoch_00002.png", "grids/epoch_00003.png"]
    assert repository.epochs_logged(runs["train_stage1"][0]) == [1, 2, 3]


@pytest.mark.slow
def test_the_papers_systems_run_from_dvcs_queue_and_stand_in_its_tables(repository: Repository) -> None:
    before = {stage: len(repository.runs(stage)) for stage in STAGES}
    systems = ("stage1_64", "stackgan_128")
    shown = repository.run("stackgan", "tables", "run", *systems, "-S", "size=tiny").stdout
    again = {stage: len(repository.runs(stage)) - before[stage] for stage in STAGES}
    # One Stage-I serves them and the 256x256 StackGAN that the fixture ran.
    after = ("train_stage2", "generate_samples", "evaluate_inception", *HUMAN_RANK, "report")
    trained = dict.fromkeys(after, 2)
    assert again == dict.fromkeys(STAGES, 0) | trained

    last, first, of_the_fixture = repository.runs("evaluate_inception")
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    for start, run in (
        ("Stage-I, CA 64 2.95", first),
        ("StackGAN, CA, text twice 128 3.35", last),
        ("StackGAN, CA, text twice 256 3.70", of_the_fixture),
    ):
        (line, *_) = (line for line in lines if line.startswith(start))
        mean = run.data.metrics["methods.stackgan.inception_score.mean"]
        assert f"(CUB) {mean:.2f} ± " in line and line.endswith(run.info.run_id[:8])
    assert any(line.startswith("Noise 256") for line in lines) and any("128x128 above 64x64" in line for line in lines)
    assert (repository.folder / "reports" / "tables.html").read_text().count("<img ") == 3 * 8
    assert repository.run("stackgan", "tables", "show", "-S", "size=tiny").stdout == shown
    assert repository.changed_stages() == set()

    # What DVC itself makes of the two experiments.
    names = repository.run("dvc", "exp", "list", "--name-only").stdout.split()
    (one,), (other,) = ([name for name in names if name.startswith(f"{system}-2")] for system in systems)
    scores = json.loads(repository.run("dvc", "metrics", "diff", "--json", one, other).stdout)
    assert "methods.stackgan.fid" in scores["reports/evaluate_inception.json"]
    repository.run("dvc", "plots", "diff", one, other, "--out", "dvc_plots")
    plots = (repository.folder / "dvc_plots" / "index.html").read_text()
    assert one in plots and other in plots and "Stage-II losses" in plots


def test_a_learning_rate_reruns_its_training(repository: Repository) -> None:
    """And with it what follows, and nothing else, as the systems of the tables show."""
    kept = (repository.folder / "params.yaml").read_text()
    repository.change("train_stage2", learning_rate=0.0001)
    assert repository.changed_stages() == {"train_stage2"}
    (repository.folder / "params.yaml").write_text(kept)


def test_a_comment_in_the_tracking_reruns_nothing(repository: Repository) -> None:
    path = repository.folder / "pipeline" / "tracking.py"
    kept = path.read_text()
    path.write_text(kept + "\n# a comment\n")
    assert repository.changed_stages() == set()
    path.write_text(kept)


def test_ballots_are_exported_and_counted_and_only_what_counts_them_runs_again(repository: Repository) -> None:
    report_path = repository.folder / "reports" / "evaluate_human_rank.json"
    assert json.loads(report_path.read_text())["summary"] == "0 of 2 raters"
    assert "0 ballots are given" in repository.run("stackgan", "study", "export").stdout
    study = read_study(repository.folder / "study")
    key = read_key(study)
    box = BallotBox(f"sqlite:///{repository.folder}/runs/study/ballots.db")
    for ballot in ballots_of(study, key, rater=0):
        box.give(ballot)
    box.close()
    assert "ballots of 1 of 2 raters" in repository.run("stackgan", "study", "export").stdout

    before = {stage: len(repository.runs(stage)) for stage in STAGES}
    repository.run("dvc", "repro")
    again = {stage for stage in STAGES if len(repository.runs(stage)) > before[stage]}
    assert again == {"evaluate_human_rank", "report"}
    report = json.loads(report_path.read_text())
    assert report["summary"] == "1 of 2 raters, SIMULATED"
    mean_rank = report["questions"]["quality"]["methods"]["stackgan"]["mean_rank"]
    run = repository.runs("evaluate_human_rank")[0]
    assert mean_rank == run.data.metrics["questions.quality.methods.stackgan.mean_rank"] == 1
    artifacts = [file.path for file in repository.client.list_artifacts(run.info.run_id, "reports")]
    assert {"reports/evaluate_human_rank.json", "reports/evaluate_human_rank.png"} <= set(artifacts)
    assert "These ballots were simulated" in (repository.folder / "reports" / "index.html").read_text()


def test_generate_paints_a_sentence_and_repeats_itself(repository: Repository) -> None:
    pictures = []
    for name in ("a.png", "b.png"):
        repository.run("stackgan", "generate", "a small red bird with black wings", "--out", name, "--seed", "3")
        pictures.append((repository.folder / name).read_bytes())
    assert pictures[0] == pictures[1]
    with Image.open(repository.folder / "a.png") as image:
        assert image.size == (256, 256)
        assert image.info["caption"] == "a small red bird with black wings" and image.info["seed"] == "3"


def test_a_killed_repro_and_then_a_killed_worker_lose_and_double_nothing(
    repository: Repository, tmp_path: Path
) -> None:
    repository.change("train_stage1", num_epochs=NUM_EPOCHS, sample_every_epochs=NUM_EPOCHS, seed=1)
    command, log_path = ("dvc", "repro", "--single-item", "train_stage1"), tmp_path / "log"
    known = set((repository.folder / "runs").glob("train_stage1-*"))
    num_runs = len(repository.runs("train_stage1"))
    process = repository.start(*command, log_path=log_path)
    wait_for(lambda: _checkpoints_of_new_run(repository, known), process, log_path)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    unfinished = repository.runs("train_stage1")[0]
    assert unfinished.info.status == "RUNNING"

    process = repository.start(*command, log_path=log_path)
    wait_for(lambda: "continuing after step" in log_path.read_text(), process, log_path)
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if "RayTrainWorker" in p.name()]
    workers = workers or [p for p in psutil.process_iter() if _is_worker_of(p, repository.folder)]
    workers[0].send_signal(signal.SIGKILL)
    assert process.wait(DEADLINE_SEC) == 0, log_path.read_text()[-4000:]
    log = log_path.read_text()
    assert f"continuing the MLflow run {unfinished.info.run_id}" in log and log.count("continuing after step") == 2
    run = repository.runs("train_stage1")[0]
    assert run.info.run_id == unfinished.info.run_id and run.info.status == "FINISHED"
    assert len(repository.runs("train_stage1")) == num_runs + 1
    assert repository.epochs_logged(run) == list(range(1, NUM_EPOCHS + 1))


def _checkpoints_of_new_run(repository: Repository, known: set[Path]) -> list[Path]:
    new = set((repository.folder / "runs").glob("train_stage1-*")) - known
    return [path for folder in new for path in checkpoint_dirs(folder)]


def _is_worker_of(process: psutil.Process, folder: Path) -> bool:
    """Return whether a process is a Ray Train worker that imports this copy of the repository."""
    try:
        title = " ".join(process.cmdline())
        return "RayTrainWorker" in title and process.environ().get("PYTHONPATH", "").startswith(str(folder))
    except psutil.Error:
        return False


@pytest.mark.parametrize(
    ("break_it", "stage", "message"),
    [
        (
            lambda r: r.change("train_stage1", learning_rate="fast"),
            "train_stage1",
            "train_stage1.learning_rate is 'fast'",
        ),
        (lambda r: r.change("train_stage1", momentum=0.9), "train_stage1", "unknown key train_stage1.momentum"),
        (lambda r: r.change("crop_images", min_object_area=1.5), "crop_images", "crop_images.min_object_area is 1.5"),
    ],
)
def test_a_wrong_key_of_params_ends_in_one_line(
    repository: Repository, break_it: Callable[[Repository], None], stage: str, message: str
) -> None:
    kept = (repository.folder / "params.yaml").read_text()
    break_it(repository)
    node = yaml.safe_load((repository.folder / "dvc.yaml").read_text())["stages"][stage]
    command = node["cmd"].replace("${dataset.name}", "demo").replace("data/crops", "elsewhere").split()
    done = repository.run(sys.executable, *command[1:], fails=True)
    (repository.folder / "params.yaml").write_text(kept)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: params.yaml: {message}")
    assert not (repository.folder / "elsewhere").exists()


@pytest.mark.slow
def test_a_torn_picture_ends_in_one_line_through_ray(repository: Repository) -> None:
    torn_dir = repository.folder / "torn"
    shutil.copytree(repository.folder / "data" / "raw" / "demo", torn_dir)
    picture = sorted(torn_dir.rglob("*.jpg"))[3]
    picture.write_bytes(picture.read_bytes()[:2000])
    done = repository.run(
        sys.executable, "-m", "stages.crop_images", "torn", "elsewhere", "elsewhere.json", "elsewhere.jpg", fails=True
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: {picture} cannot be decoded") and "Traceback" not in done.stderr
    assert not list(repository.folder.glob("*elsewhere*")), "nothing half-written"


def test_missing_raw_data_ends_in_one_line_that_names_the_folder(repository: Repository) -> None:
    kept = (repository.folder / "params.yaml").read_text()
    repository.change("dataset", name="cub")
    done = repository.run(
        sys.executable,
        "-m",
        "stages.crop_images",
        "data/raw/cub",
        "elsewhere",
        "elsewhere.json",
        "elsewhere.jpg",
        fails=True,
    )
    (repository.folder / "params.yaml").write_text(kept)
    assert "error: data/raw/cub is missing" in done.stderr and "put it there" in done.stderr
    assert not (repository.folder / "elsewhere").exists()
