"""Takes erased users out of all runs, and says what was deleted and what remains."""

from contextlib import suppress
from pathlib import Path

from pydantic import AwareDatetime, ValidationError
from rich.console import Group, RenderableType
from rich.table import Table

from server.core.frozen_model import FrozenModel
from server.core.release import Manifest
from server.core.repository.layout import MODEL_NAME
from training.data.left_out import Erasures
from training.errors import RunError
from training.privacy.tables import cut_runs, erased, rewriting, run_directories
from training.repository import release_numbers
from training.runs import Run


class RewrittenFile(FrozenModel):
    """A file under the directory of all runs and the rows taken out of it; None if it, or a directory, was deleted."""

    path: str
    rows: int | None


class RemainingRelease(FrozenModel):
    """A release that may have learned from the users, and the time from which it must not be used any more, if any."""

    release: int
    created_time: AwareDatetime
    forget_after: AwareDatetime | None


class Receipt(FrozenModel):
    """What `forget` did. It names files and releases, no user."""

    runs_searched: int
    files: tuple[RewrittenFile, ...]
    active_stages: tuple[str, ...]
    """Stages marked as running, as `run/stage`: they may write the users again."""
    releases: tuple[RemainingRelease, ...]

    def describe(self) -> RenderableType:
        """The receipt for people."""
        parts: list[RenderableType] = []
        if self.files:
            table = Table("file", title=f"Deleted from {self.runs_searched:,} runs")
            table.add_column("rows", justify="right")
            for file in self.files:
                table.add_row(file.path, "deleted" if file.rows is None else f"{file.rows:,}")
            parts.append(table)
        else:
            parts.append(f"Nothing to delete: none of {self.runs_searched:,} runs holds one of these users.")
        if self.active_stages:
            parts.append(
                f"Marked as running: {', '.join(self.active_stages)}. A stage that still runs may write the users "
                "again; repeat this command when it has ended."
            )
        parts += [
            "What remains: models, averages and segment figures that were computed with the users, in runs and "
            "releases. They hold no id and no history.",
            *(release_sentence(release) for release in self.releases),
            "Also delete the users from the log that `segrec-train` reads, or give each run the erasures: "
            "`segrec-train run --erasures FILE`.",
        ]
        return Group(*parts)


def release_sentence(release: RemainingRelease) -> str:
    """When a release that may have learned from the users goes."""
    made = f"Release {release.release} of {release.created_time:%Y-%m-%d} may have learned from them"
    if release.forget_after is None:
        return (
            f"{made}; it has no date to be forgotten. `segrec-train prune` deletes it when newer releases have "
            "replaced it."
        )
    return f"{made}; it must be forgotten on {release.forget_after:%Y-%m-%d}."


def forget(runs: Path, repository: Path, erasures: Erasures) -> Receipt:
    """Take the erased users out of every run under `runs`; `repository` has the releases for the receipt.

    Later stages of a run work without the users. Repeating changes nothing. Raises RunError for a missing directory,
    while somebody else deletes, and for a file that cannot be read or written.
    """
    with rewriting(runs):
        directories = run_directories(runs)
        removed = cut_runs(runs, erased(erasures))
    return Receipt(
        runs_searched=len(directories),
        files=tuple(RewrittenFile(path=file.path, rows=file.rows) for file in removed),
        active_stages=tuple(stage for directory in directories for stage in running_stages(directory)),
        releases=tuple(_releases(repository)),
    )


def running_stages(directory: Path) -> list[str]:
    """Stages of a run that began and did not end, as `run/stage`; a killed stage is one of them."""
    try:
        stages = Run(directory).record()["stages"]
    except RunError:
        return []
    return [f"{directory.name}/{name}" for name, entry in stages.items() if entry.get("state") == "running"]


def _releases(repository: Path) -> list[RemainingRelease]:
    releases = []
    for number in release_numbers(repository):
        path = repository / MODEL_NAME / str(number) / "manifest.json"
        with suppress(OSError, ValidationError):
            manifest = Manifest.model_validate_json(path.read_bytes())
            releases.append(
                RemainingRelease(release=number, created_time=manifest.created_time, forget_after=manifest.forget_after)
            )
    return releases
