"""MLflow, only here: one run for each DVC stage that ran, the same one again after a crash.

What a run needs to know of its stage (sections of params.yaml, inputs, outputs) is read from dvc.yaml, so that the
two cannot disagree. `fingerprint` is the hash of exactly these params and inputs: it names the checkpoints' folder, and
by it an unfinished run is found and continued. Outputs are tagged with their hash; an input's hash leads to the run
that wrote it, so a lineage can be walked though no file holds a run id. The machine's load is logged beside it all.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

MAX_METRICS_PER_BATCH = 1000  # MLflow refuses larger ones
SYSTEM_METRICS_SEC = 10  # from one sample of the machine's load to the next


def run_stage(main: Callable[..., None]) -> None:
    """Call a stage's `main` with the paths of the command line; people's mistakes end it in one line, status 1."""
    run_program(lambda: main(*(Path(argument).absolute() for argument in sys.argv[1:])))


def run_program(main: Callable[[], None]) -> None:
    """Call `main` with our logging; people's mistakes end it in one line, status 1, and SIGTERM as Ctrl-C does."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's way to stop a job: its run is to be closed
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)
    except (ValueError, FloatingPointError, OSError) as error:
        sys.exit(f"error: {error}")
    except Exception as error:  # to tell MLflow's own, whose import no success should wait for; others are raised again
        from mlflow.exceptions import MlflowException

        if not isinstance(error, MlflowException):
            raise
        sys.exit(f"error: MLflow at {tracking_uri()}: {' '.join(str(error).split())[:300]}")


def storage_root() -> Path:
    """Return $RUN_STORAGE, or runs/ of the repository (of the one that a queued DVC experiment was copied from).

    Where $RUN_STORAGE is a bucket (see `storage_bucket`), a folder of this machine stands before it.
    """
    if bucket := storage_bucket():
        name = hashlib.sha256(bucket.encode()).hexdigest()[:12]
        return scratch_dir() / name
    if place := os.environ.get("RUN_STORAGE"):
        return Path(place).absolute()
    here = Path.cwd()
    if ".dvc" in here.parts:
        here = Path(*here.parts[: here.parts.index(".dvc")])
    return here / "runs"


def scratch_dir() -> Path:
    """Return this machine's folder for what may be lost with it; it is made, for this user alone.

    Raises:
        ValueError: another user made it first.
    """
    folder = Path(tempfile.gettempdir()) / f"stackgan-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise ValueError(f"{folder} belongs to another user: remove it, or set TMPDIR to a folder of your own")
    return folder


def storage_bucket() -> str | None:
    """Return $RUN_STORAGE where that is no folder but a URL such as s3://bucket/prefix."""
    place = os.environ.get("RUN_STORAGE", "")
    return place.rstrip("/") if "://" in place else None


def tracking_uri() -> str:
    """Return $MLFLOW_TRACKING_URI, or the SQLite file in the storage root.

    Raises:
        ValueError: the storage is a bucket, which cannot hold such a file.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if bucket := storage_bucket():
        raise ValueError(f"RUN_STORAGE is {bucket}, where MLflow cannot write: set MLFLOW_TRACKING_URI to a server")
    return f"sqlite:///{storage_root() / 'mlflow.db'}"


def require_server() -> None:
    """Ask the tracking server one question, with little patience.

    Raises:
        ValueError: it does not answer, or refuses.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    patience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    before = {name: os.environ.get(name) for name in patience}
    os.environ |= patience
    try:
        MlflowClient(tracking_uri()).search_experiments(max_results=1)
    except MlflowException as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"MLflow at {tracking_uri()} does not serve us ({reason}); see MLFLOW_TRACKING_URI") from None
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@dataclass(frozen=True, kw_only=True, slots=True)
class StageNode:
    """What dvc.yaml says of one stage, with ${...} filled in."""

    name: str
    dataset: str
    params: dict[str, Any]  # section -> those of its keys that the stage depends on
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    reports: tuple[str, ...]  # metrics and plots: small files that git shows
    upstream: dict[str, str]  # dep -> the stage that writes it


def read_stage_node(stage: str) -> StageNode:
    """Read dvc.yaml and params.yaml of the working folder.

    Raises:
        ValueError: dvc.yaml is not here, or has no such stage.
    """
    if not Path("dvc.yaml").is_file():
        raise ValueError("dvc.yaml is missing: run from the repository's root")
    document = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    nodes: dict[str, Any] = document["stages"]
    if stage not in nodes:
        raise ValueError(f"dvc.yaml has no stage {stage!r}")
    node = nodes[stage]
    writers = {
        path: name for name, other in nodes.items() for path in _paths(other, ("outs", "metrics", "plots"), params)
    }
    deps = _paths(node, ("deps",), params)
    return StageNode(
        name=stage,
        dataset=str(params["dataset"]["name"]),
        params=_named(node.get("params", []), params),
        deps=deps,
        outs=_paths(node, ("outs",), params),
        reports=_paths(node, ("metrics", "plots"), params),
        upstream={path: writers[path] for path in deps if path in writers},
    )


def _named(names: Sequence[str], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `names`, each a section or a section.key, name of params.yaml."""
    named: dict[str, Any] = {}
    for name in names:
        section, _, key = name.partition(".")
        named.setdefault(section, {}).update({key: params[section][key]} if key else params[section])
    return named


def _paths(node: Mapping[str, Any], keys: Sequence[str], params: Mapping[str, Any]) -> tuple[str, ...]:
    """List the paths under `keys` of a stage of dvc.yaml (strings, or one-key mappings with options)."""
    items = [item for key in keys for item in node.get(key, [])]
    return tuple(_filled(item if isinstance(item, str) else next(iter(item)), params) for item in items)


def _filled(text: str, params: Mapping[str, Any]) -> str:
    """Fill ${section.key} in from params.yaml, as DVC does."""

    def value(match: re.Match[str]) -> str:
        found: Any = params
        for key in match[1].split("."):
            found = found[key]
        return str(found)

    return re.sub(r"\$\{([\w.]+)\}", value, text)


def input_hashes(node: StageNode) -> dict[str, str]:
    """Return the sha256 of each input of a stage, code included.

    Raises:
        ValueError: an input is missing.
    """
    return {dep: tree_sha256(Path(dep)) for dep in node.deps}


def fingerprint(node: StageNode, inputs: Mapping[str, str]) -> str:
    """Return 16 hex digits over a stage's params and the bytes of its inputs (see `input_hashes`)."""
    content = {"params": node.params, "deps": dict(inputs)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def tree_sha256(path: Path) -> str:
    """Return the sha256 of a file, or of a folder's relative paths and files."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        raise ValueError(f"{path} is missing: run `dvc repro`, which makes what it can, or put it there")
    files = sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    listing = "".join(f"{file.relative_to(path).as_posix()} {tree_sha256(file)}\n" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()


class NullRun:
    """A run that records nothing: what every process but rank zero holds."""

    def log_history(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Ignore the rows."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Ignore the file."""


class StageRun:
    """An MLflow run of a DVC stage. Can be sent to another process, which opens its own connection."""

    def __init__(self, node: StageNode, uri: str, run_id: str, storage_dir: Path, provenance: dict[str, object]):
        self.node = node
        self.uri = uri
        self.run_id = run_id
        self._storage_dir = storage_dir
        self._provenance = provenance
        self._last_step: int | None = None

    @property
    def provenance(self) -> dict[str, object]:
        """Return what the run came from, as JSON values: `fingerprint`, `code` and `inputs` (path -> sha256).

        `code` is the git commit, with "+changes" behind it where files differ from it; empty outside of git.
        """
        return self._provenance

    @property
    def client(self) -> "MlflowClient":
        """Return a client of this run's tracking server."""
        from mlflow.tracking import MlflowClient

        return MlflowClient(self.uri)

    @property
    def bucket(self) -> str | None:
        """Return where its checkpoints are kept in place of its folder, where the storage is a bucket."""
        bucket = storage_bucket()
        return bucket and f"{bucket}/{self._storage_dir.name}"

    def node_metrics(self, node: str) -> AbstractContextManager[None]:
        """Log the load of the machine that this is called on as `system/<node>/...`."""
        return _system_metrics(self, node)

    def for_rank(self, rank: int) -> "StageRun | NullRun":
        """Return this run on rank zero, and one that records nothing elsewhere."""
        return self if rank == 0 else NullRun()

    def claim_storage(self) -> Path:
        """Make <storage root>/<stage>-<fingerprint>/ and hold it until this process ends.

        A `dvc repro` that was killed can leave its stage at work behind; a second one then waits for it here, so that
        two never write the same checkpoints.
        """
        self._storage_dir.mkdir(parents=True, exist_ok=True)
        self._lock = (self._storage_dir / "lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            owner = self._lock.read().strip()
            logger.warning(
                "%s with the same inputs is still at work in process %s; waiting for it. "
                "To take over from its last checkpoint: kill %s",
                self.node.name, owner, owner,
            )  # fmt: skip
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        return self._storage_dir

    def __getstate__(self) -> dict[str, Any]:
        """Leave the lock behind: it belongs to one process."""
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def log_history(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Log those rows of a training's whole history that the run does not have yet.

        Args:
            rows: each with a `step` and metrics; in the order of steps. Called again with the same rows, also by
                another process after a crash, it logs nothing twice.
        """
        from mlflow.entities import Metric

        if not rows:
            return
        if self._last_step is None:
            known = next(key for key in rows[0] if key != "step")
            self._last_step = max((m.step for m in self.client.get_metric_history(self.run_id, known)), default=-1)
        now = int(time.time() * 1000)
        new_rows = [row for row in rows if row["step"] > self._last_step]
        metrics = [
            Metric(key, float(value), now, int(row["step"]))
            for row in new_rows
            for key, value in row.items()
            if key != "step"
        ]
        for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + MAX_METRICS_PER_BATCH])
        if new_rows:
            self._last_step = int(new_rows[-1]["step"])

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Keep a file, or a folder's files, under `folder` of the run's artifacts."""
        log = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        log(self.run_id, str(path), folder or None)


@contextmanager
def stage_run(stage: str) -> Generator[StageRun]:
    """Open the MLflow run of a stage, or continue its unfinished one, and close it with the outputs."""
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    node = read_stage_node(stage)
    run = _open_run(node, input_hashes(node))
    try:
        with _system_metrics(run):
            yield run
    except BaseException as error:
        run.client.set_terminated(run.run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    _log_outputs(run)
    run.client.set_terminated(run.run_id, "FINISHED")


@contextmanager
def _system_metrics(run: StageRun, node: str | None = None) -> Generator[None]:
    """Log the load of this machine (CPU, memory, GPU) as `system/...`; a continued run's samples go on in number."""
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)  # it tells of each start and end
    monitor = None
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(
            run.run_id,
            sampling_interval=SYSTEM_METRICS_SEC,
            resume_logging=True,
            node_id=node and re.sub(r"[^\w.-]", "_", node),  # MLflow takes no colon of an IPv6 address
            tracking_uri=run.uri,
        )
        monitor.start()
    except Exception as error:  # of any kind: it reads counters that a container may hide; no stage fails for that
        logger.warning("%s: the machine's load is not logged: %s: %s", run.node.name, type(error).__name__, error)
    try:
        yield
    finally:
        if monitor:
            monitor.finish()


def _open_run(node: StageNode, inputs: Mapping[str, str]) -> StageRun:
    from mlflow.entities import Param
    from mlflow.tracking import MlflowClient

    mark = fingerprint(node, inputs)
    source = _source_tags(node)
    try:
        storage_root().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{storage_root()} cannot be made ({error.strerror}); set RUN_STORAGE to a folder that can be written"
        ) from None
    uri = tracking_uri()
    client = MlflowClient(uri)
    experiment_id = _experiment_id(client, node.dataset)
    if run_id := _run_to_continue(client, experiment_id, node.name, mark, source.get("job")):
        client.update_run(run_id, status="RUNNING")
        logger.info("%s: continuing the MLflow run %s", node.name, run_id)
    else:
        tags = {"stage": node.name, "dataset": node.dataset, "fingerprint": mark, **source}
        run_id = _created_once(client, experiment_id, tags, node.name)
        flat = [(f"{section}.{key}", value) for section, keys in node.params.items() for key, value in keys.items()]
        client.log_batch(run_id, params=[Param(key, str(value)) for key, value in flat])
    for dep, upstream in node.upstream.items():
        if writer := _writer_of(client, experiment_id, dep, inputs[dep]):
            client.set_tag(run_id, f"upstream.{upstream}", writer.info.run_id)
    changes = "+changes" if source.get("git_changed_files", "0") != "0" else ""
    code = source.get("mlflow.source.git.commit", "") + changes
    provenance: dict[str, object] = {"fingerprint": mark, "code": code, "inputs": dict(inputs)}
    return StageRun(node, uri, run_id, storage_root() / f"{node.name}-{mark}", provenance)


def _run_to_continue(client: "MlflowClient", experiment_id: str, stage: str, mark: str, job: str | None) -> str | None:
    """Return the newest run of a stage on these inputs that is unfinished, or of this very job on a cluster.

    A job may lose its machine after a run has finished and before that is noted: the stage is done again, the run not.
    """
    conditions = ["attributes.status != 'FINISHED'", *([f"tags.job = '{job}'"] if job else [])]
    for condition in conditions:
        query = f"tags.fingerprint = '{mark}' and tags.stage = '{stage}' and {condition}"
        runs = client.search_runs([experiment_id], query, max_results=1, order_by=["attributes.start_time DESC"])
        if runs:
            return runs[0].info.run_id
    return None


def _created_once(client: "MlflowClient", experiment_id: str, tags: Mapping[str, str], name: str) -> str:
    """Create a run; where a lost answer made MLflow's client ask twice, the other one is deleted."""
    mark = {"creation": secrets.token_hex(8)}
    run_id = client.create_run(experiment_id, tags={**tags, **mark}, run_name=name).info.run_id
    for twin in client.search_runs([experiment_id], f"tags.creation = '{mark['creation']}'"):
        if twin.info.run_id != run_id:
            client.delete_run(twin.info.run_id)
    return run_id


def experiment_name(dataset: str) -> str:
    """Return MLflow's name of a data set's experiment."""
    return f"stackgan-{dataset}"


def _experiment_id(client: "MlflowClient", dataset: str) -> str:
    """Find or make the data set's experiment; beside the SQLite file its artifacts stay in the storage root."""
    from mlflow.exceptions import MlflowException

    name = experiment_name(dataset)
    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    place = None if "MLFLOW_TRACKING_URI" in os.environ else (storage_root() / "artifacts").as_uri()
    try:
        return client.create_experiment(name, artifact_location=place, tags={"dataset": dataset})
    except MlflowException:  # another stage made it in the meantime
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found.experiment_id


def _source_tags(node: StageNode) -> dict[str, str]:
    """Return where a run came from: the commit, how many files differ from it, DVC's experiment, a cluster's job."""
    tags = {"dvc_experiment": os.environ.get("DVC_EXP_NAME", ""), "job": os.environ.get("STACKGAN_JOB", "")}
    sent = os.environ.get("STACKGAN_GIT")  # a submitted tree comes without its repository
    tags |= json.loads(sent) if sent else git_tags((*node.outs, *node.reports))  # outputs: DVC deletes them first
    return {key: value for key, value in tags.items() if value}


def git_tags(others: Sequence[str] = ()) -> dict[str, str]:
    """Return the commit and how many files, `others` left out, differ from it; nothing outside of git."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode != 0:
        return {}
    status = ["git", "status", "--porcelain", "-uno", "--", ".", *(f":(exclude){path}" for path in others)]
    changed = subprocess.run(status, capture_output=True, text=True, check=False)
    changes = str(len(changed.stdout.splitlines()))
    return {"mlflow.source.git.commit": head.stdout.strip(), "git_changed_files": changes}


def writer_of(client: "MlflowClient", dataset: str, path: str, sha256: str) -> "Run | None":
    """Return the latest finished run of a data set that wrote these bytes to `path`, an output of dvc.yaml."""
    experiment = client.get_experiment_by_name(experiment_name(dataset))
    return _writer_of(client, experiment.experiment_id, path, sha256) if experiment else None


def _writer_of(client: "MlflowClient", experiment_id: str, dep: str, sha256: str) -> "Run | None":
    query = f"tags.`output.{dep}` = '{sha256}' and attributes.status = 'FINISHED'"
    runs = client.search_runs([experiment_id], query, max_results=1, order_by=["attributes.start_time DESC"])
    return runs[0] if runs else None


def _log_outputs(run: StageRun) -> None:
    """Log the reports and their numbers, and name every output with its size and hash in outputs.json."""
    outputs, known = list[dict[str, object]](), run.client.get_run(run.run_id).data.metrics
    for output in (*run.node.outs, *run.node.reports):
        path = Path(output)
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        sha256 = tree_sha256(path)
        num_bytes = sum(file.stat().st_size for file in files)
        outputs.append({"path": output, "bytes": num_bytes, "num_files": len(files), "sha256": sha256})
        run.client.set_tag(run.run_id, f"output.{output}", sha256)
    run.client.log_dict(run.run_id, {"outputs": outputs}, "outputs.json")
    for report in run.node.reports:
        run.log_artifact(Path(report), "reports")
        if report.endswith(".json"):
            for key, value in _numbers(json.loads(Path(report).read_text())).items():
                if known.get(key) != value:  # else it was logged before this machine's predecessor died
                    run.client.log_metric(run.run_id, key, value)


def _numbers(document: object, prefix: str = "") -> dict[str, float]:
    """Flatten the numbers of a report to dotted keys; lists (histograms) are left to the file."""
    if isinstance(document, bool) or document is None:
        return {}
    if isinstance(document, int | float):
        return {prefix: float(document)}
    if not isinstance(document, dict):
        return {}
    numbers: dict[str, float] = {}
    for key, value in document.items():
        numbers |= _numbers(value, f"{prefix}.{key}" if prefix else str(key))
    return numbers
