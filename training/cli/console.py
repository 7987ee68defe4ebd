"""What all commands of `segrec-train` share: options, exit codes, and what the person at the terminal is told."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from server.core.errors import SegrecError
from training.errors import ConfigError, LogError, TrainingError
from training.fit.processes import Processes
from training.runs import Run

_PLAIN_WIDTH = 140
"""Columns of tables where there is no terminal to ask."""

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


class TrainConsole:
    """What the person at the terminal is told: bars while a stage works, a line when it is done."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self.console = Console(quiet=not processes.is_first)
        if not self.console.is_terminal:
            self.console = Console(width=_PLAIN_WIDTH, quiet=not processes.is_first)
        self.errors = Console(stderr=True)
        self.run: Run | None = None
        self.resume = ""
        self._stage = ""
        self._bars: Progress | None = None
        self._task: TaskID | None = None

    def progress_of(self, stage: str) -> "TrainConsole":
        """Begin a stage; the result is its `Progress`."""
        self.finish()
        self._stage = stage
        if not self.console.is_terminal:
            self.console.print(f"{stage} …")
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._bars = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self._task = self._bars.add_task(stage, total=None)
        self._bars.start()
        return self

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show how far the stage is."""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, description=f"{self._stage}: {what}", completed=done, total=total or None)

    def finish(self) -> None:
        """End the stage at work, if any, with a line on it."""
        self.stop()
        if self.run is not None and self._stage and self._processes.is_first:
            from training.cli.summary import stage_line

            self.console.print(stage_line(self._stage, self.run.record()["stages"][self._stage]), highlight=False)
        self._stage = ""

    def stop(self) -> None:
        """Take the bars away."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._task = None

    def fail(self, message: str, code: int) -> typer.Exit:
        """One sentence on stderr, and the exit that says so."""
        self.stop()
        if self._processes.count > 1:
            message = f"Process {self._processes.rank} of {self._processes.count}: {message}"
        self.errors.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
        return typer.Exit(code)


@contextmanager
def telling(processes: Processes | None = None) -> Iterator[TrainConsole]:
    """Run a command; whatever goes wrong becomes a sentence and an exit code, never a traceback.

    `processes` names the processes of a command that can be run by several.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    told = TrainConsole(processes or Processes())
    try:
        if processes is None and Processes.from_environment().count > 1:
            raise ConfigError("Of segrec-train only `train` runs on several processes; run this without torchrun.")
        yield told
        told.finish()
    except (ConfigError, LogError) as error:
        raise told.fail(str(error), BAD_INPUT) from None
    except (TrainingError, SegrecError) as error:
        raise told.fail(str(error), FAILED) from None
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise  # Lightning turns Ctrl-C into an exit; any other one is meant
        hint = f" Go on with `{told.resume}`." if told.resume else ""
        raise told.fail(f"Stopped.{hint}", INTERRUPTED) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        where = _keep_traceback(told.run)
        raise told.fail(f"Something unforeseen went wrong ({type(error).__name__}: {error}).{where}", FAILED) from None


def _keep_traceback(opened: Run | None) -> str:
    """Write the traceback into the run, where there is one; says where."""
    if opened is None:
        return ""
    path = opened.path / "error.log"
    path.write_text(traceback.format_exc(), encoding="utf-8")
    return f" Details are in {path}."
