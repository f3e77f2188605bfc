"""The working tree as a job: what is sent, when there is nothing to send, and what comes back."""

import configparser
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from pipeline.data.files import replaced_folder, write_json
from pipeline.handover import LOCK, MARK, archive_in, contents_of, stages_of, with_upstream, write_results
from pipeline.jobs import JobInfo, JobServer
from pipeline.tracking import git_tags, read_stage_node

logger = logging.getLogger(__name__)

MAX_TREE_BYTES = 50_000_000
JOBS_DIR = Path("runs/jobs")  # of the repository; ignored by git
LAST_PATH = JOBS_DIR / "last.json"
DVC = (sys.executable, "-m", "dvc")
WAIT_SEC = 2  # between two looks at a cluster that does not answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """A job as its submitter remembers it."""

    address: str
    job: str
    targets: tuple[str, ...]
    env: dict[str, str]  # no secrets: it is readable on the cluster
    lock: str  # the sha256 of dvc.lock as it was here

    @property
    def tree(self) -> Path:
        """Return the copy of what was sent."""
        return JOBS_DIR / self.job

    def send(self, server: JobServer) -> None:
        """Start the job, unless it runs already."""
        command = " ".join(["python -m pipeline.cluster_job", self.job, *self.targets])
        server.submit(self.job, command=command, folder=self.tree, env=self.env)


def prepared(address: str, targets: Sequence[str]) -> Submission:
    """Copy the tree, name the job by the hash of what it holds, and remember it as the last one.

    Raises:
        ValueError: this is no repository of ours, the tree is too large, or there is no remote that a cluster can use.
    """
    _require_stages(targets)
    _require_remote()
    files = _files_of_tree(targets)
    digest = hashlib.sha256("\0".join(targets).encode())
    for name in files:
        digest.update(f"\0{name}\0{os.stat(name).st_mode & 0o100}\0".encode() + Path(name).read_bytes())
    env = {"STACKGAN_GIT": json.dumps(git_tags())}
    if num_threads := os.environ.get("OMP_NUM_THREADS"):  # the last digits of weights depend on it
        env["STACKGAN_NUM_THREADS"] = num_threads
    submission = Submission(
        address=address,
        job=f"stackgan-{digest.hexdigest()[:16]}",
        targets=tuple(targets),
        env=env,
        lock=_lock_sha256(),
    )
    with replaced_folder(submission.tree) as folder:
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, folder / name)
    write_json(JOBS_DIR / f"{submission.job}.json", asdict(submission))
    write_json(LAST_PATH, asdict(submission))
    return submission


def remembered(job: str | None) -> Submission:
    """Return a submission of this repository by its name; None: the last one.

    Raises:
        ValueError: there is none.
    """
    path = JOBS_DIR / f"{Path(job).name}.json" if job else LAST_PATH
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        what = f"{job} is not known here" if job else "no job was submitted from here"
        raise ValueError(f"{what} ({path} is missing): `stackgan submit` sends one") from None
    return Submission(
        address=about["address"],
        job=about["job"],
        targets=tuple(about["targets"]),
        env=about["env"],
        lock=about["lock"],
    )


def is_reproduced(targets: Sequence[str]) -> bool:
    """Return whether DVC has nothing to run; outputs that lie in the remote alone count as there."""
    done = subprocess.run(
        [*DVC, "repro", "--dry", "--allow-missing", *targets], capture_output=True, text=True, check=False
    )
    return done.returncode == 0 and "Running stage" not in done.stdout


def push_data(submission: Submission) -> None:
    """Bring all that DVC has here to its remote, from where the cluster takes it.

    Outputs that dvc.lock names and that are neither here nor there are to be made anew: the dvc.lock that is sent
    forgets their stages.

    Raises:
        ValueError: DVC refuses, or data that no stage makes is nowhere.
    """
    try:
        run_dvc("push")
    except ValueError:
        raise ValueError(
            "the DVC remote cannot be written from here (DVC says why above); create it, or give yourself the right to "
            "write there, or name another in .dvc/config"
        ) from None
    asked = subprocess.run(
        [*DVC, "data", "status", "--not-in-remote", "--json"], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        raise ValueError(f"DVC does not say what its remote lacks: {asked.stderr.strip()[-300:]}")
    nowhere = {name.rstrip("/") for name in json.loads(asked.stdout or "{}").get("not_in_remote", [])}
    nodes = [read_stage_node(stage) for stage in with_upstream(submission.targets or stages_of(Path()))]
    if lost := nowhere & {dep for node in nodes for dep in node.deps if dep not in node.upstream}:
        names = ", ".join(sorted(lost))
        raise ValueError(f"{names}: neither in DVC's cache nor in its remote; put it there again and `dvc add` it")
    if lost := [node.name for node in nodes if nowhere.intersection(node.outs)]:
        logger.info("outputs that are neither here nor in the DVC remote are made anew: of %s", ", ".join(lost))
        lock = yaml.safe_load((submission.tree / LOCK).read_text(encoding="utf-8"))
        for stage in lost:
            lock["stages"].pop(stage, None)
        (submission.tree / LOCK).write_text(yaml.safe_dump(lock, sort_keys=False), encoding="utf-8")


def bring_home(submission: Submission, log: str) -> list[str]:
    """Write dvc.lock and the reports out of a job's log; return their names.

    Raises:
        ValueError: they are not in it, or torn, or stages ran here since the job was sent.
    """
    archive = archive_in(log.splitlines())
    if archive is None:
        raise ValueError("the job's log holds no results; submit again")
    contents = contents_of(archive, Path())
    if _lock_sha256() not in (submission.lock, hashlib.sha256(contents[LOCK]).hexdigest()):
        raise ValueError(
            f"{LOCK} has changed here since {submission.job} was sent, and its results would go over it: put it aside "
            f"(`git stash`, or a commit and `git checkout` of the one that was sent), then `stackgan attach "
            f"{submission.job}`"
        )
    write_results(contents, Path())
    return sorted(contents)


def _lock_sha256() -> str:
    path = Path(LOCK)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def shown(text: str) -> str:
    """Return a piece of a log without the line of results, which is for machines."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(MARK))


def run_dvc(*arguments: str) -> None:
    """Run DVC here; what it says goes to stderr.

    Raises:
        ValueError: it failed; it said why.
    """
    done = subprocess.run([*DVC, *arguments], stdout=sys.stderr, check=False)
    if done.returncode:
        raise ValueError(f"`dvc {' '.join(arguments)}` ended with status {done.returncode}; it said why above")


def exit_status(info: JobInfo) -> int:
    """Return the status that `stackgan` ends with for a job that is over."""
    return 0 if info.state == "succeeded" else (info.exit_status or 1)


def _require_stages(targets: Sequence[str]) -> None:
    if not Path("dvc.yaml").is_file():
        raise ValueError("dvc.yaml is missing: run from the repository's root")
    known = stages_of(Path())
    if unknown := [name for name in targets if name not in known]:
        raise ValueError(f"dvc.yaml has no stage {', '.join(unknown)}; it has {', '.join(known)}")


def _require_remote() -> None:
    """Check that there is a default DVC remote, in the one configuration that is sent, and that it means one place.

    It is read from the file, since `dvc config` tells a relative path as one of this machine's.
    """
    config = configparser.ConfigParser(interpolation=None)
    config.read(".dvc/config", encoding="utf-8")
    name = config.get("core", "remote", fallback="")
    url = config.get(f"'remote \"{name}\"'", "url", fallback="")
    if not url:
        raise ValueError(
            "there is no default DVC remote in .dvc/config to carry data to the cluster and back (.dvc/config.local is "
            "not sent, for the secrets it may hold): `dvc remote add -d store s3://bucket/dvc`, or a folder that the "
            "cluster sees too"
        )
    if not ("://" in url or url.startswith("/")):
        raise ValueError(f"the DVC remote {name} is {url}, which means another place on a cluster: give its whole path")


def _files_of_tree(targets: Sequence[str]) -> list[str]:
    """List what git knows or would add, and what stages read that neither git nor DVC carries.

    Raises:
        ValueError: it is more than MAX_TREE_BYTES, or a link leads out of it.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        raise ValueError("this is no git repository: `git init && git add --all` first, for git says what is sent")
    of_git = {name for name in listed.stdout.split("\0") if name and os.path.isfile(name)}
    root = Path().resolve()
    if away := [name for name in sorted(of_git) if root not in Path(name).resolve().parents]:
        raise ValueError(f"{away[0]} is a link out of the repository: put the file in its place, or into .gitignore")
    files = sorted(of_git.union(_inputs_of_nobody(targets)))
    sizes = {name: os.path.getsize(name) for name in files}
    if sum(sizes.values()) > MAX_TREE_BYTES:
        largest = ", ".join(
            f"{name} ({sizes[name] / 1e6:.0f} MB)" for name in sorted(sizes, key=lambda n: -sizes[n])[:3]
        )
        raise ValueError(
            f"the tree is too large to send: {sum(sizes.values()) / 1e6:.0f} MB, {MAX_TREE_BYTES / 1e6:.0f} may be; "
            f"the largest are {largest}: `dvc add` data, and list the rest in .gitignore"
        )
    return files


def _inputs_of_nobody(targets: Sequence[str]) -> list[str]:
    """List files that stages read from folders that no stage writes and no .dvc file stands for."""
    nodes = [read_stage_node(stage) for stage in with_upstream(targets or stages_of(Path()))]
    outs = {Path(out) for node in nodes for out in node.outs}
    return [
        file.as_posix()
        for dep in {Path(dep) for node in nodes for dep in node.deps}
        if not any(folder in outs or Path(f"{folder}.dvc").is_file() for folder in (dep, *dep.parents))
        for file in dep.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    ]
