"""MLflow: a run on the server of MLFLOW_TRACKING_URI, or in a file store beside the run.

Only the tracking client is used, which `mlflow-skinny` has. A resumed run goes on in the same run
of MLflow, whose id is kept in RUN/trackers/mlflow.json.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_SOURCE_NAME

from cluster.local_ray import temporary_env
from trainers.tracking.sinks.sink import PROJECT, Point, TrackedRun

STORE = "mlruns"  # the folder of a file store
ALLOW_FILES = {"MLFLOW_ALLOW_FILE_STORE": "true"}  # without it MLflow asks for a database
BATCH = 1000  # metrics or parameters of a request, at most


class MlflowSink:
    """One MLflow run: the recipe's settings as parameters, metrics by step, figures at the end."""

    def __init__(self, run: TrackedRun) -> None:
        self._run, self._uri = run, os.environ.get("MLFLOW_TRACKING_URI", "")
        self._files = "" if self._uri else STORE
        if self._files:
            self._uri = (run.local_home / STORE).as_uri()
        with temporary_env(ALLOW_FILES if self._files else {}):
            self._client = MlflowClient(tracking_uri=self._uri)
        self._id = self._reopen() or self._create()

    def log_points(self, points: Sequence[Point]) -> None:
        """Send scalars, many in a request."""
        metrics = [
            Metric(name, float(value), round(point.time * 1000), point.step)
            for point in points
            for name, value in point.scalars.items()
        ]
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(self._id, metrics=metrics[start : start + BATCH])

    def log_result(self, figures: Mapping[str, float], bundle: str) -> None:
        """Send the figures, and the bundle's address as a tag; the bundle stays where it is."""
        for name, value in figures.items():
            self._client.log_metric(self._id, name, float(value))
        self._client.set_tag(self._id, "bertha.bundle", bundle)

    def flush(self) -> None:
        """Do nothing: all is sent at once."""

    def close(self, succeeded: bool) -> None:
        """Say how the run ended; copy a file store to where the run is kept."""
        self._client.set_terminated(self._id, "FINISHED" if succeeded else "KILLED")
        if self._files and self._run.directory.home:
            self._run.directory.publish_files(self._files)

    def _reopen(self) -> str | None:
        """Return the id of the run that was tracked here before, running again, if it is there."""
        state = self._run.read_state("mlflow")
        if state.get("uri") != self._uri or not isinstance(state.get("run_id"), str):
            return None
        try:
            self._client.update_run(state["run_id"], status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return str(state["run_id"])

    def _create(self) -> str:
        run = self._run
        tags = {"bertha.run": run.directory.address, MLFLOW_SOURCE_NAME: "bertha train"}
        if run.group:
            tags["bertha.search"] = run.group
        created = self._client.create_run(self._find_experiment(), tags=tags, run_name=run.name)
        run_id = str(created.info.run_id)
        params = [Param(key, _format_value(value)) for key, value in run.settings.items()]
        for start in range(0, len(params), 100):  # its limit of parameters is lower
            self._client.log_batch(run_id, params=params[start : start + 100])
        run.write_state("mlflow", {"uri": self._uri, "run_id": run_id})
        return run_id

    def _find_experiment(self) -> str:
        """Return the id of MLFLOW_EXPERIMENT_NAME, or of ours, made where it is missing."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        place = self._run.local_home
        # Trials of a search share a file store, which would make the experiment twice.
        with FileLock(place / f".{STORE}.lock") if self._files else nullcontext():
            found = self._client.get_experiment_by_name(name)
            return str(found.experiment_id if found else self._client.create_experiment(name))


def _format_value(value: Any) -> str:
    return str(value)[:6000]  # MLflow's limit
