"""What `segrec-train diff` says of releases whose difference is known."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from server.core.figures import Figure
from server.core.profiles import Migration
from server.core.release import Confidence, Release, with_item_hashes
from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_release, record_of
from server.core.repository.traffic import change_traffic
from tests.support.releases import CONFIDENCE, START_MS, item_id, tiny_release
from training.cli.diff import number_of_release
from training.errors import ConfigError, LogError
from training.reports.diff import wording as words
from training.reports.diff.answers import NO_ITEM, Answers, answers, draw_sample
from training.reports.diff.diff import PREPARED, compared, items_of, same_test
from training.reports.diff.figures import Diff, SameTest
from training.reports.diff.page import page_of
from training.segments.placement import read_events, seen_item_rows

GROUPS, EACH = 4, 30

Change = Callable[[Path], None]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    tiny_release(tmp_path, 1, confidence=CONFIDENCE)
    return tmp_path


def events_of(users: int = GROUPS * EACH) -> pl.DataFrame:
    """Users of 8 events within one group: user u has items of group u % 4, so `tiny_release` puts it in segment + 1."""
    user, turn = np.repeat(np.arange(users), 8), np.tile(np.arange(8), users)
    number = (turn + user // GROUPS) % 12 * GROUPS + user % GROUPS + 1
    return pl.DataFrame(
        {
            "user_id": [f"user-{one:03}" for one in user],
            "item_id": [item_id(int(one)) for one in number],
            "action": ["view"] * len(user),
            "value": 1.0,
            "timestamp": START_MS + turn * 3_600_000,
        }
    )


def copied(repository: Path, change: Change | None = None, **manifest: object) -> Release:
    """Release 2: release 1 again, after `change` of its files."""
    directory = repository / MODEL_NAME / "2"
    shutil.copytree(repository / MODEL_NAME / "1", directory)
    if change:
        change(directory)
    fields = json.loads((directory / "manifest.json").read_text()) | {"release": 2} | manifest
    fields["files"] = {name: record_of(directory / name).model_dump() for name in fields["files"]}
    (directory / "manifest.json").write_text(json.dumps(fields))
    return read_release(directory)


def one(repository: Path) -> Release:
    return read_release(repository / MODEL_NAME / "1")


def diff(repository: Path, after: Release, events: pl.DataFrame | None = None, same: SameTest = "same") -> Diff:
    sample = draw_sample(events_of() if events is None else events, 1_000, 0)
    before = one(repository)
    return compared(before, after, sample, answers(repository, before, after, sample), same)


def swap(directory: Path) -> None:
    """Segments 1 and 2 change places."""
    path = directory / "segments.json"
    profiles = json.loads(path.read_text())
    profiles[0]["segment_id"], profiles[1]["segment_id"] = 2, 1
    path.write_text(json.dumps(profiles))


def test_of_two_equal_releases_nothing_changes(repository: Path) -> None:
    found = diff(repository, copied(repository))
    assert (found.changed, found.items.overlap, found.items.none_in_common) == (0, 1, 0)
    assert found.items.counts == (*(0,) * 10, 1)
    assert (found.items.moved_places, found.items.score_shift) == (0, 0)
    assert found.vectors.same_encoder
    assert found.vectors.cosine == pytest.approx(1)
    assert found.vectors.neighbours == pytest.approx(1)
    assert found.sureness is not None
    assert found.sureness.before == found.sureness.after
    assert (found.sureness.lost, found.sureness.gained) == (0, 0)
    assert all(row.stay == 1 for row in found.segments if row.share_before)
    assert words.verdict(found).startswith("Little changes from release 1 to release 2: 0\xa0% of users")


def test_segments_are_compared_by_id_and_every_flow_is_counted(repository: Path) -> None:
    found = diff(repository, copied(repository, swap, min_segment_size=EACH))
    assert found.changed == pytest.approx(0.5)
    assert words.verdict(found).startswith("Much changes")


def test_flows_and_shares_of_few_users_are_not_told(repository: Path) -> None:
    """Both releases have a least size: 30 users are told where it is 30 and not where it is 31."""
    told = diff_of_least(repository, EACH)
    flows = {(flow.from_segment_id, flow.to_segment_id): flow.user_count for flow in told.migration.flows}
    assert flows == {(1, 2): EACH, (2, 1): EACH, (3, 3): EACH, (4, 4): EACH}
    assert [row.stay for row in sorted(told.segments, key=lambda row: row.segment_id)] == [0, 0, 1, 1]
    shutil.rmtree(repository / MODEL_NAME / "2")
    hidden = diff_of_least(repository, EACH + 1)
    assert hidden.migration.flows == ()
    assert all(row.share_before is row.share_after is row.stay is None for row in hidden.segments)
    assert hidden.changed == pytest.approx(0.5)


def diff_of_least(repository: Path, least: int) -> Diff:
    path = repository / MODEL_NAME / "1" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"min_segment_size": least}))
    return diff(repository, copied(repository, swap))


def test_another_encoder_is_compared_by_neighbours_only(repository: Path) -> None:
    tiny_release(repository, 2, confidence=CONFIDENCE)
    found = diff(repository, read_release(repository / MODEL_NAME / "2"))
    assert found.changed == 0  # whatever the numbers, groups land in their segments
    assert not found.vectors.same_encoder
    assert (found.vectors.cosine, found.vectors.cosine_low) == (None, None)
    assert found.vectors.neighbours is not None
    assert found.vectors.by_chance is not None
    assert found.vectors.by_chance == pytest.approx(10 / 119)
    assert found.vectors.by_chance < found.vectors.neighbours < 1


def test_users_known_to_one_release_only_are_counted_and_left_out(repository: Path) -> None:
    """Release 2 lacks items 41 to 50; eleven users have nothing else, and one user's item is in neither."""
    tiny_release(repository, 2, items=40)
    events = events_of()
    row = pl.col("user_id").str.slice(5).cast(pl.Int64)
    events = events.with_columns(
        pl.when(row < 11)
        .then(pl.lit(item_id(45)))
        .when(row == 11)
        .then(pl.lit("x"))
        .otherwise("item_id")
        .alias("item_id")
    )
    found = diff(repository, read_release(repository / MODEL_NAME / "2"), events)
    assert (found.compared, found.only_before, found.only_after) == (GROUPS * EACH - 12, 11, 0)
    assert found.changed == 0  # each user is set beside itself
    assert found.sureness is None
    assert "9.2\xa0% are known to release 1 only" in words.users_in_words(found)
    assert "confidence cannot be compared" in words.confidence_in_words(found)
    nobody = events.with_columns(item_id=pl.lit("x"))
    with pytest.raises(LogError, match="none has an event that both release 1 and release 2 know"):
        diff(repository, read_release(repository / MODEL_NAME / "2"), nobody)


def test_items_that_came_and_went_count_by_their_popularity(repository: Path) -> None:
    tiny_release(repository, 2, items=40)
    found = diff(repository, read_release(repository / MODEL_NAME / "2"))
    ranks = 1 / np.arange(1, 51)
    assert (found.catalogue.before, found.catalogue.after) == (50, 40)
    assert (found.catalogue.new, found.catalogue.new_popularity, found.catalogue.gone) == (0, 0, 10)
    assert found.catalogue.gone_popularity == pytest.approx(ranks[40:].sum() / ranks.sum(), rel=1e-4)


def test_items_are_the_same_by_their_ids(repository: Path) -> None:
    """Release 2 has other items in the first 24 rows: its lists have them, and none of them counts as one of before."""
    after = copied(repository, lambda directory: rename_items(directory, 24))
    sample = draw_sample(events_of(), 1_000, 0)
    pair = answers(repository, one(repository), after, sample)
    assert (pair.before.items < 24).any(axis=1).all()
    assert pair.after.items.min() >= 24
    assert (pair.after.items >= 50).any(axis=1).all()
    found = items_of(pair.before, pair.after)
    assert found.overlap <= 0.7  # of 12 or 13 items of a group 6 are others now


def rename_items(directory: Path, count: int) -> None:
    items = pl.read_parquet(directory / "items.parquet").with_row_index("row")
    other = pl.concat_str(pl.lit("other-"), "item_id")
    name = pl.when(pl.col("row") < count).then(other).otherwise("item_id")
    renamed = items.with_columns(item_id=name).drop("row")
    with_item_hashes(renamed).write_parquet(directory / "items.parquet")
    path = directory / "segments.json"
    path.write_text(re.sub(r'"item_id": ?"(item-0[01]\d|item-02[0-4])"', r'"item_id":"other-\1"', path.read_text()))


def test_doubt_is_compared_user_by_user(repository: Path) -> None:
    """The same places, but release 2 asks for more: nobody gains confidence, and some lose it."""
    strict = Confidence(margins=(0, 1), stays=(0, 1), min_confidence=1, min_history=0)
    found = diff(repository, copied(repository, confidence=strict.model_dump(mode="json")))
    assert found.sureness is not None
    assert (found.sureness.before, found.sureness.after) == (1, 0)
    assert (found.sureness.lost, found.sureness.gained) == (1, 0)


def lists(items: list[list[int]], scores: list[list[float]]) -> Answers:
    users = len(items)
    empty = np.zeros((users, 1))
    return Answers(np.zeros(users, np.int64), empty, empty.astype(np.float32), None, np.array(items), np.array(scores))


def test_lists_are_compared_by_hand() -> None:
    """The first user keeps items 1 and 2, which change places, the second none, the third its only item."""
    nan = float("nan")
    before = lists([[1, 2, 3], [4, 5, 6], [7, NO_ITEM, NO_ITEM]], [[3, 2, 1], [3, 2, 1], [1, nan, nan]])
    after = lists([[2, 1, 9], [7, 8, 9], [7, NO_ITEM, NO_ITEM]], [[5, 4.5, 1], [3, 2, 1], [1, nan, nan]])
    found = items_of(before, after)
    assert found.overlap == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert found.none_in_common == pytest.approx(1 / 3)
    assert found.counts == pytest.approx((1 / 3, 1 / 3, 1 / 3, 0))
    assert found.quantiles[2] == pytest.approx(2 / 3)
    assert found.moved_places == pytest.approx(2 / 3)
    assert found.score_shift == pytest.approx((1.5 + 3 + 0) / 3)
    assert found.score_shift_interval == pytest.approx(np.quantile([0, 1.5, 3], [0.05, 0.95]))
    nothing = items_of(before, lists([[9, 9, 9]] * 3, [[1, 1, 1]] * 3))
    assert (nothing.overlap, nothing.moved_places, nothing.score_shift) == (0, None, None)


def test_seen_items_are_all_that_the_release_knows_of_a_user(repository: Path) -> None:
    told = {"user_id": ["a", "a", "a", "b", "c"], "item_id": [item_id(3), item_id(1), item_id(3), "x", item_id(50)]}
    assert [rows.tolist() for rows in seen_item_rows(pl.DataFrame(told), one(repository))] == [[0, 2], [], [49]]


def test_a_sample_is_of_whole_users_and_comes_out_the_same_again() -> None:
    events = events_of()
    sample = draw_sample(events, 10, 3)
    assert (sample.users, sample.user_count) == (10, 120)
    assert len(sample.events) == 80
    assert sample.events["user_id"].is_sorted()
    assert sample.events.equals(draw_sample(events, 10, 3).events)
    assert not sample.events.equals(draw_sample(events, 10, 4).events)
    assert draw_sample(events, 500, 0).events.equals(events)


def test_names_of_releases_follow_the_traffic(repository: Path) -> None:
    copied(repository)
    assert [number_of_release(name, repository) for name in ("1", "newest", "stable")] == [1, 2, 2]
    with pytest.raises(ConfigError, match="There is no canary"):
        number_of_release("canary", repository)
    change_traffic(repository, lambda traffic: traffic.with_stable(1).with_answering(2, 0.05), "traffic", "me")
    assert [number_of_release(name, repository) for name in ("newest", "stable", "canary")] == [2, 1, 2]


def test_quality_is_said_as_far_as_the_tests_are_known_to_be_the_same(repository: Path) -> None:
    then = [Figure.parse("as served/hybrid/ndcg@10", 0.1), Figure.parse("as served/popularity/hr@10", 0.3)]
    path = repository / MODEL_NAME / "1" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"figures": [figure.model_dump() for figure in then]}))
    now = (Figure.parse("as served/hybrid/ndcg@10", 0.12), Figure.parse("as served/encoder/hr@10", 0.4))
    after = copied(repository, figures=[figure.model_dump() for figure in now])
    assert same_test(repository, one(repository), after, repository / "runs") == "same"  # one encoder
    same, other, unknown = (diff(repository, after, same=one) for one in ("same", "different", "unknown"))
    assert words.verdict(same).endswith("; NDCG@10 (hybrid, as served) goes from 0.1000 to 0.1200 on the same test.")
    assert words.verdict(other).endswith("was 0.1000 and is 0.1200, measured on other users.")
    assert words.verdict(unknown).endswith("measured perhaps on other users.")
    assert [(words.quality_name(row), *row.pair) for row in words.quality_rows(same)] == [
        ("NDCG@10 (hybrid, as served)", 0.1, 0.12),
        ("HR@10 (encoder, as served)", None, 0.4),
    ]
    tiny_release(repository, 3)
    newer = read_release(repository / MODEL_NAME / "3")
    assert same_test(repository, after, newer, repository / "runs") == "unknown"
    assert "no main figure of quality in common" in words.verdict(diff(repository, newer))


def test_the_page_can_be_made_when_all_flows_are_small(repository: Path) -> None:
    path = repository / MODEL_NAME / "1" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"min_segment_size": 500}))
    after = copied(repository, swap)
    found = diff(repository, after)
    page = page_of(found, one(repository), after)
    assert "No flow has 500 users" in page
    assert "user-0" not in page + found.model_dump_json()
    assert found.migration == Migration(previous_release=1, user_count=GROUPS * EACH)


@pytest.mark.parametrize(("number", "text"), [(0.1234, "+0.123"), (-2, "−2.000"), (-0.0001, "0.000")])
def test_changes_have_a_sign(number: float, text: str) -> None:
    assert words.signed(number, 3) == text


def test_the_events_of_a_run_are_not_cleaned_again(repository: Path, tmp_path: Path) -> None:
    events = events_of()
    first = events["user_id"][0]
    named = events.with_columns(pl.col("user_id").replace(first, "NA"))
    twice = pl.concat([named, named.filter(pl.col("user_id") == "NA")])
    twice.write_parquet(tmp_path / "events.parquet")
    read = read_events(tmp_path / "events.parquet", PREPARED, one(repository)).events
    count = len(events.filter(pl.col("user_id") == first))
    assert len(read.filter(pl.col("user_id") == "NA")) == 2 * count
