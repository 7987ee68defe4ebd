"""What a report tells and keeps to itself, on runs of planted logs."""

import json
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from segrec.visible import visible_lines

from server.core.figures import AS_SERVED, NEXT_VISIT, STRATEGIES, Figure
from server.core.profiles import Change, Flow, SegmentProfile
from server.core.repository.segment_notes import SegmentNote, SegmentNotes, write_segment_notes
from tests.e2e.test_segment import GROUPS, exported_run
from tests.support.reports import fill, set_least, write_moves, write_sweep
from training.config import ReportSettings
from training.evaluation.results import METRICS, RANKS
from training.publish.publish import publish
from training.ranking.served import SERVED_NDCG
from training.reports import wording as figures
from training.reports.page import Picture, inlined
from training.reports.segments import wording as words
from training.reports.segments.charts import usual_rhythm
from training.reports.segments.content import Content, UserMap, read_content
from training.reports.segments.flows import alluvial
from training.reports.segments.report import report
from training.reports.segments.sweep_charts import read_sweep_chart
from training.reports.segments.user_map import middles, pushed_apart
from training.reports.style import COLOURS, NARROW, SHAPES, WIDE, colour_of, shape_of
from training.runs import Run
from training.segments.result import Segmentation
from training.segments.segment import segment

EVIL = "<script>alert(1)</script>[/view]\x1b[31m\x9b\u202e\n\tend"


def segmented_run(directory: Path) -> Run:
    """A run with segments of 30 users each, of which all may be told; nobody could be tested on."""
    run = exported_run(directory, users=120, min_segment_size=10)
    record = run.record()
    record["stages"]["evaluate"]["state"] = "failed"
    (run.path / "run.json").write_text(json.dumps(record))
    segment(run, directory / "repository")
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return segmented_run(tmp_path_factory.mktemp("report"))


@pytest.fixture
def own(tmp_path: Path) -> Run:
    """A run that a test may change."""
    return segmented_run(tmp_path)


def content_of(run: Run) -> Content:
    return read_content(run, run.path.parents[1] / "repository")


def page(run: Run) -> str:
    return report(run, run.path.parents[1] / "repository").read_text(encoding="utf-8")


def test_cards_are_of_all_segments_the_largest_first(run: Run) -> None:
    cards = content_of(run).cards
    assert len(cards) == GROUPS
    assert [card.profile.user_count for card in cards] == sorted((c.profile.user_count for c in cards), reverse=True)


def test_the_best_by_lift_stand_beside_the_best_by_share(own: Run) -> None:
    catalogue = pl.read_parquet(own.path / "segment" / "items.parquet")
    titles = dict(catalogue.select("item_id", "title").iter_rows())
    segmentation, cards = Segmentation.read(own.path / "segment"), content_of(own).cards
    for card in cards:
        assert [item.title for item in card.top_items] == [titles[i.item_id] for i in card.profile.top_items[:6]]
        assert [item.lift_low for item in card.particular_items] == [
            item.lift_low for item in card.profile.particular_items[:6]
        ]
    text = page(own)
    assert text.count("Items that most of its users chose") == text.count("Items that set it apart") == GROUPS
    assert "Its users choose no item clearly more often than all users." not in text
    overlap = segmentation.top_items_overlap
    assert overlap is not None
    assert f"{figures.percent(overlap.mean)} in common on average" in text
    [first, *others] = segmentation.profiles
    quiet = first.model_copy(update={"particular_items": ()}), *others
    segmentation.model_copy(update={"profiles": quiet, "top_items_overlap": None}).write(own.path / "segment")
    text = page(own)
    assert text.count("Its users choose no item clearly more often than all users.") == 1
    assert "in common on average" not in text


def test_what_people_say_about_a_segment_is_on_its_card(own: Run) -> None:
    repository = own.path.parents[1] / "repository"
    segment_id = Segmentation.read(own.path / "segment").profiles[0].segment_id
    note = SegmentNote(name="Weekend <families>", note="Mailed in spring", tags=("mail",), owner="Ana")
    repository.mkdir(exist_ok=True)
    write_segment_notes(repository, SegmentNotes(segments={segment_id: note}))
    text = page(own)
    assert "</span>Weekend &lt;families&gt;</h3>" in text
    assert "owner: Ana" in text
    assert ">mail</span>" in text
    assert "Mailed in spring" in text


def test_trust_and_time_zone_and_a_training_out_of_time_are_told(own: Run) -> None:
    assert "its time was up" not in page(own)
    record = own.record()
    record["stages"]["train"]["figures"]["stopped"] = "time"
    (own.path / "run.json").write_text(json.dumps(record))
    settings = ReportSettings(time_zone="Asia/Tokyo", value_unit="$")
    text = report(own, own.path.parents[1] / "repository", settings=settings).read_text(encoding="utf-8")
    # At the top in words that everybody understands; the setting stands with the training.
    order = ["the segments can be used for", "was still learning when its time was up: more time", 'id="h-training"']
    order.append("its time was up (<code>[train] max_minutes</code>)")
    assert sorted(order, key=text.index) == order
    assert text.count("max_minutes") == 1
    assert "What the segments can be used for" in text
    assert text.count('class="trust ') == GROUPS
    assert "h Asia/Tokyo (" in text
    assert "h UTC (" not in text


def test_remarks_for_those_who_train_come_after_what_readers_need(own: Run) -> None:
    fill(own, "Of the ranking, by `trend`.")
    text = page(own)
    assert text.count("Of the ranking, by <code>trend</code>.") == 1
    order = ["the segments can be used for", 'href="#remarks"', 'id="h-training"', 'id="remarks"', "Of the ranking"]
    assert sorted(order, key=text.index) == order


def test_what_is_missing_is_said_in_a_sentence(run: Run) -> None:
    absent = content_of(run).absent
    assert set(absent) == {"sweep", "moves", "quality", "curves"}
    text = page(run)
    for sentence in absent.values():
        assert sentence.endswith(".")
        assert sentence.split("`")[0] in text
    assert "<code>--k auto</code> compares" in text


def test_a_stale_evaluation_is_not_told(own: Run) -> None:
    with own.stage("evaluate"):
        pass
    with own.stage("train"):
        pass
    with own.stage("export"):
        pass
    segment(own, own.path / "repository")
    assert "repeated after evaluate" in content_of(own).absent["quality"]


def test_texts_of_the_log_are_neither_html_nor_control_characters(own: Run) -> None:
    fill(own, f"A note with {EVIL}.", trait=EVIL)
    items = own.path / "segment" / "items.parquet"
    pl.read_parquet(items).with_columns(pl.lit(f"Title {EVIL}").alias("title")).write_parquet(items)
    segmentation = json.loads((own.path / "segment" / "segmentation.json").read_text())
    for profile in segmentation["profiles"]:
        profile["label"] = f"{EVIL} {profile['segment_id']}"
    (own.path / "segment" / "segmentation.json").write_text(json.dumps(segmentation))
    text = page(own)
    assert r"alert(1)&lt;/script&gt;[/view]\u001b[31m\u009b\u202e\n\tend" in text
    assert "<script" not in text
    assert visible_lines(text) == text


def test_small_groups_are_told_nowhere(own: Run) -> None:
    segmentation = fill(own)
    small = segmentation.profiles[0].model_copy(update={"user_count": 9, "label": "The nine"})
    others = tuple(p.model_copy(update={"user_count": 37}) for p in segmentation.profiles[1:])
    segmentation.model_copy(update={"profiles": (small, *others)}).write(own.path / "segment")
    write_moves(
        own,
        1,
        Flow(from_segment_id=2, to_segment_id=2, user_count=30, share=0.83),
        Flow(from_segment_id=3, to_segment_id=2, user_count=7, share=0.17),
    )
    found = content_of(own)
    assert small.segment_id not in found.user_map.segment_ids
    assert len(found.user_map.points) == 90
    assert found.moves is not None
    assert [flow.user_count for flow in found.moves.migration.flows] == [30]
    text = page(own)
    assert "The nine" not in text
    assert "Segments of fewer than 10 users are not shown" in text
    assert not (own.path / "report" / f"rhythm-{small.segment_id}.png").exists()


def test_nothing_to_tell_is_a_page_too(own: Run) -> None:
    set_least(own, 1000)
    text = page(own)
    assert "All segments have fewer than 1000 users" in text
    assert 'class="card"' not in text


def test_no_user_is_named(own: Run) -> None:
    fill(own)
    text = page(own)
    assert not [
        user_id
        for user_id in pl.read_parquet(own.path / "segment" / "assignments.parquet")["user_id"]
        if user_id in text
    ]


def test_quality_is_by_segment_of_the_users_tested(own: Run) -> None:
    placed = pl.read_parquet(own.path / "segment" / "assignments.parquet")
    first = placed["segment_id"][0]
    rank = pl.when(pl.col("segment_id") == first).then(0).otherwise(10).cast(pl.Int64)
    columns = pl.lit(AS_SERVED).alias("protocol"), "user_id", pl.lit("i").alias("item_id"), rank.alias("rank")
    with own.stage("evaluate") as stage:
        placed.select(*columns).write_parquet(stage.directory / RANKS)
        result = {"protocol": AS_SERVED, "method": "encoder", "users": 120, "figures": {"hr@10": 0.25, "ndcg@10": 0.25}}
        result |= {"interval": [0.2, 0.3], "hr_interval": [0.2, 0.3], "slices": []}
        (stage.directory / METRICS).write_text(json.dumps({"results": [result], "notes": []}))
    quality = content_of(own).quality
    assert quality is not None
    assert {one.segment_id: (one.users, one.hr, one.ndcg) for one in quality.slices} == {
        number: (30, 1.0, 1.0) if number == first else (30, 0.0, 0.0) for number in placed["segment_id"].unique()
    }
    assert all(one.hr_interval == (one.hr, one.hr) for one in quality.slices)
    set_least(own, 31)
    assert content_of(own).quality is not None
    assert not content_of(own).quality.slices  # type: ignore[union-attr]


def figure(method: str, metric: str, value: float) -> Figure:
    return Figure(protocol=NEXT_VISIT, method=method, metric=metric, k=10, value=value)


def test_quality_is_that_of_the_release_as_served(own: Run) -> None:
    directory = own.path / "segment"
    placed = pl.read_parquet(directory / "assignments.parquet")
    first = placed["segment_id"][0]
    hit = pl.when(pl.col("segment_id") == first).then(0.5).otherwise(0.0).cast(pl.Float32)
    placed.select("user_id", hybrid=hit).write_parquet(directory / SERVED_NDCG)
    values = {
        (method, metric): number / 16 for number, (method, metric) in enumerate(product(STRATEGIES, ("hr", "ndcg")))
    }
    served = tuple(figure(method, metric, value) for (method, metric), value in values.items())
    Segmentation.read(directory).model_copy(update={"figures": served}).write(directory)
    ranks = pl.lit(NEXT_VISIT).alias("protocol"), "user_id", pl.lit("i").alias("item_id"), pl.lit(0).alias("rank")
    with own.stage("evaluate") as stage:
        placed.select(*ranks).write_parquet(stage.directory / RANKS)
        result = {"protocol": NEXT_VISIT, "method": "encoder", "users": 120, "figures": {"hr@10": 0.9, "ndcg@10": 0.8}}
        result |= {"interval": [0.2, 0.3], "hr_interval": [0.2, 0.3], "slices": []}
        (stage.directory / METRICS).write_text(json.dumps({"results": [result], "notes": []}))
    quality = content_of(own).quality
    assert quality is not None
    assert (quality.overall.hr, quality.overall.ndcg) == (values["hybrid", "hr"], values["hybrid", "ndcg"])
    assert {one.segment_id: (one.users, one.hr, one.ndcg) for one in quality.slices} == {
        number: (30, 1.0, 0.5) if number == first else (30, 0.0, 0.0) for number in placed["segment_id"].unique()
    }
    # "personal" is the encoder's
    assert [one.method for one in quality.methods] == ["hybrid", "personal", "segment", "popular"]
    text = page(own)
    share = figures.percent(values["hybrid", "hr"])
    sentence = "of users chose at their next visit at least one of the ten items that the release recommends to them"
    popular = figures.percent(values["popular", "hr"])
    assert f"<strong>{share}</strong> {sentence}; of the ten most popular items, {popular}." in text


def test_the_sweep_is_read_with_what_it_has(own: Run) -> None:
    write_sweep(own, chosen=4)
    sweep = read_sweep_chart(own.path / "segment" / "k_sweep.json")
    keys = [measure.key for measure in sweep.measures()]
    assert keys[:2] == ["lift", "stability"]
    assert "halves" not in keys
    (k, first), (_, second) = sweep.rows[:2]
    stability = sweep.measures()[1]
    assert (k, sweep.cell(first, stability), sweep.cell(second, stability)) == (2, "–", "0.87")
    assert sweep.cell(second, sweep.measures()[0]) == "1.23 ± 0.04"
    assert content_of(own).sweep == sweep
    with own.stage("export"):
        pass
    with own.stage("segment"):
        pass
    assert "earlier encoder" in content_of(own).absent["sweep"]


def test_why_k_was_chosen_stands_where_k_is_told_and_nowhere_else(own: Run) -> None:
    fill(own, "Take care.", "Because four fit.")
    write_sweep(own, chosen=4, reason="Because four fit.")
    text = page(own)
    assert text.count("Because four fit.") == 1
    assert text.count("Take care.") == 1


def test_the_release_before_lends_its_names(own: Run) -> None:
    repository = own.path.parents[1] / "repository"
    publish(own, repository)
    write_moves(own, 1, Flow(from_segment_id=1, to_segment_id=1, user_count=30, share=1.0))
    found = read_content(own, repository).moves
    assert found is not None
    assert len(found.previous) == GROUPS
    elsewhere = read_content(own, own.path / "nowhere").moves
    assert elsewhere is not None
    assert elsewhere.previous == ()


def flow(start: int, end: int, users: int, share: float = 0.5) -> Flow:
    return Flow(from_segment_id=start, to_segment_id=end, user_count=users, share=share)


def test_moves_are_told_in_sentences(own: Run) -> None:
    publish(own, own.path.parents[1] / "repository")
    flows = flow(1, 1, 28), flow(3, 2, 20, 0.8), flow(0, 4, 12)
    splits = (Change(from_segment_ids=(1,), to_segment_ids=(1, 4)),)
    write_moves(own, 1, *flows, splits=splits, born_segment_ids=(4,), retired_segment_ids=(3,))
    found = content_of(own)
    assert found.moves is not None
    names = {card.profile.segment_id: card.name for card in found.cards}
    assert list(words.moves_in_words(found, found.moves)) == [
        "Of 48 users known to both releases, at least 58\xa0% are in the same segment as before.",
        f"“{names[4]}” is new.",
        f"“{names[3]}” is gone; 80\xa0% of its users are in “{names[2]}” now.",
        "Segment 1 split into segments 1 and 4.",
    ]
    write_moves(own, 1, flow(1, 1, 30))
    quiet = content_of(own)
    assert quiet.moves is not None
    assert "No segment is new, gone, split or merged." in list(words.moves_in_words(quiet, quiet.moves))


def test_bands_fill_the_bars_they_join() -> None:
    flows = [flow(1, 1, 60), flow(1, 2, 20), flow(2, 2, 40), flow(0, 2, 30), flow(9, 3, 10)]
    layout = alluvial(flows, [2, 1, 3], body=160, gap=20)
    assert [node.segment_id for node in layout.right] == [2, 1, 3]
    assert layout.left[-1].segment_id == 0
    assert layout.height == 160 + 3 * 20
    for side in (layout.left, layout.right):
        assert all(node.bottom - node.top == pytest.approx(node.users) for node in side)
        assert all(upper.bottom < lower.top for upper, lower in pairwise(side))
    for node in layout.left:
        own = [band for band in layout.bands if band.flow.from_segment_id == node.segment_id]
        assert own[0].upper[0] == pytest.approx(node.top)
        assert own[-1].lower[0] == pytest.approx(node.bottom)
    for node in layout.right:
        own = [band for band in layout.bands if band.flow.to_segment_id == node.segment_id]
        assert min(band.upper[-1] for band in own) == pytest.approx(node.top)
        assert max(band.lower[-1] for band in own) == pytest.approx(node.bottom)


def test_numbers_on_the_map_do_not_cover_each_other() -> None:
    places = np.array([[10.0, 10.0], [10.0, 10.0], [12.0, 10.0], [300.0, 200.0]])
    moved = pushed_apart(places, 26.0)
    gaps = np.linalg.norm(moved[:, None] - moved[None], axis=2)[np.triu_indices(4, 1)]
    assert gaps.min() >= 25.9
    np.testing.assert_allclose(moved[3], places[3], atol=1e-5)


def test_no_two_segments_look_the_same() -> None:
    looks = {(colour_of(number), shape_of(number)) for number in range(1, 57)}
    assert len(looks) == 56 == len(COLOURS) * len(SHAPES)


def test_everyone_is_the_mean_over_events() -> None:
    busy, quiet = (
        SegmentProfile.model_validate(
            {"segment_id": number, "label": "", "user_count": 10, "share": 0.5, "mean_distance": 0, "silhouette": 0}
            | {"hours": hours}
            | {
                "activity": {
                    "mean_events": events,
                    "median_events": 1,
                    "mean_active_days": 1,
                    "mean_days_since_last": 1,
                }
            }
        )
        for number, events, hours in ((1, 30, (1.0, 0.0)), (2, 10, (0.0, 1.0)))
    )
    assert usual_rhythm([busy, quiet]) == {"hours": [0.75, 0.25]}
    assert usual_rhythm([busy, quiet.model_copy(update={"hours": ()})]) == {}
    assert usual_rhythm([]) == {}


def test_inlined_pictures_have_a_name_and_ids_of_their_own() -> None:
    svg = '<svg class="marks" width="9" height="5" viewBox="0 0 9 5"><clipPath id="c1"/><g clip-path="url(#c1)"/></svg>'
    picture = Picture("map", 'A "map" <of> users', lambda page: pytest.fail("not drawn here"))
    wide, narrow = (inlined(picture, page, svg) for page in (WIDE, NARROW))
    assert 'role="img" aria-label="A &#34;map&#34; &lt;of&gt; users"' in wide
    assert 'id="map-wide-c1"' in wide
    assert "url(#map-wide-c1)" in wide
    assert 'id="map-narrow-c1"' in narrow


@pytest.mark.parametrize(
    ("write", "number", "text"),
    [
        (figures.percent, 0.123, "12\xa0%"),
        (figures.percent, 0.0004, "<\xa01\xa0%"),
        (figures.percent, 0.0, "0\xa0%"),
        (figures.signed_percent, -0.043, "−4\xa0%"),
        (figures.signed_percent, 0.2, "+20\xa0%"),
        (figures.signed_percent, 0.004, "0\xa0%"),
        (figures.signed_percent, -0.004, "0\xa0%"),
        (figures.figure, 1234.5, "1,234"),
        (figures.figure, 24.31, "24.3"),
    ],
)
def test_figures_are_written_as_people_do(write: Callable[[float], str], number: float, text: str) -> None:
    assert write(number) == text


def test_lists_are_written_as_people_do() -> None:
    assert figures.segments_in_words([3]) == "segment 3"
    assert figures.segments_in_words([3, 9, 11]) == "segments 3, 9 and 11"


def test_the_page_goes_where_it_is_wanted_and_spares_what_is_there(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(b"mine")
    written = report(run, run.path.parents[1] / "repository", tmp_path)
    assert written == tmp_path / "report.html"
    assert (tmp_path / "mine.png").read_bytes() == b"mine"
    for name in ("sizes", "map"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    pictures = len(list(tmp_path.glob("*.png"))) - 1
    assert run.figures("report") == {"segments": GROUPS, "pictures": pictures}


def test_each_segment_has_its_number_in_its_middle(run: Run) -> None:
    found = content_of(run).user_map
    labels = middles(found, 800, 500)
    assert sorted(labels["text"]) == [str(number) for number in sorted(set(found.segment_ids.tolist()))]
    mine = found.points[found.segment_ids == int(labels["text"][0])]
    np.testing.assert_allclose(labels.select("x", "y").row(0), np.median(mine, axis=0), atol=1e-3)
    same = UserMap(np.zeros_like(found.points), found.segment_ids, (0.0, 0.0), found.user_count)
    places = middles(same, 800, 500).select("x", "y").to_numpy() * [800, 500]
    gaps = np.linalg.norm(places[:, None] - places[None], axis=2)[np.triu_indices(GROUPS, 1)]
    assert gaps.min() >= 25.9
