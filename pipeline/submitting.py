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

from pipeline.data.files import replaced_folder, write_json
from pipeline.handover import MARK, archive_in, stages_of, unpack
from pipeline.jobs import JobInfo, JobServer
from pipeline.tracking import git_tags

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
    files = _files_of_tree()
    digest = hashlib.sha256("\0".join(targets).encode())
    for name in files:
        digest.update(f"\0{name}\0{os.stat(name).st_mode & 0o100}\0".encode() + Path(name).read_bytes())
    tags = git_tags()
    submission = Submission(
        address=address,
        job=f"stackgan-{digest.hexdigest()[:16]}",
        targets=tuple(targets),
        env={"STACKGAN_GIT": json.dumps(tags)},
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
        raise ValueError(
            f"{job or 'no job'} was submitted from here ({path} is missing); `stackgan submit` first"
        ) from None
    return Submission(address=about["address"], job=about["job"], targets=tuple(about["targets"]), env=about["env"])


def is_reproduced(targets: Sequence[str]) -> bool:
    """Return whether DVC has nothing to run; outputs that lie in the remote alone count as there."""
    done = subprocess.run(
        [*DVC, "repro", "--dry", "--allow-missing", *targets], capture_output=True, text=True, check=False
    )
    return done.returncode == 0 and "Running stage" not in done.stdout


def push_inputs() -> None:
    """Bring the data that git knows by .dvc files to the remote, from where the cluster takes it.

    Raises:
        ValueError: DVC refuses.
    """
    listed = subprocess.run(["git", "ls-files", "--", "*.dvc"], capture_output=True, text=True, check=True)
    if inputs := listed.stdout.split():
        run_dvc("push", *inputs)


def bring_home(log: str) -> list[str]:
    """Write dvc.lock and the reports out of a job's log; return their names.

    Raises:
        ValueError: they are not in it, or torn.
    """
    archive = archive_in(log.splitlines())
    if archive is None:
        raise ValueError("the job's log holds no results; submit again")
    return unpack(archive, Path())


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


def _files_of_tree() -> list[str]:
    """List what git knows or would add: neither ignored files nor .git itself.

    Raises:
        ValueError: it is more than MAX_TREE_BYTES.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        raise ValueError("this is no git repository: `git init && git add --all` first, for git says what is sent")
    files = sorted({name for name in listed.stdout.split("\0") if name and os.path.isfile(name)})
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
