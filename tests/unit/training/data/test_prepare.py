"""The `prepare` stage as a whole, and what it learns from a log."""

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from server.core.history import text_hash
from server.core.preprocessing import Preprocessing
from server.core.repository.layout import EVENTS_MARK, WITH_CLOCK, WITHOUT_CLOCK
from tests.support.logs import planted_log, write_planted
from training.config import Clean, Columns, Config, Text, TrainSettings, VisitSettings
from training.data.prepare import PrepareResult, learn_normaliser, prepare, repeat_share
from training.errors import ConfigError, LogError
from training.runs import Run

SCHEMA = {
    "user_id": pl.String,
    "item_id": pl.String,
    "action": pl.String,
    "value": pl.Float64,
    "timestamp": pl.Int64,
}
CATALOGUE = {
    "item_id": pl.String,
    "title": pl.String,
    "category": pl.List(pl.String),
    "event_count": pl.UInt32,
    "weight": pl.Float64,
}


def prepared(tmp_path: Path, events: Path, config: Config | None = None) -> PrepareResult:
    return prepare(Run.create(tmp_path / "runs"), events, None, None, config or Config())


def test_everything_a_later_stage_reads_is_there(tmp_path: Path) -> None:
    events, items, users = write_planted(tmp_path, users=12, items=8, segments=2, events_per_user=10)
    told: list[tuple[str, int, int]] = []
    run = Run.create(tmp_path / "runs", "mine")
    result = prepare(run, events, items, users, Config(), lambda *part: told.append(part))

    directory = run.require("prepare")
    cleaned = pl.read_parquet(directory / "events.parquet")
    assert dict(cleaned.schema) == SCHEMA
    assert pl.read_parquet_metadata(directory / "events.parquet")[EVENTS_MARK] == WITH_CLOCK
    assert cleaned.equals(planted_log(12, 8, 2, 10)[0].sort("user_id", "timestamp", maintain_order=True))

    catalogue = pl.read_parquet(directory / "items.parquet")
    assert dict(catalogue.schema) == CATALOGUE
    assert catalogue.equals(catalogue.sort("event_count", "item_id", descending=[True, False]))
    assert catalogue["event_count"].sum() == len(cleaned) == 120
    kinds = dict(cleaned["action"].value_counts().rows())
    assert catalogue["weight"].sum() == pytest.approx(kinds["purchase"] + 0.6 * kinds["cart"] + 0.3 * kinds["view"])
    assert catalogue.filter(pl.col("item_id") == "i00003").select("title", "category").row(0) == ("Item 3", ["group 1"])

    assert pl.read_parquet(directory / "users.parquet").columns == ["user_id", "segment"]
    preprocessing = Preprocessing.model_validate_json((directory / "preprocessing.json").read_text("utf-8"))
    assert preprocessing == result.preprocessing
    assert [action.name for action in preprocessing.actions] == ["view", "purchase", "cart"]
    assert (preprocessing.has_clock, preprocessing.max_length) == (True, 16)
    account = json.loads((directory / "account.json").read_text("utf-8"))
    assert account["rows_in"] == account["rows_out"] == 120
    assert told[-1][1:] == (4, 4)

    record = run.record()
    assert record["data"]["events"]["sha256"]
    assert (
        record["stages"]["prepare"]["figures"] | {"events": 120, "users": 12, "items": 8}
        == (record["stages"]["prepare"]["figures"])
    )
    assert run.config() == Config()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "gb18030"])
def test_the_chinese_log_works_as_it_is(tmp_path: Path, encoding: str) -> None:
    text = (
        "用户ID,商品ID,行为类型,行为值\n乙,书,搜索,1\n甲,手机,浏览,\n甲,手机,购买,1999.5\n乙,书,购买,20\n甲,书,浏览,\n"
    )
    path = tmp_path / "log.csv"
    path.write_bytes(text.encode(encoding))
    result = prepared(tmp_path, path)
    events = pl.read_parquet(result.directory / "events.parquet")
    assert events.select("user_id", "item_id", "action", "timestamp").rows() == [
        ("乙", "书", "搜索", 0),
        ("乙", "书", "购买", 3),
        ("甲", "手机", "浏览", 1),
        ("甲", "手机", "购买", 2),
        ("甲", "书", "浏览", 4),
    ]
    weights = {action.name: action.weight for action in result.preprocessing.actions}
    assert weights["购买"] > weights["浏览"] > weights["搜索"] > 0
    assert not result.preprocessing.has_clock
    assert "no clock" in result.account.notes[0]
    assert pl.read_parquet(result.directory / "items.parquet")["title"].to_list() == [None, None]
    assert not (result.directory / "utf8").exists()


@pytest.mark.parametrize("ordered", [False, True])
def test_ties_of_an_order_only_log(tmp_path: Path, ordered: bool) -> None:
    """They are in canonical order, or in the order of the rows where that order counts."""
    tied = sorted("2356", key=text_hash)[::-1]
    path = tmp_path / "log.csv"
    path.write_text("user,item,time\nb,1,0\na,1,2\n" + "".join(f"a,{item},1\n" for item in tied) + "a,4,0\n")
    result = prepared(tmp_path, path, Config(visits=VisitSettings(ordered=ordered)))
    events = pl.read_parquet(result.directory / "events.parquet")
    assert events["item_id"].to_list() == ["4", *(tied if ordered else tied[::-1]), "1", "1"]
    assert not result.preprocessing.has_clock
    assert [action.name for action in result.preprocessing.actions] == ["event"]


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("user,item\n,x\n,y\n", "missing user_id"),
        ("user,item\na,\nb,\n", "missing item_id"),
        ("user,item,action\na,x,\nb,y,\n", "missing action"),
        ("user,item,time\na,x,\nb,y,\n", "missing timestamp"),
        ("user,item,time\na,x,1960-01-01\nb,y,1960-01-01\n", "impossible timestamp"),
    ],
)
def test_a_log_of_which_nothing_is_left_names_the_step(tmp_path: Path, text: str, step: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(LogError, match=f"left none of 2 events; the step `{step}` dropped 2"):
        prepared(tmp_path, path)


def test_actions_are_named_and_weighed_as_configured(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user,item,action\na,1,4\na,2,1\na,2,buy\na,3,shrug\n")
    actions = {"4": {"name": "buy", "weight": 2}, "buy": 2, "1": -0.5, "5": 1}
    result = prepared(tmp_path, path, Config.model_validate({"actions": actions}))
    assert {action.name: action.weight for action in result.preprocessing.actions} == {"buy": 2, "1": -0.5, "shrug": 1}
    notes = " ".join(result.account.notes)
    assert "`shrug` is not a common one" in notes
    assert "`5` does not occur" in notes
    clash = {"4": {"name": "buy", "weight": 2}}
    with pytest.raises(ConfigError, match="`buy` gets two weights"):
        prepared(tmp_path, path, Config.model_validate({"actions": clash}))


def test_a_fault_leaves_the_stage_failed(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user,thing\na,1\n")
    run = Run.create(tmp_path / "runs")
    with pytest.raises(LogError, match="item_id"):
        prepare(run, path, None, None, Config())
    assert run.record()["stages"]["prepare"]["state"] == "failed"


def sorted_values(*numbers: float | None) -> pl.DataFrame:
    """One user's events with these values and two more, held back, far from them."""
    return pl.DataFrame({"user_id": ["u"] * (len(numbers) + 2), "value": [*numbers, 1e6, -1e6]})


@pytest.mark.parametrize(
    ("method", "center", "scale"),
    [
        ("none", 0.0, 1.0),
        ("z_score", 3.0, math.sqrt(2)),
        ("min_max", 1.0, 4.0),
        ("robust", 3.0, 2.0),
        ("log", math.log(720) / 5, None),
    ],
)
def test_values_are_scaled_by_the_training_part(method: str, center: float, scale: float | None) -> None:
    normaliser = learn_normaliser(sorted_values(1.0, 2.0, None, 3.0, 4.0, 5.0), method)
    assert normaliser.method == method
    assert normaliser.center == pytest.approx(center)
    if scale is not None:
        assert normaliser.scale == pytest.approx(scale)


def test_equal_or_lacking_values_scale_by_one() -> None:
    assert learn_normaliser(sorted_values(2.0, 2.0), "z_score").scale == 1
    assert learn_normaliser(sorted_values(None, None), "z_score").method == "none"


@pytest.mark.parametrize(
    ("items", "share"),
    [("abcd", 0.0), ("abab", 0.5), ("aabb", 0.0), ("aaba", 0.25)],
)
def test_coming_back_is_what_counts_as_repeating(items: str, share: float) -> None:
    events = pl.DataFrame({"user_id": ["u"] * 4, "item_id": list(items), "action": ["view"] * 4})
    events = events.with_columns(column.cast(pl.Enum(column.unique().sort())) for column in events)
    assert repeat_share(events) == share


@pytest.mark.parametrize(("lines", "expected"), [("a,1\na,2\na,1\na,2\n", False), ("a,1\na,2\na,3\n", True)])
def test_seen_items_are_left_out_where_nobody_repeats(tmp_path: Path, lines: str, expected: bool) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user,item\n" + lines)
    assert prepared(tmp_path, path).preprocessing.exclude_seen is expected
    asked = Config(clean=Clean(exclude_seen=not expected), train=TrainSettings(max_length=7))
    preprocessing = prepared(tmp_path, path, asked).preprocessing
    assert preprocessing.exclude_seen is not expected
    assert preprocessing.max_length == 7


def notes_of(tmp_path: Path, items: str | None = None, users: str | None = None) -> list[str]:
    """The notes of a log of users u1 to u3 and items 71053, 71054, with an item and a user table."""
    paths = {}
    log = "user_id,item_id\n" + "".join(f"u{user},{item}\n" for user in (1, 2, 3) for item in (71053, 71054, 71053))
    for name, text in {"events": log, "items": items, "users": users}.items():
        if text is not None:
            paths[name] = tmp_path / f"{name}.csv"
            paths[name].write_text(text)
    run = Run.create(tmp_path / "runs")
    return list(prepare(run, paths["events"], paths.get("items"), paths.get("users"), Config()).account.notes)


def test_ids_of_tables_that_match_no_event_are_said(tmp_path: Path) -> None:
    notes = notes_of(tmp_path, "item_id,title\n71053.0,Mug\n9,Cup\n9,Cup\n", "user_id,age\nu1,3\nx,4\n")
    for note in (
        "1 of 2 items are not in the item table",
        "1 of 2 ids of the item table are in no event of the log",
        "1 ids are in several rows of the item table (`9`): the first value of each column counts, categories are "
        "joined",
        "2 of 3 users are not in the user table",
        "1 of 2 ids of the user table are in no event of the log",
    ):
        assert note in notes


def test_tables_of_which_no_id_matches_show_an_id_of_each_side(tmp_path: Path) -> None:
    notes = notes_of(tmp_path, "item_id,title\n071053,Mug\n", "user_id,age\nU1,3\n")
    assert "1 of 1 ids of the item table are in no event of the log: the table has `071053`, the log `71053`" in notes
    assert "1 of 1 ids of the user table are in no event of the log: the table has `U1`, the log `u1`" in notes


def test_words_for_nothing_are_ids_and_titles_when_told(tmp_path: Path) -> None:
    """The list of `[columns]` holds for the log, the item table, the user table and the vectors."""
    log, items, users = tmp_path / "log.csv", tmp_path / "items.csv", tmp_path / "users.csv"
    rows = [f"{user},{item},{1_700_000_000 + place}" for user in "a-" for place, item in enumerate(("NULL", "x"))]
    log.write_text("\n".join(["user_id,item_id,timestamp", *rows, ""]))
    items.write_text("item_id,title,category\nNULL,NULL,nan\n")
    users.write_text("user_id,plan\n-,None\n")
    pl.DataFrame({"item_id": ["NULL"], "vector": [[1.0, 0.0]]}).write_parquet(tmp_path / "vectors.parquet")
    config = Config(columns=Columns(missing_words=()), text=Text(model="none", vectors=tmp_path / "vectors.parquet"))
    stage = prepare(Run.create(tmp_path / "runs"), log, items, users, config).directory
    catalogue = pl.read_parquet(stage / "items.parquet").sort("item_id")
    assert catalogue.select("item_id", "title", "category").rows() == [("NULL", "NULL", ["nan"]), ("x", None, [])]
    assert pl.read_parquet(stage / "users.parquet").rows() == [("-", "None")]
    assert np.load(stage / "text_vectors.npy").any(1).sum() == 1


def test_events_without_a_clock_are_marked_as_such(tmp_path: Path) -> None:
    notes_of(tmp_path)
    [events] = (tmp_path / "runs").glob("*/prepare/events.parquet")
    assert pl.read_parquet_metadata(events)[EVENTS_MARK] == WITHOUT_CLOCK


def test_a_failure_leaves_no_copy_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "events.csv"
    log.write_text("user_id,item_id,timestamp\n甲,乙,1700000000\n", encoding="utf-16")
    run = Run.create(tmp_path / "runs")
    with pytest.raises(LogError):
        prepare(run, log, None, None, Config())
    assert not (run.path / "prepare" / "utf8").exists()
