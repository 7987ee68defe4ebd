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
    """The files to train on, the configuration, and the repository that the release goes into."""

    events: Path
    items: Path | None
    users: Path | None
    config: Config
    repository: Path

    def fingerprints(self) -> dict[str, object]:
        """The fingerprint of each file, by role."""
        files = {"events": self.events, "items": self.items, "users": self.users}
        files["vectors"] = self.config.text.vectors
        return {role: fingerprint(path) for role, path in files.items() if path}


def run_all(run: Run, inputs: RunInputs, push: Push, progress_of: Callable[[str], Progress]) -> list[str]:
    """Do every stage that is not done yet for these inputs; returns the stages that were done now."""
    left = stages_left(run, inputs)
    require_client(inputs.config.segment.naming)
    resumed = "prepare" not in left and _is_cut_off(run, inputs)
    if "prepare" not in left:
        run.describe(inputs.config, run.record()["data"])
    work: Mapping[str, Callable[[Progress], object]] = {
        "prepare": lambda progress: prepare(
            run, inputs.events, inputs.items, inputs.users, inputs.config, progress=progress
        ),
        "train": lambda progress: train(run, resume=resumed, progress=progress),
        "evaluate": lambda progress: _evaluate_where_possible(run, progress),
        "export": lambda progress: export(run, progress=progress),
        "segment": lambda progress: segment(run, inputs.repository, progress=progress),
        "publish": lambda progress: publish(run, inputs.repository, push, progress),
    }
    for stage in left:
        work[stage](progress_of(stage))
    return left


def _evaluate_where_possible(run: Run, progress: Progress) -> None:
    """Evaluate, unless there is nobody to test on: a small log gets a release all the same, and the summary says so."""
    with suppress(RunError):
        evaluate(run, progress=progress)


def stages_left(run: Run, inputs: RunInputs) -> list[str]:
    """The stages that are not done, or that read a file, a setting or a stage that has changed since."""
    left = _changed(run, inputs)
    for stage in STAGES:
        if not _is_done(run, stage) or left.intersection(UPSTREAM[stage]):
            left.add(stage)
    if "publish" not in left and not _is_published(run, inputs):
        left |= {"segment", "publish"}
    return [stage for stage in STAGES if stage in left]


def _is_published(run: Run, inputs: RunInputs) -> bool:
    """Whether the run's release is in the repository of these inputs."""
    figures = run.figures("publish")
    here = str(inputs.repository.resolve()) == figures["repository"]
    return here and (inputs.repository / MODEL_NAME / str(figures["release"])).is_dir()


def _is_done(run: Run, stage: str) -> bool:
    try:
        run.require(stage)
    except RunError:
        return False
    return True


def _is_cut_off(run: Run, inputs: RunInputs) -> bool:
    """Whether training began with the same settings and was interrupted."""
    entry = run.record()["stages"].get("train", {})
    return entry.get("state") in ("running", "failed") and run.config().train == inputs.config.train


def _changed(run: Run, inputs: RunInputs) -> set[str]:
    """The first stages that read a setting or a file that has changed since."""
    record = run.record()
    if "config" not in record:
        return {"prepare"}
    noted = {role: record["data"][role] for role in ("events", "items", "users", "vectors") if role in record["data"]}
    if noted != inputs.fingerprints():
        return {"prepare"}
    old, new = run.config(), inputs.config
    sections = [name for name in Config.model_fields if getattr(old, name) != getattr(new, name)]
    return {_READ_FROM.get(section, "prepare") for section in sections}


def with_overrides(
    config: Config, *, k: int | Literal["auto"] | None, max_minutes: float | None, seed: int | None
) -> Config:
    """The configuration with the settings of the command line in place of its own. Raises ConfigError."""
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
