"""All stages in their order, and which of them a run still has to do."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from server.core.repository.layout import MODEL_NAME
from training.config import Config
from training.data.prepare import prepare
from training.errors import ConfigError, RunError
from training.evaluation.evaluate import evaluate
from training.fit.train import train
from training.model.export import export
from training.profiles.llm_names import require_client
from training.publish.publish import Push, publish
from training.runs import UPSTREAM, Progress, Run, fingerprint
from training.segments.segment import segment

STAGES = ("prepare", "train", "evaluate", "export", "segment", "publish")

_READ_FROM: Mapping[str, str] = {"train": "train", "segment": "segment", "publish": "publish"}
"""The first stage that reads a section of the configuration; `prepare` where it is not named."""


@dataclass(frozen=True, slots=True)
class RunInputs:
    """What is to be trained on, how, and where the release goes."""

    events: Path
    items: Path | None
    users: Path | None
    config: Config
    repository: Path

    def fingerprints(self) -> dict[str, object]:
        """What the files are, by role."""
        files = {"events": self.events, "items": self.items, "users": self.users}
        files["vectors"] = self.config.text.vectors
        return {role: fingerprint(path) for role, path in files.items() if path}


def run_all(run: Run, order: RunInputs, push: Push, progress_of: Callable[[str], Progress]) -> list[str]:
    """Do every stage that is not done yet for this order; returns those that were done now."""
    left = stages_left(run, order)
    require_client(order.config.segment.naming)
    resumed = "prepare" not in left and _is_cut_off(run, order)
    if "prepare" not in left:
        run.describe(order.config, run.record()["data"])
    work: Mapping[str, Callable[[Progress], object]] = {
        "prepare": lambda progress: prepare(
            run, order.events, order.items, order.users, order.config, progress=progress
        ),
        "train": lambda progress: train(run, resume=resumed, progress=progress),
        "evaluate": lambda progress: _evaluate_where_possible(run, progress),
        "export": lambda progress: export(run, progress=progress),
        "segment": lambda progress: segment(run, order.repository, progress=progress),
        "publish": lambda progress: publish(run, order.repository, push, progress),
    }
    for stage in left:
        work[stage](progress_of(stage))
    return left


def _evaluate_where_possible(run: Run, progress: Progress) -> None:
    """Nobody to test on is no reason to leave a small log without a release; the summary says so."""
    with suppress(RunError):
        evaluate(run, progress=progress)


def stages_left(run: Run, order: RunInputs) -> list[str]:
    """Stages that have not been done, or that read a file, a setting or a stage which is not what it was."""
    left = _changed(run, order)
    for stage in STAGES:
        if not _is_done(run, stage) or left.intersection(UPSTREAM[stage]):
            left.add(stage)
    if "publish" not in left and not _is_published(run, order):
        left |= {"segment", "publish"}
    return [stage for stage in STAGES if stage in left]


def _is_published(run: Run, order: RunInputs) -> bool:
    """Whether the run's release is in the repository that was asked for."""
    figures = run.figures("publish")
    here = str(order.repository.resolve()) == figures["repository"]
    return here and (order.repository / MODEL_NAME / str(figures["release"])).is_dir()


def _is_done(run: Run, stage: str) -> bool:
    try:
        run.require(stage)
    except RunError:
        return False
    return True


def _is_cut_off(run: Run, order: RunInputs) -> bool:
    """Whether training began with the same settings and did not come to its end."""
    entry = run.record()["stages"].get("train", {})
    return entry.get("state") in ("running", "failed") and run.config().train == order.config.train


def _changed(run: Run, order: RunInputs) -> set[str]:
    """Stages that read a setting or a file that is not what it was."""
    record = run.record()
    if "config" not in record:
        return {"prepare"}
    noted = {role: record["data"][role] for role in ("events", "items", "users", "vectors") if role in record["data"]}
    if noted != order.fingerprints():
        return {"prepare"}
    old, new = run.config(), order.config
    sections = [name for name in Config.model_fields if getattr(old, name) != getattr(new, name)]
    return {_READ_FROM.get(section, "prepare") for section in sections}


def with_overrides(
    config: Config, *, k: int | Literal["auto"] | None, max_minutes: float | None, seed: int | None
) -> Config:
    """The configuration with what the command line says instead. Raises ConfigError."""
    raw = config.model_dump()
    if k is not None:
        raw["segment"]["k"] = k
    if max_minutes is not None:
        raw["train"]["max_minutes"] = max_minutes
    if seed is not None:
        raw["train"]["seed"] = raw["segment"]["seed"] = seed
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where, what = ".".join(map(str, first["loc"])), first["msg"]
        raise ConfigError(f"A setting of the command line is out of range: {where}: {what}.") from error
