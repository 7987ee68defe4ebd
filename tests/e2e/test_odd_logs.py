"""Logs with texts that programs act upon, and with numbers that sums cannot hold, from `run` to the report."""

from pathlib import Path

import polars as pl
import pytest
from segrec.visible import visible_lines

from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_release
from tests.e2e.test_training_cli import Place, place_in

EVIL = "[/view] <script>alert(1)</script>\x1b[31m\n\ttail"
SHOWN = r"<script>alert(1)</script>\u001b[31m\n\ttail"
SENTINELS = [1.7976931348623157e308, -1.7976931348623157e308, 1e200, 1e150, -1e149, 5e-324]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run of a log with odd actions, titles, categories and values."""
    place = place_in(tmp_path_factory.mktemp("odd"))
    events = pl.read_csv(place.events)
    odd = pl.Series("odd", SENTINELS).gather(pl.int_range(len(events), eager=True) % len(SENTINELS))
    row = pl.int_range(pl.len())
    actions = pl.when(row % 3 == 0).then(pl.lit("[/view]")).when(row % 3 == 1).then(pl.lit("[bold]x"))
    value = pl.when(row % 20 < len(SENTINELS)).then(odd).otherwise("value")
    events.with_columns(actions.otherwise("action").alias("action"), value.alias("value")).write_csv(place.events)
    items = pl.read_parquet(place.items)
    texts = (pl.lit(EVIL + " ") + pl.col("item_id")).alias("title"), pl.lit([f"kind {EVIL}"]).alias("category")
    items.with_columns(*texts).write_parquet(place.items)
    return place


def test_the_whole_way(place: Place) -> None:
    result = place.run("--run", "odd")
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "action `[/view]` is not a common one" in words
    assert "action `[bold]x` is not a common one: its weight is 1; change it in [actions]" in words
    assert "infinite, or beyond 1e+150" in words
    assert visible_lines(result.output) == result.output
    release = read_release(place.repository / MODEL_NAME / "1")
    assert {action.name for action in release.preprocessing.actions} >= {"[/view]", "[bold]x"}
    assert release.items["title"][0].startswith(EVIL)
    report = place.stage("report", "odd", "--repository", place.repository)
    assert report.exit_code == 0, report.output
    page = (place.runs / "odd" / "report" / "report.html").read_text(encoding="utf-8")
    assert visible_lines(page) == page
    assert "<script" not in page
    assert r"alert(1)&lt;/script&gt;\u001b[31m\n\ttail" in page
    assert (
        place.stage(
            "publish", "--run", "odd", "--repository", place.repository, "--force", "rules win on so small a log"
        ).exit_code
        == 0
    )
    out = place.path / "diff.html"
    diff = place.call("diff", 1, 2, "--repository", place.repository, "--runs", place.runs, "--out", out)
    assert diff.exit_code == 0, diff.output
    assert visible_lines(diff.output) == diff.output
    page = out.read_text(encoding="utf-8")
    assert visible_lines(page) == page
    assert "<script" not in page


def test_the_first_broken_row_is_shown_as_text(place: Place, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text('user_id,item_id,value\nu1,i1,"[/view]\x1b[31m\n:smile:"\n')
    result = place.call("prepare", "--events", log, "--runs", tmp_path)
    assert result.exit_code == 2
    assert r"[/view]\u001b[31m\n:smile:" in result.output or r"[/view]\x1b[31m\n:smile:" in result.output
    assert "\x1b" not in result.output
