"""Runs all stages in order, and decides which stages of a run are done already."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from server.core.repository.layout import MODEL_NAME
from training.config import Config
from training.data.prepare import prepare
from training.data.reading.sources import Log, fingerprint_of
from training.errors import ConfigError, RunError
from training.evaluation.evaluate import evaluate
from training.fit.train import train
from training.model.export import export
from training.profiles.llm_names import require_client
from training.publish.publish import Push, publish
from training.runs import UPSTREAM, Progress, Run
from training.segments.segment import segment

STAGES = ("prepare", "train", "evaluate", "export", "segment", "publish")

_NO_STAGE = ("tracking",)
"""Sections of the configuration that change no result."""

_FIRST_STAGE: Mapping[str, str] = {"train": "train", "segment": "segment", "publish": "publish"}
"""The first stage that reads a section of the configuration; `prepare` for all other sections."""


@dataclass(frozen=True, slots=True)
class RunInputs:
    """The log, the tables, the configuration, the repository for the release, and a file of erased users.

    `since` and `contract` are what `prepare` takes.
    """

    events: Log
    items: Path | None
    users: Path | None
    config: Config
    repository: Path
    erasures: Path | None = None
    since: str | None = None
    contract: Path | None = None

    def fingerprints(self) -> dict[str, object]:
        """The fingerprint of each input file, by role, and what was asked of earlier nights."""
        files: dict[str, Log | None] = {"events": self.events, "items": self.items, "users": self.users}
        files |= {"vectors": self.config.text.vectors, "erasures": self.erasures, "contract": self.contract}
        prints: dict[str, object] = {role: fingerprint_of(path) for role, path in files.items() if path}
        return prints | ({"since": self.since} if self.since is not None else {})


def run_all(run: Run, inputs: RunInputs, push: Push, progress_of: Callable[[str], Progress]) -> list[str]:
    """Run the stages that are not done for these inputs; returns the names of the stages that it ran."""
    remaining = remaining_stages(run, inputs)
    require_client(inputs.config.segment.naming)
    resumed = "prepare" not in remaining and _training_was_interrupted(run, inputs)
    if "prepare" not in remaining:
        run.describe(inputs.config, run.record()["data"])
    stages: Mapping[str, Callable[[Progress], object]] = {
        "prepare": lambda progress: prepare(
            run,
            inputs.events,
            inputs.items,
            inputs.users,
            inputs.config,
            progress,
            erasures=inputs.erasures,
            since=inputs.since,
            contract=inputs.contract,
        ),
        "train": lambda progress: train(run, resume=resumed, progress=progress),
        "evaluate": lambda progress: _evaluate_if_possible(run, progress),
        "export": lambda progress: export(run, progress=progress),
        "segment": lambda progress: segment(run, inputs.repository, progress=progress),
        "publish": lambda progress: publish(run, inputs.repository, push, progress),
    }
    for stage in remaining:
        stages[stage](progress_of(stage))
    return remaining


def _evaluate_if_possible(run: Run, progress: Progress) -> None:
    """Evaluate the run; a small log without test targets still gets a release, and the summary notes it."""
    with suppress(RunError):
        evaluate(run, progress=progress)


def remaining_stages(run: Run, inputs: RunInputs) -> list[str]:
    """The stages that are not done, or whose files, settings or earlier stages have changed."""
    remaining = _changed_stages(run, inputs)
    for stage in STAGES:
        if not _is_done(run, stage) or remaining.intersection(UPSTREAM[stage]):
            remaining.add(stage)
    if "publish" not in remaining and not _is_published(run, inputs):
        remaining |= {"segment", "publish"}
    return [stage for stage in STAGES if stage in remaining]


def _is_published(run: Run, inputs: RunInputs) -> bool:
    """Whether the repository of these inputs has the run's release."""
    figures = run.figures("publish")
    is_same_repository = str(inputs.repository.resolve()) == figures["repository"]
    return is_same_repository and (inputs.repository / MODEL_NAME / str(figures["release"])).is_dir()


def _is_done(run: Run, stage: str) -> bool:
    try:
        run.require(stage)
    except RunError:
        return False
    return True


def _training_was_interrupted(run: Run, inputs: RunInputs) -> bool:
    """Whether a training with the same settings began and did not end."""
    entry = run.record()["stages"].get("train", {})
    return entry.get("state") in ("running", "failed") and run.config().train == inputs.config.train


def _changed_stages(run: Run, inputs: RunInputs) -> set[str]:
    """The first stage of each changed setting and file; later stages follow from these."""
    record = run.record()
    if "config" not in record:
        return {"prepare"}
    roles = ("events", "items", "users", "vectors", "erasures", "since", "contract")
    recorded = {role: record["data"][role] for role in roles if role in record["data"]}
    if recorded != inputs.fingerprints():
        return {"prepare"}
    old, new = run.config(), inputs.config
    names = Config.model_fields.keys() - set(_NO_STAGE)
    sections = [name for name in names if getattr(old, name) != getattr(new, name)]
    return {_FIRST_STAGE.get(section, "prepare") for section in sections}


def with_overrides(
    config: Config, *, k: int | Literal["auto"] | None, max_minutes: float | None, seed: int | None
) -> Config:
    """The configuration with the settings of the command line. Raises ConfigError for a value out of range."""
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
        raise ConfigError(f"A command-line setting is out of range: {where}: {what}.") from error
