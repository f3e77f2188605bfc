"""What was tracked, read back: evaluations with the trainings they came from, along the lineage that tracking wrote."""

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.tracking import experiment_name, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

RUNS_AT_ONCE = 100


@dataclass(frozen=True)
class TrackedEvaluation:
    """A finished run of evaluate_inception."""

    client: "MlflowClient"
    run: "Run"

    @property
    def run_id(self) -> str:
        """Return MLflow's id of the run."""
        return self.run.info.run_id

    @cached_property
    def settings(self) -> dict[str, str]:
        """Return the params of itself, its samples and both trainings, and the trainings' commit as `code`.

        Some are missing where the lineage is not known any more.
        """
        trainings = [self._upstream(self._samples, stage) for stage in ("train_stage1", "train_stage2")]
        settings: dict[str, str] = {}
        for run in (self.run, self._samples, *trainings):
            settings |= run.data.params if run else {}
        commits = {run.data.tags.get("mlflow.source.git.commit", "unknown")[:8] for run in trainings if run}
        return settings | {"code": ", ".join(sorted(commits))}

    def report(self) -> dict[str, Any]:
        """Return its reports/evaluate_inception.json.

        Raises:
            ValueError: MLflow has it no more.
        """
        return json.loads(self._bytes(self.run_id, "reports/evaluate_inception.json"))

    def gallery(self, method: str) -> tuple[list[str], list[bytes]]:
        """Return the captions of the gallery of its samples, and PNG files of a method's pictures for them.

        Raises:
            ValueError: MLflow has none of it.
        """
        assert self._samples is not None
        run_id = self._samples.info.run_id
        captions = json.loads(self._bytes(run_id, "gallery/captions.json"))["captions"]
        pictures = [self._bytes(run_id, f"gallery/{method}_{number}.png") for number in range(len(captions))]
        return [row["caption"] for row in captions], pictures

    @cached_property
    def _samples(self) -> "Run | None":
        return self._upstream(self.run, "generate_samples")

    def _upstream(self, run: "Run | None", stage: str) -> "Run | None":
        from mlflow.exceptions import MlflowException

        run_id = run and run.data.tags.get(f"upstream.{stage}")
        try:
            return self.client.get_run(run_id) if run_id else None
        except MlflowException:  # it was deleted for good
            return None

    def _bytes(self, run_id: str, path: str) -> bytes:
        from mlflow.exceptions import MlflowException

        try:
            with tempfile.TemporaryDirectory() as folder:
                return Path(self.client.download_artifacts(run_id, path, folder)).read_bytes()
        except (OSError, MlflowException) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"MLflow run {run_id} holds no {path} ({reason}); run the system anew") from None


def evaluations(dataset: str) -> Iterator[TrackedEvaluation]:
    """Yield the finished evaluations on a data set, the newest first."""
    from mlflow.tracking import MlflowClient

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one for each of many small files
    client = MlflowClient(tracking_uri())
    experiment = client.get_experiment_by_name(experiment_name(dataset))
    token: str | None = None
    while experiment is not None:
        page = client.search_runs(
            [experiment.experiment_id],
            "tags.stage = 'evaluate_inception' and attributes.status = 'FINISHED'",
            max_results=RUNS_AT_ONCE,
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        yield from (TrackedEvaluation(client, run) for run in page)
        token = page.token
        if not token:
            return
