"""MLflow: one MLflow run for each run, in the tracking store that MLflow is set to."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from paretune.runs.sinks.base import Receiver, Sink, SinkRun, StepRows

_KEY = "paretune.run"  # the tag by which a run is found again
_METRICS, _PARAMS = 1000, 100  # the most that a tracking server takes at a time
_LENGTH = 500  # of a parameter, in every store


@dataclass(frozen=True, kw_only=True)
class MLflow(Sink):
    """Metrics, and the configuration as parameters, of an MLflow run.

    Args:
        tracking_uri: of the tracking store; None takes MLflow's own setting (MLFLOW_TRACKING_URI).
        experiment: made if there is none of this name.
    """

    PACKAGE: ClassVar[str] = "mlflow"
    INSTALL: ClassVar[str] = 'pip install "paretune[mlflow]"'
    tracking_uri: str | None = None
    experiment: str = "paretune"

    def open(self, run: SinkRun) -> Receiver:
        """Go on with the MLflow run of this key, or begin one."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        client = MlflowClient(tracking_uri=self.tracking_uri)
        experiment = self._experiment(client)
        runs = client.search_runs([experiment], f"tags.`{_KEY}` = '{run.key}'", max_results=1)
        if runs:
            number = runs[0].info.run_id
            client.update_run(number, status="RUNNING")
            return _MLflowRun(client, number)
        number = client.create_run(experiment, tags={_KEY: run.key}, run_name=run.name).info.run_id
        params = [Param(name, str(value)[:_LENGTH]) for name, value in run.settings().items()]
        for start in range(0, len(params), _PARAMS):
            client.log_batch(number, params=params[start : start + _PARAMS])
        return _MLflowRun(client, number)

    def _experiment(self, client: Any) -> str:
        from mlflow.exceptions import MlflowException

        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None:
            try:
                return str(client.create_experiment(self.experiment))
            except MlflowException:  # another worker was quicker
                experiment = client.get_experiment_by_name(self.experiment)
                if experiment is None:
                    raise
        return str(experiment.experiment_id)


class _MLflowRun:
    def __init__(self, client: Any, number: str) -> None:
        self.client, self.number = client, number
        # A process that was killed between sending and remembering it has sent more than it knows.
        self.last = 0
        for name in ("train/loss", "report/clean"):
            history = client.get_metric_history(number, name)
            self.last = max([self.last, *(metric.step for metric in history)])

    def send(self, steps: Sequence[StepRows]) -> None:
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        metrics: list[Any] = []
        for rows in steps:
            if rows.step > self.last:
                new = [Metric(name, value, now, rows.step) for name, value in rows.values().items()]
                if len(metrics) + len(new) > _METRICS:  # the metrics of one step go together
                    self.client.log_batch(self.number, metrics=metrics)
                    metrics = []
                metrics += new
        if metrics:
            self.client.log_batch(self.number, metrics=metrics)

    def close(self, *, done: bool) -> None:
        self.client.set_terminated(self.number, "FINISHED" if done else "KILLED")
