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
        """Return the params of both trainings, by section.key; none where the lineage is not known any more."""
        settings: dict[str, str] = {}
        for stage in ("train_stage1", "train_stage2"):
            run = self._samples and self._upstream(self._samples, stage)
            settings |= run.data.params if run else {}
        return settings

    def report(self) -> dict[str, Any]:
        """Return its reports/evaluate_inception.json."""
        return self._json(self.run_id, "reports/evaluate_inception.json")

    def gallery(self, method: str) -> tuple[list[str], list[bytes]]:
        """Return the captions of the gallery of its samples, and PNG files of a method's pictures for them.

        Raises:
            ValueError: the samples were tracked without one.
        """
        from mlflow.exceptions import MlflowException

        samples = self._samples
        assert samples is not None
        try:
            captions = self._json(samples.info.run_id, "gallery/captions.json")["captions"]
            names = [f"gallery/{method}_{number}.png" for number in range(len(captions))]
            return [row["caption"] for row in captions], [self._bytes(samples.info.run_id, name) for name in names]
        except (OSError, MlflowException) as error:
            raise ValueError(
                f"MLflow run {samples.info.run_id} holds no gallery ({error}); run the system anew"
            ) from None

    @cached_property
    def _samples(self) -> "Run | None":
        return self._upstream(self.run, "generate_samples")

    def _upstream(self, run: "Run", stage: str) -> "Run | None":
        run_id = run.data.tags.get(f"upstream.{stage}")
        return self.client.get_run(run_id) if run_id else None

    def _json(self, run_id: str, path: str) -> dict[str, Any]:
        return json.loads(self._bytes(run_id, path))

    def _bytes(self, run_id: str, path: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(run_id, path, folder)).read_bytes()


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
