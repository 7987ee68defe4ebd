"""What a run was made with is in its record, without secrets; a log that cannot be read leaves no numbered run."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from training.cli.main import app
from training.fit.train import why_stopped
from training.machine import command_line
from training.runs import Run


def test_a_command_is_kept_without_secrets() -> None:
    words = [
        "/usr/bin/segrec-train",
        "run",
        "--events",
        "postgresql://ann:pw@db/shop?password=pw&query=select",
        "--k",
        "5",
    ]
    expected = "segrec-train run --events postgresql://…@db/shop?password=…&query=select --k 5"
    assert command_line(words) == expected


def test_a_run_knows_its_machine_and_each_stage_its_memory(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    with run.stage("prepare"):
        pass
    record = run.record()
    assert record["machine"]["memory_bytes"] > record["stages"]["prepare"]["peak_memory_bytes"] > 1 << 20
    assert 1 <= record["machine"]["usable_cpu_count"] <= record["machine"]["cpu_count"]
    assert record["command"]


def test_a_log_that_cannot_be_read_leaves_no_numbered_run(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("who,what\nann,tea\n")
    for command in ("prepare", "run"):
        result = CliRunner().invoke(app, [command, "--events", str(log), "--runs", str(tmp_path / "runs")])
        assert result.exit_code == 2, result.output
        assert "user_id" in result.output
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("is_up", "stopped_epoch", "current_epoch", "expected"),
    [(True, 0, 2, "time"), (False, 3, 4, "early_stopping"), (False, 0, 9, "epochs"), (False, 0, 5, "callback")],
)
def test_why_training_stopped(is_up: bool, stopped_epoch: int, current_epoch: int, expected: str) -> None:
    patience = SimpleNamespace(stopped_epoch=stopped_epoch)
    trainer = SimpleNamespace(early_stopping_callback=patience, current_epoch=current_epoch, max_epochs=9)
    assert why_stopped(trainer, SimpleNamespace(is_up=is_up)) == expected  # type: ignore[arg-type]
