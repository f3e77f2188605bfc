"""The whole demo on a cluster whose parts fail one after the other, against the same demo at home, undisturbed.

The cluster is infra/local-cluster.sh's, of a head and two workers, and it needs what that needs. While Stage-I trains,
both workers lose their power, their link is cut for 30 seconds and the head is lost with all it had; while Stage-II
does, the MLflow server is started anew and the store refuses writes for a minute. In the end the weights are to be the
same bytes, each stage one finished run, each epoch and each grid there once.

`--home FOLDER` is a repository of the same code in which the demo was reproduced (`make demo`); else that is done here,
after the cluster's. A quarter of an hour more for each.
"""

import argparse
import tempfile
from pathlib import Path

import yaml

from benchmarks.measure import tell
from tests.local_cluster import CONTINUED, LocalCluster, local_cluster, repository_at, submit_among_faults
from tests.repository import Repository, copied_repository

SIGNS = ("stage1 epoch 30/", "stage1 epoch 80/", "stage1 epoch 130/", "stage2 epoch 2/", "stage2 epoch 8/")


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
        struck = submit_among_faults(cluster, away, SIGNS, log_path, "-S", "size=demo")
        mistakes = mistakes_in_tracking(cluster, away)
        num_continued = log_path.read_text().count(CONTINUED)
        changed = sorted(away.changed_stages())
        home: Path | None = arguments.home
        if home is None:
            alone = copied_repository(Path(folder) / "home")
            alone.run("dvc", "exp", "run", "-S", "size=demo")
            home = alone.folder
        weights = sorted(path.relative_to(home) for path in home.glob("models/*/*.safetensors"))
        others = [str(path) for path in weights if (home / path).read_bytes() != (away.folder / path).read_bytes()]
    results: dict[str, float | str] = {
        "weights": len(weights), "other_weights": " ".join(others) or "none", "num_continued": num_continued,
        "mistakes_in_mlflow": "; ".join(mistakes) or "none", "dvc_status": " ".join(changed) or "clean",
    }  # fmt: skip
    events = [
        [one.fault, f"{one.sign}…", f"{one.at_sec:.0f}", f"{one.lasted_sec:.0f}", "yes" if one.moved else "no"]
        for one in struck
    ]
    columns = ["fault", "when its log said", "at, seconds", "lasted", "went on from a checkpoint"]
    tell("The demo among faults", columns, events, results)


if __name__ == "__main__":
    main()
