"""The terminal of a `segrec-train` command: progress bars, messages, errors as one sentence, exit codes."""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text
from segrec.visible import visible, visible_lines

from server.core.errors import SegrecError
from training.errors import ConfigError, ContractError, LogError, TrainingError
from training.fit.processes import Processes
from training.runs import Run

_PLAIN_WIDTH = 140
"""Width of tables, in characters, when the output is no terminal."""

BAD_INPUT, FAILED, CONTRACT_BROKEN, INTERRUPTED = 2, 1, 5, 130
STANDS_BY = 6
"""The exit code of `run` and `publish` when all is done and the release stands by."""


LINE_SECONDS = 30.0
"""Time between two lines on the progress of a stage whose output is no terminal."""


class TextConsole(Console):
    """A console to which every text is data: markup, emoji codes and control characters are printed as they stand."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """See `Console.render_str`, through which rich turns all texts, those of tables too, into what it prints."""
        return super().render_str(visible_lines(text), **options)


class ProgressLines:
    """Where bars cannot be drawn, as in a file: a line on what goes on every `LINE_SECONDS`, from a thread."""

    def __init__(self, say: Callable[[str], None], stage: str) -> None:
        """The lines begin now."""
        self._say, self._stage, self.what = say, stage, "working"
        self._started = time.monotonic()
        self._ended = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def end(self) -> None:
        """No line follows."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(LINE_SECONDS):
            self._say(f"{self._stage}: {self.what}, after {time.monotonic() - self._started:.0f} s")


class TrainConsole:
    """Prints progress bars or lines while a stage runs, one line when the stage ends, and errors on stderr.

    `run` is the run that the command works on; `resume` is the command that continues it after Ctrl-C.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._output = TextConsole(quiet=not processes.is_first)
        if not self._output.is_terminal:
            self._output = TextConsole(width=_PLAIN_WIDTH, quiet=not processes.is_first)
        self._errors = TextConsole(stderr=True)
        self.run: Run | None = None
        self.resume = ""
        self._stage = ""
        self._bars: Progress | None = None
        self._task: TaskID | None = None
        self._lines: ProgressLines | None = None

    def print(self, *parts: RenderableType, sep: str = " ", soft_wrap: bool = False) -> None:
        self._output.print(*parts, sep=sep, soft_wrap=soft_wrap)

    def start_stage(self, stage: str) -> "TrainConsole":
        """End the stage before and start this one; returns the stage's `Progress`."""
        self.end_stage()
        self._stage = stage
        if not self._output.is_terminal:
            self._output.print(f"{stage} …")
            self._lines = ProgressLines(lambda line: self._output.print(line, highlight=False), stage)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._bars = Progress(*columns, console=self._output, transient=True, disable=not self._output.is_terminal)
        self._task = self._bars.add_task(stage, total=None)
        self._bars.start()
        return self

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._lines is not None:
            self._lines.what = visible(f"{what} {done:,} of {total:,}" if total else what)
        if self._bars is not None and self._task is not None:
            self._bars.update(
                self._task, description=visible(f"{self._stage}: {what}"), completed=done, total=total or None
            )

    def end_stage(self) -> None:
        """Print the summary line of the stage that runs, if any."""
        self._remove_bars()
        if self.run is not None and self._stage and self._processes.is_first:
            from training.cli.summary import stage_line

            self._output.print(stage_line(self._stage, self.run.record()["stages"][self._stage]), highlight=False)
        self._stage = ""

    def _remove_bars(self) -> None:
        if self._lines is not None:
            self._lines.end()
        self._lines = None
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._task = None

    def fail(self, message: str, code: int) -> typer.Exit:
        """Print the message on stderr; returns the exit to raise."""
        self._remove_bars()
        if self._processes.count > 1:
            message = f"Process {self._processes.rank} of {self._processes.count}: {message}"
        self._errors.print(visible(message), style="red", highlight=False, soft_wrap=True)
        return typer.Exit(code)


@contextmanager
def command_console(processes: Processes | None = None) -> Iterator[TrainConsole]:
    """The console of one command. Every error becomes one sentence and an exit code, never a traceback.

    `processes` is given by commands that can run on several processes.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    console = TrainConsole(processes or Processes())
    try:
        if processes is None and Processes.from_environment().count > 1:
            raise ConfigError("Only `segrec-train train` runs on several processes; run this command without torchrun.")
        yield console
        console.end_stage()
    except (ConfigError, LogError) as error:
        raise console.fail(str(error), BAD_INPUT) from None
    except ContractError as error:
        raise console.fail(str(error), CONTRACT_BROKEN) from None
    except (TrainingError, SegrecError) as error:
        raise console.fail(str(error), FAILED) from None
    except (KeyboardInterrupt, SystemExit) as stop:
        interrupted = isinstance(stop.__context__, KeyboardInterrupt)
        if isinstance(stop, SystemExit) and stop.code is not None and not interrupted:
            raise  # Lightning turns Ctrl-C into SystemExit, SIGTERM into one without a code; any other is intended
        hint = f" Continue with `{console.resume}`." if console.resume else ""
        raise console.fail(f"Stopped.{hint}", INTERRUPTED) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        where = _write_traceback(console.run)
        raise console.fail(f"Unexpected error ({type(error).__name__}: {error}).{where}", FAILED) from None


def _write_traceback(run: Run | None) -> str:
    """Write the traceback to `error.log` of the run, if there is a run; returns a sentence that names the file."""
    if run is None:
        return ""
    path = run.path / "error.log"
    path.write_text(traceback.format_exc(), encoding="utf-8")
    return f" Details are in {path}."
