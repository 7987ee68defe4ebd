"""The visits that `prepare` finds in a log, and the warning about rows that are sorted inside ties."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from server.core.preprocessing import Visits
from training.config import Config, VisitSettings, load_config
from training.data.prepare import PrepareResult, prepare
from training.data.visits import find_visits
from training.errors import ConfigError
from training.runs import Run

MINUTE_MS = 60_000


def events_of(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    """Events of (user, item, minute), sorted by user and time, as `clean` leaves them."""
    users, items, minutes = map(list, zip(*rows, strict=True))
    return pl.DataFrame(
        {
            "user_id": pl.Series(users, dtype=pl.Enum(sorted(set(users)))),
            "item_id": pl.Series(items, dtype=pl.Enum(sorted(set(items)))),
            "timestamp": [minute * MINUTE_MS for minute in minutes],
        }
    )


BASKETS = events_of(
    [("ann", "a", 0), ("ann", "b", 0), ("ann", "c", 9), ("ann", "a", 9), ("ben", "a", 9), ("ben", "d", 9)]
)
SESSIONS = events_of([("ann", "a", 0), ("ann", "b", 30), ("ann", "a", 61), ("ben", "a", 61)])


def test_a_log_with_ties_has_baskets() -> None:
    found = find_visits(BASKETS, True, VisitSettings())
    assert found.visits == Visits(gap_seconds=0.0)
    assert found.ties == found.joined == 3 / 6
    assert (found.visits_a_user, found.events_a_visit) == (1.5, 2.0)
    assert found.repeats == pytest.approx(1 / 6)  # ann's second a
    assert found.has_visits


def test_a_log_without_ties_has_sessions_of_half_an_hour() -> None:
    found = find_visits(SESSIONS, True, VisitSettings())
    assert found.visits == Visits(gap_seconds=1800.0)
    assert (found.ties, found.joined, found.repeats) == (0.0, 1 / 4, 1 / 4)
    assert (found.visits_a_user, found.events_a_visit) == (1.5, 4 / 3)


def test_a_tenth_of_ties_makes_baskets() -> None:
    for others, gap in ((8, 0.0), (9, 1800.0)):
        rows = [("ann", "a", 0), ("ann", "b", 0), *(("ann", "c", 100 * place) for place in range(1, others + 1))]
        assert find_visits(events_of(rows), True, VisitSettings()).visits.gap_seconds == gap


def test_the_configured_gap_and_order_count() -> None:
    found = find_visits(SESSIONS, True, VisitSettings(gap=31 * 60, ordered=True))
    assert found.visits == Visits(gap_seconds=1860.0, ordered=True)
    assert found.joined == 2 / 4


def test_a_log_without_a_clock_has_no_gap_in_seconds() -> None:
    assert find_visits(SESSIONS, False, VisitSettings()).visits == Visits()
    with pytest.raises(ConfigError, match=r"\[visits\] gap is 60 seconds, but this log has no clock"):
        find_visits(SESSIONS, False, VisitSettings(gap=60))


def write_baskets(path: Path, order: str, prefix: str = "", seed: int = 0) -> Path:
    """Ten users with 15 baskets of four items, whose rows are sorted by item id, or shuffled."""
    rng = np.random.default_rng(seed)
    lines = ["user_id,item_id,timestamp"]
    for user in range(10):
        for day in range(15):
            numbers = rng.choice(500, 4, replace=False)
            if order != "shuffled":
                numbers = np.sort(numbers)[:: -1 if order == "descending" else 1]
            lines += [f"u{user},{prefix}{number},2024-01-{day + 1:02d}" for number in numbers]
    path.write_text("\n".join(lines) + "\n")
    return path


def prepared(tmp_path: Path, log: Path, settings: VisitSettings) -> PrepareResult:
    return prepare(Run.create(tmp_path / "runs"), log, None, None, Config(visits=settings))


def warnings(tmp_path: Path, log: Path, **settings: bool) -> list[str]:
    notes = prepared(tmp_path, log, VisitSettings(**settings)).account.notes
    return [note for note in notes if "sorted by item id" in note]


def test_rows_sorted_by_item_id_are_warned_of(tmp_path: Path) -> None:
    [warning] = warnings(tmp_path, write_baskets(tmp_path / "a.csv", "ascending"))
    assert "100.0% of neighbours ascend" in warning
    assert "carries nothing and is not learned" in warning
    assert "[visits] ordered = true" in warning
    [warning] = warnings(tmp_path, write_baskets(tmp_path / "d.csv", "descending"))
    assert "100.0% of neighbours descend" in warning
    [warning] = warnings(tmp_path, tmp_path / "a.csv", ordered=True)
    assert "training learns this order" in warning
    assert not warnings(tmp_path, write_baskets(tmp_path / "s.csv", "shuffled"))


def test_ids_that_are_no_numbers_are_compared_as_texts(tmp_path: Path) -> None:
    """Sorted by number, a log of `sku-9`, `sku-10` is not sorted by text."""
    assert not warnings(tmp_path, write_baskets(tmp_path / "t.csv", "ascending", prefix="sku-"))
    assert warnings(tmp_path, write_baskets(tmp_path / "n.csv", "ascending", prefix="9"))


def test_a_few_sorted_rows_can_be_chance(tmp_path: Path) -> None:
    lines = write_baskets(tmp_path / "long.csv", "ascending").read_text().splitlines()
    (tmp_path / "short.csv").write_text("\n".join(lines[:101]) + "\n")
    assert not warnings(tmp_path, tmp_path / "short.csv")


def test_prepare_reports_visits(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "runs")
    result = prepare(run, write_baskets(tmp_path / "log.csv", "shuffled"), None, None, Config())
    [note] = [note for note in result.account.notes if note.startswith("visits:")]
    assert "a user's events of one time stamp (chosen from the log" in note
    assert "75% of events tie" in note
    assert "15 visits a user (median), 4.0 events a visit (mean)" in note
    figures = run.figures("prepare")
    assert (figures["ties"], figures["visits_a_user"], figures["events_a_visit"]) == (0.75, 15.0, 4.0)
    assert 0 < figures["visit_repeats"] < 0.2
    assert result.preprocessing.visits == Visits()


def test_a_bad_gap_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[visits]\ngap = -1\n")
    with pytest.raises(ConfigError, match=r"visits\.gap"):
        load_config(path)
