"""A copy of this repository to run the pipeline in, as a user would."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

ROOT = Path(__file__).parent.parent
DEADLINE_SEC = 300
LOOK_SEC = 0.1


class Repository:
    """A git and DVC repository, and how a user works in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_", "RAY_"))}
        self.env.pop("RUN_STORAGE", None)
        self.env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{self.env['PATH']}"
        self.env["PYTHONPATH"] = str(folder)  # Ray's workers import the copy too

    def run(self, *command: str, cwd: Path | None = None, fails: bool = False) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=cwd or self.folder, env=self.env, capture_output=True, text=True, check=False
        )
        assert (done.returncode != 0) == fails, (
            f"{command}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        )
        return done

    def change(self, section: str, **values: object) -> None:
        path = self.folder / "params.yaml"
        document = yaml.safe_load(path.read_text())
        document[section] |= values
        path.write_text(yaml.safe_dump(document, sort_keys=False))

    def changed_stages(self) -> set[str]:
        """Return the stages that `dvc status` would run again for a change of params or inputs."""
        return set(json.loads(self.run("dvc", "status", "--json").stdout))

    def start(self, *command: str, log_path: Path) -> subprocess.Popen[bytes]:
        with log_path.open("wb") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def client(self) -> "MlflowClient":
        from mlflow.tracking import MlflowClient

        return MlflowClient(f"sqlite:///{self.folder}/runs/mlflow.db")

    def runs(self, stage: str) -> "list[Run]":
        """Return the stage's MLflow runs, the newest first."""
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        return list(
            self.client.search_runs(experiments, f"tags.stage = '{stage}'", order_by=["attributes.start_time DESC"])
        )

    def epochs_logged(self, run: "Run") -> list[int]:
        return [int(metric.value) for metric in self.client.get_metric_history(run.info.run_id, "epoch")]


def copied_repository(folder: Path) -> Repository:
    """Make a copy of this repository, with one commit."""
    repository = Repository(folder)
    listed = repository.run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout
    for name in listed.splitlines():
        if (ROOT / name).is_file() and name != "dvc.lock":  # a demo of ROOT's is none of the copy's
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    repository.run("git", "init", "--quiet")
    repository.run("git", "config", "user.name", "test")
    repository.run("git", "config", "user.email", "test@example.org")
    repository.run("git", "add", "--all")
    repository.run("git", "commit", "--quiet", "--message", "copy")
    return repository


def wait_for(
    what: Callable[[], object], process: subprocess.Popen[bytes], log_path: Path, within_sec: float = DEADLINE_SEC
) -> None:
    """Look again and again until `what` holds; fail where the process ends or the time has passed first."""
    deadline = time.monotonic() + within_sec
    while not what():
        try:
            process.wait(LOOK_SEC)
        except subprocess.TimeoutExpired:
            assert time.monotonic() < deadline, log_path.read_text()[-4000:]
        else:
            assert what(), log_path.read_text()[-4000:]
            return
