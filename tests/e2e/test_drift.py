"""`segrec-train drift` on planted logs: users like those of training are stable, others are told apart."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_manifest
from tests.support.logs import planted_log
from tests.support.segments import Place, released
from training.errors import RunError
from training.reports.drift import Drift
from training.repository import find_release
from training.segments.drift_reference import DRIFT_REFERENCE, read_reference

pytestmark = pytest.mark.nightly

NEW_ITEM = pl.concat_str(pl.lit("new-"), "item_id").alias("item_id")
SHAPE = {"items": 40, "segments": 4, "events_per_user": 16}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return released(tmp_path_factory.mktemp("drift"), users=600, **SHAPE)


def fresh(users: int = 300, seed: int = 5) -> pl.DataFrame:
    return planted_log(users=users, seed=seed, **SHAPE)[0]


def verdict(place: Place, tmp_path: Path, events: pl.DataFrame, *more: object) -> tuple[int, Drift]:
    """Exit code and JSON of `segrec-train drift` on these events."""
    events.write_parquet(tmp_path / "new.parquet")
    result = place.call("drift", "--events", tmp_path / "new.parquet", "--json", tmp_path / "drift.json", *more)
    assert result.exit_code in (0, 3, 4), result.output
    found = Drift.model_validate_json((tmp_path / "drift.json").read_bytes())
    assert f"Release 1: {found.verdict}" in result.output
    return result.exit_code, found


def of_segments(events: pl.DataFrame, *kept: int) -> pl.DataFrame:
    return events.filter((pl.col("user_id").str.slice(1).cast(pl.Int64) % 4).is_in(kept))


def test_the_log_of_training_is_stable(place: Place, tmp_path: Path) -> None:
    code, found = verdict(place, tmp_path, pl.read_csv(place.events))
    assert (code, found.verdict) == (0, "stable")
    assert [measure.value for measure in found.measures] == pytest.approx([0] * len(found.measures), abs=1e-6)
    assert found.users_then == found.users_now == 600


@pytest.mark.parametrize("seed", [5, 6, 7])
def test_new_users_of_the_same_kind_are_stable(place: Place, tmp_path: Path, seed: int) -> None:
    code, found = verdict(place, tmp_path, fresh(seed=seed), "--release", 1)
    assert (code, found.verdict) == (0, "stable")


def test_a_resample_of_the_users_is_stable(place: Place, tmp_path: Path) -> None:
    events = pl.read_csv(place.events)
    chosen = events["user_id"].unique(maintain_order=True).sample(300, seed=1)
    assert verdict(place, tmp_path, events.filter(pl.col("user_id").is_in(chosen.implode())))[0] == 0


def test_a_log_of_one_planted_segment_has_drifted(place: Place, tmp_path: Path) -> None:
    code, found = verdict(place, tmp_path, of_segments(fresh(600), 2))
    assert (code, found.verdict) == (3, "drifted")
    assert {m.name for m in found.measures if m.verdict == "drifted"} >= {"shares of segments", "embeddings"}
    assert sorted(round(segment.now, 2) for segment in found.segments) == [0, 0, 0, 1]
    assert [round(segment.then, 2) for segment in found.segments] == [0.25] * 4


def test_users_of_a_table_are_the_only_ones_who_count(place: Place, tmp_path: Path) -> None:
    events = fresh(600)
    of_segments(events, 2).select("user_id").unique().write_csv(tmp_path / "users.csv")
    assert verdict(place, tmp_path, events, "--users", tmp_path / "users.csv")[0] == 3
    pl.DataFrame({"user_id": ["nobody"]}).write_csv(tmp_path / "users.csv")
    refused = place.call("drift", "--events", tmp_path / "new.parquet", "--users", tmp_path / "users.csv")
    assert refused.exit_code == 2
    assert "None of the 1 users" in refused.stderr


def test_items_that_the_release_does_not_know_are_told(place: Place, tmp_path: Path) -> None:
    """In 12 of 100 events the item is new: more than 5 %, less than 20 %."""
    renamed = pl.when(pl.int_range(pl.len()) % 25 < 3).then(NEW_ITEM).otherwise("item_id")
    code, found = verdict(place, tmp_path, fresh(600).with_columns(renamed.alias("item_id")))
    measure = found.measure("events of unknown items")
    assert code != 0
    assert measure.value == pytest.approx(0.12, abs=0.01)
    assert measure.verdict == "moved"


@pytest.mark.parametrize(("strangers", "code"), [(10, 0), (60, 4), (180, 3)])
def test_users_without_any_known_item_are_told(place: Place, tmp_path: Path, strangers: int, code: int) -> None:
    """Of 600 users, so many have new items only; the others are as in training."""
    strange = pl.when(pl.col("user_id") < f"u{strangers:05}").then(NEW_ITEM).otherwise("item_id")
    found_code, found = verdict(place, tmp_path, fresh(600).with_columns(strange.alias("item_id")))
    assert (found_code, found.users_now) == (code, 600 - strangers)
    assert found.measure("users of whom nothing is known").value == pytest.approx(strangers / 600)


def test_a_log_of_another_catalogue_is_refused(place: Place, tmp_path: Path) -> None:
    fresh().with_columns(NEW_ITEM).write_parquet(tmp_path / "new.parquet")
    refused = place.call("drift", "--events", tmp_path / "new.parquet")
    assert refused.exit_code == 2
    assert "knows no item and action of the 300 users" in refused.stderr


def test_a_log_without_times_is_refused(place: Place, tmp_path: Path) -> None:
    fresh().drop("timestamp").write_parquet(tmp_path / "new.parquet")
    refused = place.call("drift", "--events", tmp_path / "new.parquet")
    assert refused.exit_code == 2
    assert "has no times" in refused.stderr


def test_few_users_are_said_to_be_too_few(place: Place, tmp_path: Path) -> None:
    code, _ = verdict(place, tmp_path, of_segments(fresh(20), 0, 1, 2, 3))
    assert code == 0
    result = place.call("drift", "--events", tmp_path / "new.parquet")
    assert "With 20 users chance alone can exceed the limits" in " ".join(result.output.split())


def test_a_release_that_is_not_there_is_named(place: Place) -> None:
    missing = place.call("drift", "--events", place.events, "--release", 9)
    assert missing.exit_code == 1
    assert "There is no release 9" in missing.stderr
    assert "(there: 1)" in missing.stderr
    assert place.call("drift", "--events", place.events, "--release", "last").exit_code == 2
    assert "no directory" in place.call("drift", "--events", place.events, "--json", "/nowhere/x.json").stderr


def test_the_release_holds_a_reference_without_users(place: Place) -> None:
    directory = place.repository / MODEL_NAME / "1"
    assert DRIFT_REFERENCE in read_manifest(directory).files
    text = (directory / DRIFT_REFERENCE).read_text()
    assert "u00" not in text
    assert len(text) < 100_000


def test_a_release_without_a_reference_says_what_to_do(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.repository, tmp_path / "repository")
    directory = tmp_path / "repository" / MODEL_NAME / "1"
    (directory / DRIFT_REFERENCE).unlink()
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["files"][DRIFT_REFERENCE]
    (directory / "manifest.json").write_text(json.dumps(manifest))
    old = Place(tmp_path)
    find_release(old.repository, 1)
    result = old.call("drift", "--events", place.events)
    assert result.exit_code == 1
    assert "segrec-train publish" in result.stderr


def test_a_reference_of_another_version_is_an_error(tmp_path: Path, place: Place) -> None:
    (tmp_path / DRIFT_REFERENCE).write_text('{"user_count": 3}')
    with pytest.raises(RunError, match="cannot be read"):
        read_reference(tmp_path, find_release(place.repository, 1))
