"""Profiles of whole logs: figures, what is withheld, and the people who are nearest and farthest."""

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from server.core.profiles import SegmentProfile
from training.profiles.profiles import Members, Privacy, exemplars_of, profiles_of, silhouettes_of

DAY_MS = 86_400_000
ITEMS = pl.DataFrame(
    {
        "item_id": ["tea", "nails", "secret"],
        "title": ["Green tea", None, "Secret thing"],
        "category": [["Drinks"], ["Tools"], ["Secrets"]],
    }
)


def members_of(clusters: NDArray[np.intp]) -> Members:
    return Members(clusters, np.where(clusters == 0, 0.5, 0.25), np.eye(3)[clusters])


def log_of(clusters: NDArray[np.intp], secret_buyers: int = 0) -> pl.LazyFrame:
    """Users of cluster 0 buy tea and those of cluster 1 look at nails, on each of ten days; all do the other once.

    The first of cluster 0 hoard the secret thing as well.
    """
    rows, days = np.repeat(np.arange(len(clusters)), 10), np.tile(np.arange(10), len(clusters))
    usual = np.where(days == 0, 1 - clusters[rows], clusters[rows])
    events = pl.DataFrame(
        {
            "row": rows.astype(np.uint32),
            "item_id": np.array(["tea", "nails"])[usual],
            "action": np.array(["buy", "view"])[usual],
            "timestamp": days * DAY_MS + 8 * 3_600_000,
            "value": np.where(usual == 0, 2.0, np.nan).astype(np.float32),
        }
    )
    hoard = pl.DataFrame({"row": np.repeat(np.arange(secret_buyers), 20).astype(np.uint32)}).with_columns(
        pl.lit("secret").alias("item_id"),
        pl.lit("hoard").alias("action"),
        pl.lit(9 * DAY_MS, pl.Int64).alias("timestamp"),
        pl.lit(1.0, pl.Float32).alias("value"),
    )
    return pl.concat([events, hoard]).lazy()


TWO = np.repeat([0, 1], [60, 240])


def profiles(clusters: NDArray[np.intp] = TWO, size: int = 50, secret_buyers: int = 0) -> list[SegmentProfile]:
    ids = [4, 2][: int(clusters.max()) + 1]
    events = log_of(clusters, secret_buyers)
    return profiles_of(events, ITEMS, members_of(clusters), ids, True, Privacy(size, 5))


def test_profiles_count_users_and_shares() -> None:
    first, second = profiles()
    assert (first.segment_id, first.user_count, first.share, first.label) == (4, 60, 0.2, "Drinks · buy")
    assert (second.segment_id, second.mean_distance, second.label) == (2, 0.25, "Tools · view")
    assert first.silhouette == pytest.approx(1.0)
    assert first.history == ()


def test_a_description_tells_weekends_in_the_time_of_the_zone() -> None:
    friday_late, wednesday = (DAY_MS + 20 * 3_600_000, 6 * DAY_MS + 20 * 3_600_000)  # UTC; in Tokyo, Saturday at 5 h
    events = log_of(TWO).with_columns(
        timestamp=pl.when(pl.col("row") < 60).then(pl.lit(friday_late)).otherwise(pl.lit(wednesday))
    )
    of_zone = {
        zone: profiles_of(events, ITEMS, members_of(TWO), [4, 2], True, Privacy(50, 5), zone)[0]
        for zone in ("UTC", "Asia/Tokyo")
    }
    assert "weekends" not in of_zone["UTC"].description
    assert "mostly on weekends (Asia/Tokyo)" in of_zone["Asia/Tokyo"].description
    assert of_zone["Asia/Tokyo"].weekdays == of_zone["UTC"].weekdays == (0, 0, 0, 0, 1, 0, 0)


def test_profiles_have_traits_actions_and_times() -> None:
    first, second = profiles()
    assert first.activity is not None
    assert (first.activity.mean_events, first.activity.mean_active_days) == (10, 10)
    assert [(own.action, own.share) for own in first.actions] == [("buy", 0.9), ("view", 0.1)]
    assert first.actions[0].lift == pytest.approx(0.9 / 0.26)
    assert first.hours[8] == 1.0
    assert sum(second.weekdays) == pytest.approx(1.0)
    assert first.spend is not None
    assert first.spend.mean_total == pytest.approx(18)
    assert first.growth == pytest.approx(0)
    assert first.description.startswith("20 % of users; 90 % of their events are Drinks, 3.5 times the share")


@pytest.mark.parametrize(("buyers", "told"), [(4, False), (5, True)])
def test_events_of_too_few_users_are_nowhere_in_a_profile(buyers: int, told: bool) -> None:
    clusters = np.repeat([0, 1], [60, 3000])
    first, second = (one.model_dump_json() for one in profiles(clusters, secret_buyers=buyers))
    assert ("Secret" in first) == told
    assert ("hoard" in first) == told
    assert "ecret" not in second + (first if not told else "")


def test_figures_of_a_small_segment_are_withheld() -> None:
    first, second = profiles(size=61)
    assert first == SegmentProfile(
        segment_id=4,
        label="All-round",
        user_count=0,
        share=0,
        mean_distance=0,
        silhouette=0,
        description="Fewer than 61 users; figures of so small a segment are withheld.",
    )
    assert second.user_count == 240
    assert second.description.startswith("80 % of users")


def test_the_only_segment_has_share_1_even_if_withheld() -> None:
    [only] = profiles(np.zeros(49, np.intp))
    assert (only.user_count, only.share, only.traits, only.activity) == (0, 1.0, (), None)
    assert only.description == "Fewer than 50 users; figures of so small a segment are withheld."


def test_exemplars_are_the_nearest_and_the_farthest() -> None:
    clusters = np.repeat([0, 1], [25, 3])
    distances = np.concatenate([np.linspace(0.1, 0.9, 25), [0.5, 0.4, 0.6]])
    users = pl.Series([f"u{row:02}" for row in range(28)])
    found = exemplars_of(Members(clusters, distances, np.zeros((28, 2))), [7, 3], users)
    assert found.columns == ["segment_id", "kind", "rank", "user_id", "distance"]

    def of(segment_id: int, kind: str) -> list[str]:
        rows = found.filter(pl.col("segment_id") == segment_id, pl.col("kind") == kind).sort("rank")
        return rows["user_id"].to_list()

    assert of(7, "nearest") == [f"u{row:02}" for row in range(10)]
    assert of(7, "farthest") == [f"u{row:02}" for row in range(24, 14, -1)]
    assert of(3, "nearest") == ["u26", "u25", "u27"]
    assert of(3, "farthest") == ["u27", "u25", "u26"]
    assert found["rank"].min() == 1


def test_one_cluster_has_no_silhouette() -> None:
    members = Members(np.zeros(10, np.intp), np.zeros(10), np.random.default_rng(0).normal(size=(10, 3)))
    assert silhouettes_of(members, 1, seed=0).tolist() == [0.0]
