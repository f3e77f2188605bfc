"""What a submitted job does on the cluster: `python -m pipeline.cluster_job <job> [stage ...]`, in the submitted tree.

It reproduces the DAG stage by stage, each pushed to the DVC remote as soon as it is done and noted in $RUN_STORAGE, so
that the same job, started again after its machine died, begins at the stage that was at work.
"""

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.cluster import check_gpus, start
from pipeline.handover import line_of, packed, stages_of, unpack
from pipeline.params import HardwareParams, load_params
from pipeline.registry import register
from pipeline.storage import Store
from pipeline.tracking import require_server, run_program, scratch_dir, storage_bucket, storage_root

logger = logging.getLogger(__name__)

PROGRESS = "results.zip"
DVC = (sys.executable, "-m", "dvc")


def main(tree: Path, job: str, targets: Sequence[str]) -> None:
    """Reproduce the DAG of a submitted tree, and end with a line that holds its results.

    Raises:
        ValueError: the cluster lacks something, or a stage failed; each has been said in one line.
    """
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    workspace = scratch_dir() / "jobs" / job
    progress = progress_of(job)
    require_versions(tree / "constraints.txt")
    require_places(progress)
    _lay_out(tree, workspace, progress)
    os.chdir(workspace)
    require_remote(workspace, job)
    hardware = load_params("hardware", HardwareParams)
    start(hardware.num_workers)
    check_gpus(hardware)
    for stage in targets or stages_of(workspace):
        alone = () if targets else ("--single-item",)  # those before it have had their turn
        _dvc("repro", "--pull", "--allow-missing", *alone, stage)
        _dvc("push", *(targets or (stage,)))
        progress.write(PROGRESS, packed(workspace))
    if not targets:
        logger.info("registered as %s", register(workspace / "models"))
    print(line_of(packed(workspace)), flush=True)
    shutil.rmtree(workspace)


def progress_of(job: str) -> Store:
    """Return where a job notes what it has done."""
    return Store(storage_bucket() or str(storage_root())).child("jobs").child(job)


def require_versions(constraints_path: Path) -> None:
    """Compare what is installed here with what the tree asks for.

    Raises:
        ValueError: a package that numbers depend on has another version.
    """
    wanted = dict(re.findall(r"^([\w.-]+)==([\w.]+)", constraints_path.read_text(encoding="utf-8"), re.MULTILINE))
    others: list[str] = []
    for name in ("ray", "torch", "torchvision", "numpy", "pyarrow", "dvc", "mlflow"):
        try:
            installed = version(name).partition("+")[0]  # torch names its CUDA there
        except PackageNotFoundError:
            installed = "none"
        if installed != wanted[name]:
            others.append(f"{name} {installed} in place of {wanted[name]}")
    if others:
        raise ValueError(
            f"the cluster has {', '.join(others)}: build its image from the submitted constraints.txt (infra/README.md)"
        )


def require_places(progress: Store) -> None:
    """Check where checkpoints and runs go.

    Raises:
        ValueError: a place is not given, cannot be written or does not answer.
    """
    for name, example in (("RUN_STORAGE", "s3://bucket/runs"), ("MLFLOW_TRACKING_URI", "http://mlflow:5000")):
        if not os.environ.get(name):
            raise ValueError(f"the cluster's nodes have no {name}: set it where they are started, such as to {example}")
    progress.require_writable()
    require_server()


def require_remote(workspace: Path, job: str) -> None:
    """Push a small file to the DVC remote: it must be there and let us write, before hours of work rely on it.

    Raises:
        ValueError: it is not, or does not.
    """
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(workspace / ".dvc", Path(folder) / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
        (Path(folder) / "probe").write_text(f"the remote of {job} can be written\n")
        _dvc("add", "--quiet", "probe", cwd=folder)
        done = subprocess.run([*DVC, "push", "probe"], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        raise ValueError(
            f"the DVC remote cannot be written ({errors[0] if errors else 'dvc does not say why'}); create it, or give "
            "the cluster's nodes the right to write there, or name another in .dvc/config"
        )


def _lay_out(tree: Path, workspace: Path, progress: Store) -> None:
    """Copy the submitted tree, which Ray may clean up, and bring it to where an earlier try of the job got."""
    shutil.rmtree(workspace, ignore_errors=True)
    workspace.parent.mkdir(exist_ok=True)
    shutil.copytree(tree, workspace)
    if (results := progress.read(PROGRESS)) is not None:
        logger.info("an earlier try of this job has done: %s", ", ".join(unpack(results, workspace)))
    _dvc("config", "--local", "core.no_scm", "true", cwd=workspace)
    _dvc("config", "--local", "cache.dir", str(scratch_dir() / "dvc_cache"), cwd=workspace)


def _dvc(*arguments: str, cwd: str | Path | None = None) -> None:
    """Run DVC; a stop of the job is passed on to it, so that the stage at work ends its MLflow run.

    Raises:
        ValueError: it failed; it said why.
    """
    process = subprocess.Popen([*DVC, *arguments], cwd=cwd)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    if status:
        raise ValueError(f"`dvc {' '.join(arguments)}` ended with status {status}; it said why above")


if __name__ == "__main__":
    run_program(lambda: main(Path.cwd(), sys.argv[1], sys.argv[2:]))
