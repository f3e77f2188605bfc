"""What a submitted job does on the cluster: `python -m pipeline.cluster_job <job> [stage ...]`, in the submitted tree.

It reproduces the DAG stage by stage, each pushed to the DVC remote as soon as it is done and noted in $RUN_STORAGE, so
that the same job, started again after its machine died, begins at the stage that was at work.
"""

import fcntl
import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.carrying import is_held, remove_remains
from pipeline.cluster import check_gpus, on_every_machine, start
from pipeline.handover import contents_of, line_of, packed, stages_of, with_upstream, write_results
from pipeline.params import HardwareParams, load_params
from pipeline.registry import register
from pipeline.storage import Store, patiently
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
    os.environ["STACKGAN_JOB"] = job
    _set_threads()
    progress = progress_of(job)
    require_versions(tree / "requirements.txt")
    require_places(progress)
    with _at_work(job) as (workspace, others):
        _lay_out(tree, workspace, progress)
        os.chdir(workspace)
        require_remote(workspace)
        hardware = load_params("hardware", HardwareParams)
        start(hardware.num_workers)
        check_gpus(hardware)
        on_every_machine(remove_remains, frozenset({job, *others}))
        if not others:
            _dvc("gc", "--workspace", "--force", "--quiet")  # of this machine's cache, what other trees left in it
        for stage in with_upstream(targets or stages_of(workspace)):
            before = _locked(workspace)
            _dvc("repro", "--pull", "--allow-missing", "--single-item", stage)
            if _locked(workspace) != before:  # else there was nothing to do, and what it wrote is in the remote
                patiently(partial(_keep, stage, workspace, progress), f"push what {stage} wrote")
        if not targets:
            _register(workspace)
        print(line_of(packed(workspace)), flush=True)
        shutil.rmtree(workspace)


def _set_threads() -> None:
    """Let a stage's own process compute on all cores, or on as many threads as $STACKGAN_NUM_THREADS says.

    $OMP_NUM_THREADS is Ray's here, and 1: it is meant for the process that started this one.
    """
    os.environ.pop("OMP_NUM_THREADS", None)
    if num_threads := os.environ.get("STACKGAN_NUM_THREADS"):
        os.environ["OMP_NUM_THREADS"] = num_threads


@contextmanager
def _at_work(job: str) -> Generator[tuple[Path, set[str]]]:
    """Yield the job's folder, and which other jobs are at work on this machine: each holds a lock as long as it is."""
    jobs_dir = scratch_dir() / "jobs"
    jobs_dir.mkdir(exist_ok=True)
    with (jobs_dir / f"{job}.lock").open("a") as own:
        fcntl.flock(own, fcntl.LOCK_EX)
        yield jobs_dir / job, {path.stem for path in jobs_dir.glob("*.lock") if path.stem != job and is_held(path)}


def _locked(workspace: Path) -> bytes:
    path = workspace / "dvc.lock"
    return path.read_bytes() if path.exists() else b""


def _keep(stage: str, workspace: Path, progress: Store) -> None:
    """Push what a stage wrote, and note that it is done.

    Raises:
        OSError: the DVC remote or the storage refuses.
    """
    try:
        _dvc("push", stage)
    except ValueError as error:
        raise OSError(str(error)) from None
    progress.write(PROGRESS, packed(workspace))


def _register(workspace: Path) -> None:
    """Register the trained generator; results that came this far are not lost for it."""
    try:
        _dvc("pull", "models/text_encoder", "models/stage2")  # a stage that had nothing to do did not ask for them
        logger.info("registered as %s", register(workspace / "models"))
    except (ValueError, ConnectionError) as error:
        logger.warning("the generator is not registered: %s; `stackgan register` does it", error)


def progress_of(job: str) -> Store:
    """Return where a job notes what it has done."""
    return Store(storage_bucket() or str(storage_root())).child("jobs").child(job)


def require_versions(lock_path: Path) -> None:
    """Compare what is installed here with what the tree asks for.

    Raises:
        ValueError: a package that numbers depend on has another version.
    """
    wanted = dict(re.findall(r"^([\w.-]+)==([\w.]+)", lock_path.read_text(encoding="utf-8"), re.MULTILINE))
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
            f"the cluster has {', '.join(others)}: rebuild its image from requirements.txt (infra/README.md)"
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


def require_remote(workspace: Path) -> None:
    """Push a small file to the DVC remote: it must be there and let us write, before hours of work rely on it.

    Raises:
        ValueError: it is not, or does not.
    """
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(workspace / ".dvc", Path(folder) / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
        (Path(folder) / "probe").write_text(
            f"a small file in a DVC remote, to see that it can be written\n{secrets.token_hex()}\n"
        )
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
        contents = contents_of(results, workspace)
        logger.info("an earlier try of this job has done: %s", ", ".join(sorted(contents)))
        write_results(contents, workspace)
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
