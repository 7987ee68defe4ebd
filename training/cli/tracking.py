"""What the commands of `segrec-train` do for `[tracking]`: a failure is one sentence, and ends nothing."""

from pathlib import Path

from training.cli.console import TrainConsole
from training.runs import Run


def track(console: TrainConsole, run: Run, published_in: Path | None = None) -> None:
    """Write down what the run has so far; with a repository, register the release that it was published as."""
    from training.publish.model_registry import register_release
    from training.tracking import Tracking

    tracking = Tracking(run)
    tracking.update()
    problem = tracking.problem
    if published_in is not None and not problem:
        problem = register_release(run, published_in, run.figures("publish")["release"])
    if problem:
        console.print(problem)


def follow(console: TrainConsole, repository: Path) -> None:
    """Let the aliases of registered releases follow the traffic."""
    from training.publish.model_registry import follow_traffic

    if problem := follow_traffic(repository):
        console.print(problem)
