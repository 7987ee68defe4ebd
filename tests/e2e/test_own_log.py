"""docs/OWN_LOG.md does what it says, on a log with the columns that it names."""

import re
import shlex
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from server.core.repository.read import read_release
from server.settings import load_settings
from tests.support.logs import planted_log
from training.cli.main import app

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = (Path(__file__).parents[2] / "docs/OWN_LOG.md").read_text(encoding="utf-8")
TINY = "\n[train]\nembedding_dim = 16\nlayers = 1\nmax_length = 16\nepochs = 1\n[segment]\nmin_segment_size = 5\n"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def write_files(directory: Path) -> None:
    """The three files of the page: users of one segment keep to one department."""
    events, labels = planted_log(users=80, noise=0.05)
    client = pl.col("user_id").str.replace("u", "C")
    time = pl.from_epoch("timestamp", time_unit="ms")
    events.select(
        client.alias("card"),
        pl.col("item_id").alias("plu"),
        pl.col("action").replace_strict({"purchase": "K", "cart": "W", "view": "A"}).alias("done"),
        pl.col("value").alias("paid"),
        time.dt.strftime("%d.%m.%Y").alias("day"),
        time.dt.strftime("%H:%M").alias("clock"),
    ).write_csv(directory / "clicks.csv")
    items = events["item_id"].unique().sort().to_frame("plu")
    group = pl.col("plu").str.slice(1).cast(pl.Int64) % 4
    items.with_columns(
        pl.format("Article {}", "plu").alias("label"),
        pl.format("department {}", group).alias("department"),
        pl.format("shelf {}", group).alias("shelf"),
    ).write_csv(directory / "catalogue.csv")
    labels.select(client.alias("card"), pl.format("country {}", "segment").alias("country")).write_csv(
        directory / "people.csv"
    )


def test_its_commands_lead_from_the_log_to_a_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    [settings] = blocks("toml")
    Path("segrec.toml").write_text(settings + TINY, encoding="utf-8")
    training, serving, _ = blocks("sh")
    said = {}
    for line in training.splitlines():
        name, command, *options = shlex.split(line)
        if command == "publish":  # one epoch is too little to beat rules
            options += ["--force", "a quick test"]
        result = CliRunner().invoke(app, [command, *options], env={"COLUMNS": "200"})
        assert (name, result.exit_code) == ("segrec-train", 0), result.output
        said[command] = result.output
    assert "1,600" in said["prepare"]  # every row of the log is an event
    release = read_release(Path("model_repository/user_encoder/1"))
    assert {action.name for action in release.preprocessing.actions} == {"purchase", "cart", "view"}
    assert release.items["title"][0].startswith("Article ")
    assert pl.read_csv("members.csv")["user_id"].str.starts_with("C").all()
    settings_of_server = load_settings(shlex.split(serving)[1:])
    assert settings_of_server.bootstrap_events is not None
    assert settings_of_server.bootstrap_events.is_file()


def test_its_settings_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    result = CliRunner().invoke(app, ["prepare", "--events", "clicks.csv"])
    assert result.exit_code != 0
    assert "user" in result.output
