"""`segrec-train members`: the users of a segment are those whom the server puts there."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from segrec import SegrecClient
from segrec.v1.segrec_service_pb2 import SEGMENT_STATE_ASSIGNED

from server.core.repository.layout import MODEL_NAME
from tests.support.segments import Place, released
from tests.support.server import START_SECONDS, StartServer
from training.data.reading.tables import scan_table

pytestmark = pytest.mark.nightly

COLUMNS = {"user_id": pl.String, "segment_id": pl.Int64, "distance": pl.Float32}
DOUBT = {"confidence": pl.Float32, "runner_up_segment_id": pl.Int64, "confident": pl.Boolean} | {
    "short_history": pl.Boolean
}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return released(tmp_path, users=300, items=40, segments=4, events_per_user=20)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """For tests that change nothing."""
    return released(tmp_path_factory.mktemp("members"), users=200, items=40, segments=4, events_per_user=12)


def members(place: Place, out: Path, *more: object) -> pl.DataFrame:
    result = place.call("members", "--out", out, "--runs", place.runs, *more)
    assert result.exit_code == 0, result.output
    assert f"are in {out}." in " ".join(result.output.split())
    return pl.read_parquet(out)


def refused(place: Place, tmp_path: Path, *more: object, out: str = "x.parquet") -> str:
    result = place.call("members", "--out", tmp_path / out, "--runs", place.runs, *more)
    assert result.exit_code in (1, 2), result.output
    assert not (tmp_path / out).exists()
    return result.stderr


def test_members_are_those_whom_the_server_puts_in_the_segment(start_server: StartServer, place: Place) -> None:
    """Of the run and of the raw log: the same ids for all users, distances and confidence within 1e-4."""
    server = start_server("--bootstrap-events", str(place.runs / "one" / "prepare" / "events.parquet"))
    server.wait_until_said("serving", START_SECONDS)
    everyone = [f"u{number:05}" for number in range(300)]
    with SegrecClient(server.address, timeout_seconds=20) as client:
        answers = [row.result.assignment for row in client.stream_segment(everyone, chunk_size=100)]
    online = pl.DataFrame(
        {
            "user_id": everyone,
            "segment_id": [answer.segment_id for answer in answers],
            "online": [answer.distance for answer in answers],
            "runner_up_segment_id": [answer.runner_up_segment_id for answer in answers],
            "confidence": [answer.confidence if answer.HasField("confidence") else None for answer in answers],
            "confident": [answer.state == SEGMENT_STATE_ASSIGNED for answer in answers],
            "short_history": [answer.short_history for answer in answers],
        },
        schema_overrides={"confidence": pl.Float32},
    )
    for source in ((), ("--events", place.events)):
        for segment_id in online["segment_id"].unique().sort():
            found = members(place, place.path / "members.parquet", "--segment", segment_id, "--release", 1, *source)
            expected = online.filter(pl.col("segment_id") == segment_id)
            assert_frame_equal(
                found.sort("user_id"),
                expected.rename({"online": "distance"}).select(found.columns),
                check_dtypes=False,
                abs_tol=1e-4,
                rel_tol=0,
            )


def test_without_a_segment_all_users_are_written(shared: Place, tmp_path: Path) -> None:
    of_run = members(shared, tmp_path / "run.parquet").sort("user_id")
    of_log = members(shared, tmp_path / "log.parquet", "--events", shared.events).sort("user_id")
    assert len(of_run) == 200
    assert {name: of_log.schema[name] for name in COLUMNS | DOUBT} == COLUMNS | DOUBT
    assert {name: of_run.schema[name] for name in COLUMNS} == COLUMNS
    for name in of_run.columns:
        if name in ("distance", "confidence") and of_run[name].null_count() == 0:
            np.testing.assert_allclose(of_run[name].to_numpy(), of_log[name].to_numpy(), atol=1e-4)
        else:
            assert of_run[name].to_list() == of_log[name].to_list()


def test_the_suffix_chooses_the_format(shared: Place, tmp_path: Path) -> None:
    expected = members(shared, tmp_path / "all.parquet", "--segment", 1)
    for suffix in ("csv", "tsv", "ndjson"):
        out = tmp_path / f"all.{suffix}"
        assert shared.call("members", "--out", out, "--runs", shared.runs, "--segment", 1).exit_code == 0
        found = scan_table(out, tmp_path / "scratch").select("user_id").collect()
        assert found["user_id"].to_list() == expected["user_id"].to_list()
    assert "unknown suffix" in refused(shared, tmp_path, out="x.txt")
    assert "no directory" in refused(shared, tmp_path, out="nowhere/x.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.csv", "all.ndjson", "all.parquet", "all.tsv"]


def test_users_of_whom_nothing_is_known_are_left_out_and_counted(shared: Place, tmp_path: Path) -> None:
    log = pl.read_csv(shared.events)
    strange = log.filter(pl.col("user_id") < "u00003").with_columns(
        *(pl.concat_str(pl.lit("new-"), name).alias(name) for name in ("user_id", "item_id"))
    )
    pl.concat([log, strange]).write_csv(tmp_path / "more.csv")
    out = tmp_path / "x.parquet"
    result = shared.call("members", "--out", out, "--events", tmp_path / "more.csv")
    assert result.exit_code == 0, result.output
    assert "Left out: 3 users" in result.output
    assert len(pl.read_parquet(out)) == 200


def test_unknown_segments_and_releases_are_named(shared: Place, tmp_path: Path) -> None:
    message = refused(shared, tmp_path, "--segment", 99)
    assert (
        "Release 1 has no segment 99: no release of the repository ever had this segment. Its segments: 1, 2" in message
    )
    assert "There is no release 7" in refused(shared, tmp_path, "--release", 7)
    assert "There is no file" in refused(shared, tmp_path, "--events", tmp_path / "none.csv")
    assert "give only one of them" in refused(shared, tmp_path, "--events", shared.events, "--run", "one")
    assert "give both, or none" in refused(shared, tmp_path, "--config", shared.path / "config.toml")
    assert "There is no run `two`" in refused(shared, tmp_path, "--run", "two")


def test_a_retired_segment_is_said_to_be_so(place: Place, tmp_path: Path) -> None:
    """Four segments, then two: two ids retire, and stay in the release that had them."""
    for name in ("segment", "publish"):
        words = (name, "--run", "one", "--runs", place.runs, *(("--k", 2) if name == "segment" else ()))
        assert place.call(*words).exit_code == 0
    ids = {number: set(segment_ids(place, number)) for number in (1, 2)}
    gone = min(ids[1] - ids[2])
    message = refused(place, tmp_path, "--segment", gone)
    assert (
        f"Release 2 has no segment {gone}: the segment is retired; release 1 was the last release before that had it"
        in message
    )
    out = tmp_path / "log.parquet"
    log = ("--release", 1, "--segment", gone, "--events", place.events)
    assert len(members(place, out, *log)) > 0
    assert "No run under" in refused(place, tmp_path, "--release", 1, "--segment", gone)
    shutil.rmtree(place.repository / MODEL_NAME / "1")
    assert "a release that is not in the repository any more" in refused(place, tmp_path, "--segment", gone)


def test_segments_made_again_since_are_not_taken_for_those_of_the_release(place: Place, tmp_path: Path) -> None:
    words = ("segment", "--run", "one", "--runs", place.runs, "--k", 2)
    assert place.call(*words).exit_code == 0
    assert "does not have the segments of release 1" in refused(place, tmp_path)
    assert "does not have the segments of release 1" in refused(place, tmp_path, "--run", "one")


def test_a_repository_that_moved_needs_the_run_by_name(place: Place, tmp_path: Path) -> None:
    moved = Place(tmp_path / "elsewhere")
    moved.path.mkdir()
    place.repository.rename(moved.repository)
    words = ("members", "--out", tmp_path / "x.parquet", "--runs", place.runs)
    lost = moved.call(*words)
    assert lost.exit_code == 1
    assert "No run under" in lost.stderr
    assert moved.call(*words, "--run", "one").exit_code == 0


def segment_ids(place: Place, number: int) -> list[int]:
    profiles = json.loads((place.repository / MODEL_NAME / str(number) / "segments.json").read_text())
    return [profile["segment_id"] for profile in profiles]
