"""A log beyond a limit of its contract is refused with the line and the figure; one within every limit is prepared."""

from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner, Result

from tests.support.logs import DAY_MS, START_MS, planted_items
from training.cli.main import app
from training.config import Config
from training.data.contract import read_contract
from training.data.prepare import PrepareResult, prepare
from training.errors import ConfigError, ContractError
from training.pipeline import RunInputs, remaining_stages
from training.runs import Run

HOURS = 3_600_000
NOW_MS = START_MS + DAY_MS
WHOLE = """
columns = ["user_id", "item_id", "action", "value", "timestamp"]
actions = ["view", "purchase"]
[rows]
min = 100
max = 100
min_of_last = 0.5
max_of_last = 2.0
[newest_event]
max_age_hours = 24
[missing]
user_id = 0.0
value = 0.1
[value]
min = 1
max = 10
max_share_outside = 0.2
[timestamp]
min = 2023-11-14
max = 2023-11-14T22:14:00Z
max_share_outside = 0.01
[items]
max_share_unknown = 0.2
"""


def log(rows: int = 100) -> pl.DataFrame:
    """Ten without a value and eight values outside 1 to 10; one event two days ahead; a fifth of unknown items."""
    number = pl.int_range(rows)
    return pl.select(
        pl.format("u{}", number % 10).alias("user_id"),
        pl.when(number % 5 == 0)
        .then(pl.lit("new"))
        .otherwise(pl.format("i{}", (number % 8).cast(pl.String).str.zfill(5)))
        .alias("item_id"),
        pl.when(number % 4 == 0).then(pl.lit("purchase")).otherwise(pl.lit("view")).alias("action"),
        pl.when(number % 10 > 0).then(pl.when(number > rows - 10).then(11.0).otherwise(2.5)).alias("value"),
        (START_MS + pl.when(number == 7).then(3 * DAY_MS).otherwise(number - 99)).alias("timestamp"),
    )


def check(
    tmp_path: Path, contract: str, events: pl.DataFrame | None = None, items: bool = True, hours: float = 0
) -> PrepareResult:
    """Prepare a new run `hours` later than a day after the newest event."""
    (tmp_path / "contract.toml").write_text(contract, encoding="utf-8")
    (log() if events is None else events).write_parquet(tmp_path / "log.parquet")
    planted_items(40, 4).write_parquet(tmp_path / "items.parquet")
    return prepare(
        Run.create(tmp_path / "runs"),
        tmp_path / "log.parquet",
        tmp_path / "items.parquet" if items else None,
        None,
        Config(),
        contract=tmp_path / "contract.toml",
        clock=lambda: (NOW_MS + hours * HOURS) / 1000,
    )


def test_a_log_at_every_limit_is_prepared(tmp_path: Path) -> None:
    result = check(tmp_path, WHOLE)
    assert result.account.notes[:3] == (
        "contract: 14 of 16 lines hold",
        "contract: [rows] min_of_last = 0.5 was not checked: there is no earlier run",
        "contract: [rows] max_of_last = 2 was not checked: there is no earlier run",
    )
    second = check(tmp_path, WHOLE)
    assert second.account.notes[0] == "contract: 16 of 16 lines hold"
    seen = Run(second.directory.parent).figures("prepare")["contract"]
    assert seen["[items] max_share_unknown = 0.2"] == (
        "20 of 100 events, 0.2, have one of 1 items that are not in the item table"
    )
    assert seen["[rows] min_of_last = 0.5"] == "the log has 100 rows, 1 of the 100 of 0001-run"


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("min = 100", "min = 101", "[rows] min = 101, but the log has 100 rows"),
        ("max = 100", "max = 99", "[rows] max = 99, but the log has 100 rows"),
        (
            "min_of_last = 0.5",
            "min_of_last = 1.5",
            "[rows] min_of_last = 1.5, but the log has 100 rows, 1 of the 100 of",
        ),
        (
            "max_of_last = 2.0",
            "max_of_last = 0.9",
            "[rows] max_of_last = 0.9, but the log has 100 rows, 1 of the 100 of",
        ),
        ("value = 0.1", "value = 0.09", "[missing] value = 0.09, but 10 of 100 rows, 0.1, have none"),
        (
            "max_age_hours = 24",
            "max_age_hours = 23.9",
            "max_age_hours = 23.9, but the newest event, of 2023-11-14T22:13:20Z, is 24.0 hours old",
        ),
        (
            "max_share_outside = 0.2",
            "",
            "[value] min = 1, max = 10, max_share_outside = 0, but 0 are lower and 9 are higher, 0.1 of 90",
        ),
        ("min = 1\n", "min = 3\n", "81 are lower and 9 are higher, 1 of 90"),
        (
            "max_share_outside = 0.01",
            "",
            "max = 2023-11-14T22:14:00Z, max_share_outside = 0, but 0 are lower and 1 are higher, 0.01 of 100",
        ),
        ("min = 2023-11-14", "min = 2023-11-15", "[timestamp] min = 2023-11-15T00:00:00Z"),
        (
            "unknown = 0.2",
            "unknown = 0.19",
            "but 20 of 100 events, 0.2, have one of 1 items that are not in the item table",
        ),
        ('"view", "purchase"', '"view"', "actions = ['view'], but the log has `purchase` (25 rows)"),
    ],
)
def test_a_broken_line_is_named_with_the_figure(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    check(tmp_path, WHOLE)
    with pytest.raises(ContractError) as broken:
        check(tmp_path, WHOLE.replace(old, new, 1))
    assert sentence in str(broken.value)
    assert str(broken.value).startswith("The log breaks 1 line of the contract: ")


def test_all_broken_lines_are_named(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"breaks 3 lines .*actions = .*\[rows\] min = 9999.*\[missing\] value"):
        check(tmp_path, 'actions = ["view"]\n[rows]\nmin = 9999\n[missing]\nvalue = 0.01')


@pytest.mark.parametrize(
    ("contract", "column", "sentence"),
    [
        ('columns = ["value"]', "value", 'columns has "value", but the log has none'),
        ("[missing]\nvalue = 1.0", "value", "[missing] value = 1, but the log has no such column"),
        ("[value]\nmax = 5", "value", "[value] max = 5, max_share_outside = 0, but the log has no values"),
        ("[timestamp]\nmin = 2020-01-01", "timestamp", "but the log has no times"),
        ("[newest_event]\nmax_age_hours = 1", "timestamp", "but the log has no times in the past"),
    ],
)
def test_a_limit_of_a_column_that_is_missing_is_broken(
    tmp_path: Path, contract: str, column: str, sentence: str
) -> None:
    with pytest.raises(ContractError) as broken:
        check(tmp_path, contract, log().drop(column))
    assert sentence in str(broken.value)


def test_a_log_whose_times_are_all_ahead_is_not_new(tmp_path: Path) -> None:
    ahead = log().with_columns(pl.col("timestamp") + 3 * DAY_MS)
    with pytest.raises(ContractError, match="no times in the past"):
        check(tmp_path, "[newest_event]\nmax_age_hours = 1", ahead)


def test_without_an_item_table_items_are_those_of_the_last_run(tmp_path: Path) -> None:
    limit = "[items]\nmax_share_unknown = 0.0"
    first = check(tmp_path, limit, items=False)
    assert first.account.notes[:2] == (
        "contract: 0 of 1 lines hold",
        "contract: [items] max_share_unknown = 0 was not checked: there is neither an item table nor an earlier run",
    )
    assert check(tmp_path, limit, items=False).account.notes[0] == "contract: 1 of 1 lines hold"
    other = log().with_columns(pl.lit("else").alias("item_id"))
    with pytest.raises(ContractError, match="100 of 100 events, 1, have one of 1 items that are not in 0002-run"):
        check(tmp_path, limit, other, items=False)


def test_rows_are_those_of_the_logs_not_of_the_runs(tmp_path: Path) -> None:
    """A night of `--since` has as many rows as the night before, though its run has twice as many."""
    (tmp_path / "c.toml").write_text("[rows]\nmin_of_last = 0.9\nmax_of_last = 1.1")
    for night, since in enumerate(("start", "last", "last")):
        path = tmp_path / f"{night}.parquet"
        log().with_columns(pl.col("timestamp") + night * HOURS).write_parquet(path)
        result = prepare(
            Run.create(tmp_path / "runs"), path, None, None, Config(), since=since, contract=tmp_path / "c.toml"
        )
    assert result.account.notes[0] == "contract: 2 of 2 lines hold"
    assert result.account.rows_in == 300


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[rows]\nminimum = 1", r"unknown key `rows.minimum` \(did you mean `min`\?\)"),
        ("[missing]\nvalue = 2", "missing.value: Input should be less than or equal to 1"),
        ('columns = ["user"]', "columns.0: Input should be"),
        ("[rows", "is not valid TOML"),
    ],
)
def test_a_contract_that_says_nothing_known_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "contract.toml").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        read_contract(tmp_path / "contract.toml")


def test_the_documented_contract_is_one(tmp_path: Path) -> None:
    guide = Path(__file__).parents[4] / "docs" / "LOGS.md"
    (tmp_path / "contract.toml").write_text(guide.read_text("utf-8").split("```toml")[1].split("```")[0], "utf-8")
    contract = read_contract(tmp_path / "contract.toml")
    assert (contract.rows.min, contract.value.max_share_outside) == (10_000, 0.001)


def command(tmp_path: Path, *words: str) -> Result:
    return CliRunner().invoke(app, [*words, "--runs", str(tmp_path / "runs")])


def test_a_refused_night_ends_with_its_own_exit_code_and_no_stage_takes_it(tmp_path: Path) -> None:
    log().write_parquet(tmp_path / "log.parquet")
    contract = tmp_path / "contract.toml"
    contract.write_text("[rows]\nmin = 1")
    words = ["--events", str(tmp_path / "log.parquet"), "--run", "night", "--contract", str(contract)]
    assert command(tmp_path, "prepare", *words).exit_code == 0
    contract.write_text("[rows]\nmin = 101")
    for stage in ("prepare", "run"):
        done = command(tmp_path, stage, *words)
        assert done.exit_code == 5
        assert done.stderr == (
            "The log breaks 1 line of the contract: [rows] min = 101, but the log has 100 rows. Nothing was prepared.\n"
        )
    done = command(tmp_path, "train", "--run", "night")
    assert (done.exit_code, "Stage prepare of" in done.stderr) == (1, True)
    assert Run.open(tmp_path / "runs", "night").record()["stages"].keys() == {"prepare"}


def test_a_run_is_prepared_again_when_its_contract_or_night_changes(tmp_path: Path) -> None:
    contract = tmp_path / "contract.toml"
    check(tmp_path, "[rows]\nmin = 1", items=False)
    run = Run.open(tmp_path / "runs", "0001-run")

    def remaining(since: str | None = None, file: Path | None = contract) -> list[str]:
        log, repository = tmp_path / "log.parquet", tmp_path / "repository"
        inputs = RunInputs(log, None, None, Config(), repository, since=since, contract=file)
        return remaining_stages(run, inputs)

    assert remaining()[0] == "train"
    assert remaining(since="start")[0] == remaining(file=None)[0] == "prepare"
    contract.write_text("[rows]\nmin = 2")
    assert remaining()[0] == "prepare"


def test_what_cannot_be_a_night_makes_no_run(tmp_path: Path) -> None:
    log().write_parquet(tmp_path / "log.parquet")
    (tmp_path / "contract.toml").write_text("[row]")
    for words in (["--since", "soon"], ["--contract", str(tmp_path / "contract.toml")], ["--contract", "none.toml"]):
        done = command(tmp_path, "prepare", "--events", str(tmp_path / "log.parquet"), *words)
        assert done.exit_code == 2, done.output
    assert not (tmp_path / "runs").exists()
