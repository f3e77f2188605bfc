"""The whole demo on a cluster whose parts fail one after the other, against the same demo at home, undisturbed.

The cluster is infra/local-cluster.sh's, of a head and two workers, and it needs what that needs. While Stage-I trains,
both workers lose their power, their link is cut for 30 seconds and the head is lost with all it had; while Stage-II
does, the MLflow server is started anew and the store refuses writes for a minute. In the end the weights are to be the
same bytes, each stage one finished run, each epoch and each grid there once.

`--home FOLDER` is a repository of the same code in which the demo was reproduced (`make demo`); else that is done here,
after the cluster's. A quarter of an hour more for each.
"""

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.measure import tell
from tests.local_cluster import FAULTS, LocalCluster, local_cluster, repository_at
from tests.repository import Repository

SIGNS = ("stage1 epoch 30/", "stage1 epoch 80/", "stage1 epoch 130/", "stage2 epoch 2/", "stage2 epoch 8/")
LOOK_SEC = 1


def submit_among_faults(cluster: LocalCluster, repository: Repository, log_path: Path) -> list[list[str]]:
    """Submit the demo, let each part fail in its turn, and return what happened when.

    Raises:
        SystemExit: the job failed.
    """
    started, events = time.monotonic(), list[list[str]]()
    job = cluster.start(repository, "stackgan", "submit", "-S", "size=demo", log_path=log_path)
    for sign, fault in zip(SIGNS, FAULTS, strict=True):
        while sign not in log_path.read_text():
            try:
                job.wait(LOOK_SEC)
            except subprocess.TimeoutExpired:
                continue
            raise SystemExit(f"ended before {sign}: {log_path.read_text()[-3000:]}")
        at = time.monotonic()
        fault(cluster)
        events.append([fault.__name__, f"{sign}…", f"{at - started:.0f}", f"{time.monotonic() - at:.0f}"])
    if job.wait():
        raise SystemExit(log_path.read_text()[-3000:])
    events.append(["the results are home", "", f"{time.monotonic() - started:.0f}", ""])
    return events


def mistakes_in_tracking(cluster: LocalCluster, repository: Repository) -> list[str]:
    """List what is missing or there twice in MLflow."""
    runs = cluster.tracked(repository)
    document = yaml.safe_load((repository.folder / "params.yaml").read_text())
    stages = sorted(yaml.safe_load((repository.folder / "dvc.yaml").read_text())["stages"])
    mistakes: list[str] = []
    if sorted(run["stage"] for run in runs) != stages:
        mistakes.append(f"runs of {sorted(run['stage'] for run in runs)}")
    for run in runs:
        if run["status"] != "FINISHED":
            mistakes.append(f"{run['stage']} is {run['status']}")
        if run["stage"].startswith("train_stage"):
            num_epochs, every = (document[run["stage"]][key] for key in ("num_epochs", "sample_every_epochs"))
            grids = [f"grids/epoch_{epoch:05d}.png" for epoch in range(every, num_epochs + 1, every)]
            if run["epochs"] != list(range(1, num_epochs + 1)) or run["grids"] != grids:
                mistakes.append(f"{run['stage']} has epochs {run['epochs']} and grids {run['grids']}")
    return mistakes


def main() -> None:
    """Run and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, local_cluster() as cluster:
        away = repository_at(Path(folder) / "away")
        log_path = Path(folder) / "submit.log"
        events = submit_among_faults(cluster, away, log_path)
        mistakes = mistakes_in_tracking(cluster, away)
        num_continued = log_path.read_text().count("continuing after step")
        changed = sorted(away.changed_stages())
        home: Path | None = arguments.home
        if home is None:
            alone = Repository(Path(folder) / "home")
            alone.run("dvc", "exp", "run", "-S", "size=demo")
            home = alone.folder
        weights = sorted(path.relative_to(home) for path in home.glob("models/*/*.safetensors"))
        others = [str(path) for path in weights if (home / path).read_bytes() != (away.folder / path).read_bytes()]
    results: dict[str, float | str] = {
        "weights": len(weights), "other_weights": " ".join(others) or "none", "num_continued": num_continued,
        "mistakes_in_mlflow": "; ".join(mistakes) or "none", "dvc_status": " ".join(changed) or "clean",
    }  # fmt: skip
    tell("The demo among faults", ["fault", "when its log said", "at, seconds", "lasted"], events, results)


if __name__ == "__main__":
    main()
