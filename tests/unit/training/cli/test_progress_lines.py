"""Progress where no bars can be drawn: lines that say what goes on, however long a stage is silent."""

import pytest

from tests.support.waiting import wait_until
from training.cli import console
from training.cli.console import ProgressLines, TrainConsole
from training.fit.processes import Processes


def test_lines_repeat_what_goes_on_until_the_stage_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", 0.01)
    said: list[str] = []
    lines = ProgressLines(said.append, "train")
    lines.what = "epoch 2 of at most 8, steps 500 of 2,000"
    wait_until(lambda: said and said[-1].startswith("train: epoch 2 of at most 8, steps 500 of 2,000, after 0 s"))
    lines.end()


def test_a_stage_in_a_file_has_lines_and_the_next_stage_ends_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", 0.01)
    seen: list[str] = []
    shown = TrainConsole(Processes())
    progress = shown.start_stage("evaluate")
    progress("next visit: popularity", 3, 1200)

    def has_line() -> bool:
        seen.append(capsys.readouterr().out)
        return "evaluate: next visit: popularity 3 of 1,200, after 0 s" in "".join(seen)

    wait_until(has_line)
    lines = shown._lines
    shown.start_stage("export")
    assert lines is not None
    assert lines._ended.is_set()
    shown.end_stage()
    assert shown._lines is None
