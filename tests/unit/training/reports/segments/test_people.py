"""The facts of segments' users, on events that can be counted by hand."""

from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from server.core.profiles import SegmentProfile
from training.reports.segments.card_wording import border_in_words, trust_in_words, trust_sentences, typical_in_words
from training.reports.segments.content import Card
from training.reports.segments.people import STORY_USERS, Label, Sources, Story, Week, people_by_segment
from training.segments.trust import SegmentTrust

SUNDAY_LATE = datetime(2024, 3, 3, 23, 30, tzinfo=UTC)
USERS = 70


def sources(**changes: object) -> Sources:
    """Two segments of 70 users; all of 1 are old and of 2 young; the even users of 1 chose `tea`, all chose `milk`."""
    rows = []
    for number in range(2 * USERS):
        segment_id, user = 1 + number // USERS, f"u{number}"
        items = ["milk", *(["tea"] if segment_id == 1 and number % 2 == 0 else [])]
        for week in range(6 if segment_id == 1 else 1):
            time = int((SUNDAY_LATE + timedelta(weeks=week)).timestamp() * 1000)
            rows += [(user, item, time, 2.0 if segment_id == 1 else 1.0) for item in items]
    frame = pl.LazyFrame(rows, schema=["user_id", "item_id", "timestamp", "value"], orient="row")
    ids = [f"u{number}" for number in range(2 * USERS)]
    assignments = pl.DataFrame(
        {
            "user_id": ids,
            "segment_id": [1] * USERS + [2] * USERS,
            "distance": [float(number % USERS) for number in range(2 * USERS)],
            "confidence": [1 - (number % USERS) / 100 for number in range(2 * USERS)],
            "runner_up_segment_id": [2] * USERS + [1] * USERS,
        }
    )
    users = pl.DataFrame({"user_id": ids, "age": ["65+"] * USERS + ["18"] * USERS, "name": ids})
    fields = {"users": users, "has_clock": True, "time_zone": "Asia/Tokyo", "least": 5} | changes
    return Sources(events=frame, assignments=assignments, titles={"tea": "Green tea"}, **fields)  # type: ignore[arg-type]


def test_hours_weekdays_and_weeks_are_local() -> None:
    first, second = (people_by_segment(sources())[number] for number in (1, 2))
    assert first.hours[8] == 1.0
    assert first.weekdays[0] == 1.0
    assert first.weeks[:2] == (Week(date(2024, 3, 4), USERS), Week(date(2024, 3, 11), USERS))
    assert [week.users for week in second.weeks] == [USERS, *[None] * (len(first.weeks) - 1)]
    assert people_by_segment(sources(time_zone="UTC"))[1].weekdays[6] == 1.0
    assert people_by_segment(sources(has_clock=False))[1].hours == ()


def test_values_are_totals_and_shares() -> None:
    found = people_by_segment(sources())
    value = 6 * 2.0 * (USERS + USERS / 2)
    assert (found[1].value, found[1].value_share) == (value, pytest.approx(value / (value + USERS)))


def test_labels_that_a_segment_has_more_often_are_told_and_names_are_not() -> None:
    found = people_by_segment(sources())
    assert found[1].labels == (Label("age", "65+", 1.0, 2.0),)
    assert found[2].labels == (Label("age", "18", 1.0, 2.0),)
    assert people_by_segment(sources(least=USERS + 1))[1].labels == ()
    assert people_by_segment(sources(users=None))[1].labels == ()


def test_stories_are_of_what_several_users_have_in_common() -> None:
    first = people_by_segment(sources())[1]
    assert first.typical == Story(STORY_USERS, 9.0, (("Green tea", STORY_USERS // 2), ("milk", STORY_USERS)), 2)
    assert first.border is not None
    assert first.border.items[0] == ("Green tea", STORY_USERS // 2)
    assert people_by_segment(sources(least=STORY_USERS + 1))[1].typical == Story(STORY_USERS, 9.0, (), 2)
    assert typical_in_words(first.typical) == (
        "The 20 most typical users: median 9 events; many chose Green tea (10) and milk (20)."
    )
    assert border_in_words(first.border, {2: "2 Young"}).startswith(
        "The 20 users at its border, mostly near “2 Young”: "
    )


def card(segment_id: int, reproduced: float | None, halves: float | None) -> Card:
    profile = SegmentProfile(segment_id=segment_id, label="", user_count=9, share=0.5, mean_distance=0, silhouette=0)
    trust = SegmentTrust(segment_id=segment_id, reproduced=reproduced, halves=halves)
    return Card(profile, (), (), trust=trust)


def test_the_trust_says_what_segments_can_be_used_for() -> None:
    cards = [card(1, 0.9, 0.6), card(2, 0.6, 0.6), card(3, 0.2, 0.0), card(4, 0.8, 0.5), card(5, None, None)]
    said = trust_sentences(cards)
    assert [sentence.split(":")[0] for sentence in said] == [
        "Segments 1 and 4 are steady",
        "Segment 2 is loose",
        "Segment 3 is noise",
    ]
    assert said[2].endswith("do not act on it.")
    assert "90\xa0%" in trust_in_words(cards[0])
    assert trust_in_words(cards[4]) == ""
