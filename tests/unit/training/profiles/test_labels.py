"""Labels and sentences say what the figures say, in words that people write."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.profiles import Activity, SegmentProfile, Trait
from training.profiles.labels import LONGEST_NAME, descriptions_of, display_name, labels_of, percent_text, times_text


def trait(kind: str, name: str, share: float = 0.5, lift: float = 2.0) -> Trait:
    return Trait(kind=kind, name=name, share=share, lift=lift)


@pytest.mark.parametrize(
    ("own", "label"),
    [
        ([], "All-round"),
        ([trait("category", "BABY FOODS"), trait("category", "Diapers")], "Baby foods · Diapers"),
        ([trait("time", "6–12 h UTC"), trait("category", "Beer"), trait("category", "Wine")], "Beer · Wine"),
        ([trait("action", "view"), trait("item", "Alien (1979)")], "Alien (1979) · view"),
        ([trait("action", "view")], "view"),
    ],
)
def test_labels_say_what_sets_apart(own: list[Trait], label: str) -> None:
    assert labels_of([own], [100]) == [label]


def test_labels_lead_with_what_sets_a_segment_apart_most() -> None:
    strong, weak = trait("category", "Produce", 0.5, 3.0), trait("category", "Produce", 0.4, 1.3)
    yogurt, fruit = trait("category", "Yogurt", 0.2, 1.2), trait("category", "Fruit", 0.1, 1.2)
    labels = labels_of([[weak, yogurt], [strong], [weak, fruit]], [50] * 3)
    assert labels == ["Yogurt · Produce", "Produce", "Fruit · Produce"]


def test_no_two_labels_hold_the_same_names() -> None:
    common = [trait("category", "Beer"), trait("category", "Wine")]
    nuts, crisps = trait("category", "Nuts", 0.1, 1.2), trait("category", "Crisps", 0.1, 1.2)
    assert labels_of([[*common, nuts], [*common[::-1], crisps]], [50] * 2) == ["Beer · Wine", "Wine · Crisps"]
    assert labels_of([common] * 4 + [[], []], [50] * 6) == [
        "Beer · Wine",
        "Wine",
        "Beer (1)",
        "Beer (2)",
        "All-round (1)",
        "All-round (2)",
    ]


def test_what_hardly_anybody_does_names_no_segment() -> None:
    salad = Trait(kind="category", name="Salad bar", share=0.01, lift=2.4, lift_low=2.0, user_count=90)
    rare = Trait(kind="category", name="Pet food", share=0.2, lift=2.4, lift_low=2.0, user_count=9)
    beer = Trait(kind="category", name="Beer", share=0.03, lift=1.2, lift_low=1.1, user_count=10)
    assert labels_of([[salad, rare, beer]], [100]) == ["Beer"]
    assert labels_of([[salad, rare]], [100]) == ["All-round"]
    sentences = descriptions_of(
        [profile(traits=(salad, rare, beer), user_count=100), profile(2, user_count=100, traits=(salad, rare))]
    )
    assert sentences[0] == "12 % of users; 3 % of their events are Beer, 1.2 times the share among all users."
    assert sentences[1] == "12 % of users; little sets them apart from all users."


def test_words_are_not_shouted() -> None:
    assert display_name("FRZN  MEAT/MEAT DINNERS") == "Frzn meat/meat dinners"
    assert display_name("Sci-Fi") == "Sci-Fi"
    assert display_name("饮料") == "饮料"


def profile(segment_id: int = 1, share: float = 0.12, **figures: object) -> SegmentProfile:
    fields = {"label": "", "user_count": 120, "mean_distance": 0.1, "silhouette": 0.2} | figures
    return SegmentProfile.model_validate({"segment_id": segment_id, "share": share} | fields)


def activity(events: float) -> Activity:
    return Activity(mean_events=events, median_events=1, mean_active_days=1, mean_days_since_last=1)


def test_a_description_has_traits_amount_and_time() -> None:
    drinks = trait("category", "SOFT DRINKS", 0.24, 3.12)
    beer = trait("category", "Beer", 0.1, 2.2)
    late = trait("time", "18–24 h UTC", 0.6, 1.4)
    weekends, even = (0.1,) * 5 + (0.25,) * 2, (0.16,) * 5 + (0.1,) * 2
    one = profile(traits=(drinks, beer, late), activity=activity(21), weekdays=weekends, growth=0.234)
    rest = profile(2, 0.88, user_count=880, activity=activity(14), weekdays=even)
    assert descriptions_of([one, rest]) == [
        "12 % of users; 24 % of their events are Soft drinks, 3.1 times the share among all users, and 10 % Beer, "
        "2.2 times; more on weekends than others, mostly at 18–24 h UTC; 1.4 times the events of the average user; "
        "their share of the active users is lately 23 % larger than before.",
        "88 % of users; nothing sets them apart from all users.",
    ]


def test_items_stand_in_for_categories_and_actions_for_both() -> None:
    items = [trait("item", "Alien (1979)"), trait("action", "view")]
    assert "are Alien (1979), " in descriptions_of([profile(traits=tuple(items))])[0]
    assert "are view, " in descriptions_of([profile(traits=tuple(items[1:]))])[0]


def test_a_description_with_weekends_only_names_the_zone() -> None:
    weekend = profile(weekdays=(0,) * 5 + (0.5, 0.5), activity=activity(5))
    rest = profile(2, 0.3, weekdays=(0.2,) * 5 + (0, 0), activity=activity(5))
    assert descriptions_of([weekend, rest])[0] == "12 % of users; mostly on weekends (UTC)."
    zoned = descriptions_of([weekend, rest], "Europe/Berlin")[0]
    assert zoned == "12 % of users; mostly on weekends (Europe/Berlin)."


def test_equal_descriptions_get_the_segment_id() -> None:
    assert descriptions_of([profile(3), profile(8)]) == [
        "Segment 3: 12 % of users; nothing sets them apart from all users.",
        "Segment 8: 12 % of users; nothing sets them apart from all users.",
    ]


def test_the_description_of_the_only_segment() -> None:
    assert descriptions_of([profile(share=1.0)]) == ["All users in one segment; there is no other to differ from."]


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0 %"), (0.001, "under 1 %"), (0.125, "12 %"), (0.9999, "over 99 %"), (1, "100 %")]
)
def test_shares_in_words(share: float, text: str) -> None:
    assert percent_text(share) == text


@pytest.mark.parametrize(("ratio", "text"), [(0.04, "less than 0.1 times"), (3.14, "3.1 times"), (31.4, "31 times")])
def test_ratios_in_words(ratio: float, text: str) -> None:
    assert times_text(ratio) == text


_SHARE = r"\d+ %|under 1 %|over 99 %"
_TIMES = r"(?:less than )?[\d.]+ times"
SHARES = st.floats(0, 1)
RATIOS = st.floats(0, 1e6)
TRAITS = st.builds(
    Trait,
    kind=st.sampled_from(["category", "item", "action", "time"]),
    name=st.text(max_size=80),
    share=SHARES,
    lift=st.floats(1.15, 1e6),
)
WEEKS = st.one_of(
    st.just(()), st.lists(st.integers(1, 1000), min_size=7, max_size=7).map(lambda n: tuple(i / sum(n) for i in n))
)


@st.composite
def profiles(draw: st.DrawFn) -> list[SegmentProfile]:
    return [
        profile(
            number,
            draw(SHARES),
            user_count=draw(st.integers(1, 10**9)),
            traits=tuple(draw(st.lists(TRAITS, max_size=4))),
            growth=draw(st.one_of(st.none(), st.floats(-1, 1e6))),
            activity=draw(st.one_of(st.none(), st.floats(0, 1e9, allow_subnormal=False).map(activity))),
            weekdays=draw(WEEKS),
        )
        for number in range(1, 1 + draw(st.integers(1, 4)))
    ]


@given(profiles())
@settings(max_examples=300, deadline=None)
def test_descriptions_are_complete_single_lines_and_distinct(own: list[SegmentProfile]) -> None:
    sentences = descriptions_of(own)
    assert len(set(sentences)) == len(sentences) == len(own)
    for sentence in sentences:
        assert sentence.endswith(".")
        assert sentence.splitlines() == [sentence]
        assert len(sentence) < 300 + 2 * LONGEST_NAME


@given(profiles())
@settings(max_examples=300, deadline=None)
def test_descriptions_agree_with_the_figures(own: list[SegmentProfile]) -> None:
    """Names are cut out first, since they may look like figures; then every claim is looked up."""
    plain = [one.model_copy(update={"traits": tuple(_lettered(one.traits))}) for one in own]
    for one, sentence in zip(plain, descriptions_of(plain), strict=True):
        assert not re.search(r"None|nan|inf\b", sentence)
        assert percent_text(one.share).lower() in sentence.lower() or one.share == 1
        claims = re.findall(rf"({_SHARE}) (?:of their events are )?(N[abcd]), ({_TIMES})", sentence)
        assert len(claims) == len(re.findall(r"(?<!at )N[abcd]", sentence))
        for claim in claims:
            assert claim in [(percent_text(t.share), t.name, times_text(t.lift)) for t in one.traits]
        weekend = sum(one.weekdays[5:])
        assert "mostly on weekends" not in sentence or weekend > 0.5
        for ratio in re.findall(rf"({_TIMES}) the events of the average user", sentence):
            said = 0.0 if ratio.startswith("less") else float(ratio.split()[0])
            assert said == pytest.approx(events_of(one) / mean_events(plain), abs=0.1, rel=0.05)
        assert ("larger than before" in sentence) <= ((one.growth or 0) > 0)
        assert ("smaller than before" in sentence) <= ((one.growth or 0) < 0)
        for hours in re.findall(r"(mostly|more) at (\w+)", sentence):
            assert any(t.kind == "time" and t.name == hours[1] for t in one.traits)


def events_of(one: SegmentProfile) -> float:
    assert one.activity is not None
    return one.activity.mean_events


def mean_events(own: list[SegmentProfile]) -> float:
    known = [one for one in own if one.activity]
    return sum(one.user_count * events_of(one) for one in known) / sum(one.user_count for one in known)


def _lettered(traits: tuple[Trait, ...]) -> list[Trait]:
    return [trait.model_copy(update={"name": f"N{'abcd'[place]}"}) for place, trait in enumerate(traits)]


@given(st.text())
@settings(deadline=None)
def test_display_names_are_one_visible_line(name: str) -> None:
    words = display_name(name)
    assert words == words.strip()
    assert words.replace("\u200c", "").replace("\u200d", "").isprintable()
    assert display_name(words) == words


@given(st.lists(st.lists(TRAITS, max_size=4), min_size=1, max_size=5))
@settings(deadline=None)
def test_labels_are_never_empty(own: list[list[Trait]]) -> None:
    assert all(label.strip() for label in labels_of(own, [100] * len(own)))
