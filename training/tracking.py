"""A run as MLflow and TensorBoard show it: settings, curves, figures and report. No ids of users are among them.

A tracking server that is away stops no training: `Tracking.problem` then holds a sentence for people.
"""

import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from training.config import TrackingSettings
from training.errors import ConfigError
from training.runs import Run, write_atomically

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from mlflow import MlflowClient

_LINK = "tracking.json"
_SECRET = ("segment.naming.url", "segment.naming.api_key_variable")
"""Settings that may say where other services are; they are not passed on."""
_VALUE_MAX = 500
_MODULES = {"mlflow": "mlflow", "tensorboard": "tensorboard"}


def check_tracking(settings: TrackingSettings) -> None:
    """Raises ConfigError if the package is not installed, or MLflow does not answer: before a long training."""
    if settings.to == "none":
        return
    if find_spec(_MODULES[settings.to]) is None:
        raise ConfigError(
            f"[tracking] needs a package that is not installed; run `pip install 'segrec-platform[tracking]'`, or "
            f'set tracking.to = "none" (missing: {_MODULES[settings.to]}).'
        )
    if settings.to == "mlflow":
        try:
            mlflow_client(settings.uri).search_experiments(max_results=1)
        except Exception as error:  # MLflow's own, and those of its database or HTTP client
            raise ConfigError(f"MLflow does not answer ({_first_line(error)}); see tracking.uri.") from None


def mlflow_client(uri: str | None) -> "MlflowClient":
    """MLflow's client for tracking and registry at one address; None stands for that of the environment."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at import: nothing is reported to its makers
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # of 7: training waits for no server that is away
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


class Tracking:
    """What is written down of one run. `problem` is a sentence if that failed, else empty."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.settings: TrackingSettings = run.config().tracking
        self.problem = ""

    @cached_property
    def client(self) -> "MlflowClient":
        """MLflow's client."""
        return mlflow_client(self.settings.uri)

    @cached_property
    def mlflow_run(self) -> str:
        """The id of the run at MLflow, made at the first use, and the same when the run is continued."""
        link = self.run.path / _LINK
        if link.is_file():
            return str(json.loads(link.read_text(encoding="utf-8"))["mlflow_run"])
        name = self.settings.experiment
        experiment = self.client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(name)
        made = self.client.create_run(experiment_id, run_name=self.run.path.name)
        write_atomically(link, json.dumps({"mlflow_run": made.info.run_id}) + "\n")
        return str(made.info.run_id)

    def logger(self) -> "Logger | None":
        """What Lightning tells the curves of a training; None without `[tracking]`, or if it cannot be reached."""
        if self.settings.to == "tensorboard":
            return _tensorboard(self.run)
        if self.settings.to == "mlflow":
            with self.forgiving():
                return _mlflow_logger(self)
        return None

    def update(self) -> None:
        """Write down the settings, the figures of all stages so far, and the report if there is one."""
        if self.settings.to == "none":
            return
        with self.forgiving():
            figures = dict(_figures(self.run))
            if self.settings.to == "tensorboard":
                _write_tensorboard(self.run, figures)
            else:
                self._log_settings()
                for name, value in figures.items():
                    self.client.log_metric(self.mlflow_run, _mlflow_name(name), value)
                report = self.run.path / "report" / "report.html"
                if report.is_file():
                    self.client.log_artifact(self.mlflow_run, str(report), "report")
                self.client.set_terminated(self.mlflow_run)

    def _log_settings(self) -> None:
        """Parameters cannot be changed at MLflow: a setting that changed since is a tag as well."""
        known = self.client.get_run(self.mlflow_run).data.params
        for name, value in _settings(self.run).items():
            if name not in known:
                self.client.log_param(self.mlflow_run, name, value)
            elif known[name] != value:
                self.client.set_tag(self.mlflow_run, f"changed.{name}", value)

    @contextmanager
    def forgiving(self) -> Iterator[None]:
        """Note a failure of the tracking in `problem`."""
        try:
            yield
        except Exception as error:  # whatever it is, the training matters more
            self.problem = f"The run was not written down at {self.settings.to} ({_first_line(error)})."


def _settings(run: Run) -> dict[str, str]:
    """The settings of a run that may be passed on, by their dotted names."""
    raw = run.config().model_dump(mode="json", exclude={"tracking"})
    return {name: str(value)[:_VALUE_MAX] for name, value in _flat(raw, "") if name not in _SECRET}


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _figures(run: Run) -> Iterator[tuple[str, float]]:
    """The numbers of all stages that are done, such as `train/epochs`."""
    for stage, entry in run.record()["stages"].items():
        for name, value in entry.get("figures", {}).items():
            if isinstance(value, int | float) and math.isfinite(value):
                yield f"{stage}/{name}", float(value)
        for figure in run.quality(stage):
            yield f"{stage}/{figure.name}", figure.value


def _mlflow_name(name: str) -> str:
    """The name with what MLflow allows in names of metrics."""
    return re.sub(r"[^\w. :/-]", "_", name.replace("@", "_at_"))


def _mlflow_logger(tracking: Tracking) -> "Logger":
    from lightning.pytorch.loggers import MLFlowLogger

    class Curves(MLFlowLogger):
        """The curves under names that MLflow takes; a server that goes away stops no training."""

        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            if not tracking.problem:
                with tracking.forgiving():
                    super().log_metrics({_mlflow_name(f"curve/{name}"): it for name, it in metrics.items()}, step)

        def finalize(self, status: str = "success") -> None:
            with tracking.forgiving():
                super().finalize(status)

    client: Callable[..., Logger] = Curves
    return client(
        experiment_name=tracking.settings.experiment, tracking_uri=tracking.settings.uri, run_id=tracking.mlflow_run
    )


def _tensorboard(run: Run) -> "Logger":
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(run.path, name="tensorboard", version="", default_hp_metric=False)


def _write_tensorboard(run: Run, figures: Mapping[str, float]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run.path / "tensorboard")) as writer:
        for name, value in figures.items():
            writer.add_scalar(name, value)
        rows = (f"| {name} | {value} |" for name, value in _settings(run).items())
        writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *rows]))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
