"""From a log in memory or on disk to a segmented run, in one call."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.config import Config, checked_settings, load_config
from training.data.prepare import prepare
from training.errors import ConfigError, RunError
from training.evaluation.evaluate import evaluate
from training.facade.tables import table_files
from training.facade.trained_run import TrainedRun
from training.fit.train import train
from training.model.export import export
from training.profiles.llm_names import require_client
from training.runs import Progress, Run, no_progress
from training.segments.segment import segment
from training.tracking import check_tracking

if TYPE_CHECKING:
    from training.facade.tables import Table


def fit(
    events: "Table",
    config: Config | Mapping[str, Any] | str | Path | None = None,
    items: "Table | None" = None,
    users: "Table | None" = None,
    *,
    runs: str | Path = "runs",
    name: str = "run",
    progress: Progress = no_progress,
) -> TrainedRun:
    """Prepare, train, evaluate, export and segment a log, as a new run in the directory `runs`.

    `events`, `items` and `users` are tables or files with the columns that docs/LOGS.md names; `events` may also be
    another source that `--events` names. `config` has the keys of docs/CONFIG.md, or is a TOML file of them. The run's
    name is the next free number and `name`. Evaluation is left out for a log without test targets.

    Raises LogError for an unusable table, ConfigError for a wrong setting, RunError for a `name` that cannot be one.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    settings = _settings(config)
    require_client(settings.segment.naming)
    check_tracking(settings.tracking)
    with table_files() as files:
        log = files.log(events)
        item_table = None if items is None else files.path("items", items)
        user_table = None if users is None else files.path("users", users)
        run = Run.create(Path(runs), name)
        prepare(run, log, item_table, user_table, settings, progress)
    train(run, progress=progress)
    with suppress(RunError):  # a small log has no test targets, and segments all the same
        evaluate(run, progress=progress)
    export(run, progress=progress)
    segment(run, run.path / "repository", progress=progress)  # there is none: ids begin at 1 until it is published
    return TrainedRun(run)


def _settings(config: Config | Mapping[str, Any] | str | Path | None) -> Config:
    if isinstance(config, Config):
        return config
    if config is None or isinstance(config, str | Path):
        return load_config(None if config is None else Path(config))
    if isinstance(config, Mapping):
        return checked_settings(config, Config, "config")
    raise ConfigError(f"config must be a Config, a dict or the path of a TOML file, not {type(config).__name__}.")
