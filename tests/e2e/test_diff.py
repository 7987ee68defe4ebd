"""`segrec-train diff` on two real releases: what it says is what the server answers, and its page in a browser."""

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from playwright.sync_api import Browser, Page
from segrec import SegrecClient

from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_release
from tests.support.browser import CONTRAST, offline_page
from tests.support.segments import Place, released
from tests.support.server import START_SECONDS, StartServer
from training.config import Config
from training.reports.diff.answers import answers, draw_sample
from training.reports.diff.figures import Diff
from training.reports.diff.page import page_of
from training.segments.placement import read_events

NARROWEST, DESKTOP = 375, 1280
USERS = 240
LEAST = 10


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Release 1 with four segments and release 2 with three, of one encoder; release 3 of another one."""
    root = tmp_path_factory.mktemp("diff")
    place = released(root, users=USERS, items=40, segments=4, events_per_user=20)
    text = (root / "config.toml").read_text()
    (root / "other.toml").write_text(text.replace("[train]\n", "[train]\nseed = 7\n") + f"min_segment_size = {LEAST}\n")
    runs = ("--runs", place.runs)
    told = place.call("diff", 1, 2, *runs)
    assert told.exit_code == 1
    assert "diff compares two releases, and there is only release 1 in" in told.stderr
    for command in (
        ("segment", "--run", "one", "--k", 3),
        ("publish", "--run", "one", "--force", "rules win on so small a log"),
    ):
        assert place.call(*command, *runs).exit_code == 0
    files = ("--events", place.events, "--items", root / "items.parquet", "--config", root / "other.toml")
    assert place.call("run", *files, *runs, "--run", "two", "--force", "rules win on so small a log").exit_code == 0
    return place


def diff(place: Place, *words: object) -> Diff:
    out = place.path / "diff.json"
    result = place.call("diff", *words, "--runs", place.runs, "--json", out)
    assert result.exit_code == 0, result.output
    found = Diff.model_validate_json(out.read_bytes())
    assert f"from release {found.before} to release {found.after}" in result.output
    assert not re.search(r"u\d{5}", result.output + out.read_text())
    return found


def test_answers_are_those_of_the_server(start_server: StartServer, place: Place) -> None:
    """Segment and first items of every user by release 3, through Triton and gRPC."""
    before, after = (read_release(place.repository / MODEL_NAME / str(number)) for number in (2, 3))
    sample = draw_sample(read_events(place.events, Config(), before).events, USERS, 0)
    pair = answers(place.repository, before, after, sample)
    assert pair.users == USERS
    server = start_server(
        "--repository", str(place.repository), "--bootstrap-events", str(place.runs / "two/prepare/events.parquet")
    )
    server.wait_until_said("serving", START_SECONDS)
    users = sample.events["user_id"].unique(maintain_order=True).to_list()
    with SegrecClient(server.address, timeout_seconds=20) as client:
        online = [row.result.assignment.segment_id for row in client.stream_segment(users, chunk_size=100)]
        lists = [row.result for row in client.stream_recommend(users, chunk_size=100)]
    assert online == pair.after.segment_ids.tolist()
    ids = [*before.item_ids, *after.item_ids]
    same = 0
    for row, result in enumerate(lists):
        mine = [ids[code] for code in pair.after.items[row].tolist()]
        same += mine == [item.item_id for item in result.items]
        scores = [item.score for item in result.items]
        np.testing.assert_allclose(sorted(pair.after.scores[row].tolist(), reverse=True), scores, atol=1e-3)
    assert same >= 0.98 * USERS  # equal scores may change places


def test_segments_of_one_encoder_change_and_its_vectors_do_not(place: Place) -> None:
    found = diff(place, 1, 2)
    assert (found.users, found.user_count, found.compared) == (USERS, USERS, USERS)
    assert 0.05 < found.changed < 0.9
    assert found.vectors.same_encoder
    assert found.vectors.cosine == pytest.approx(1)
    assert found.vectors.neighbours == pytest.approx(1)
    assert found.same_test == "same"
    assert (found.catalogue.new, found.catalogue.gone) == (0, 0)
    assert all(value > 0 for value in found.microseconds)


def test_what_changes_is_what_the_runs_say(place: Place, tmp_path: Path) -> None:
    tables = []
    for number in (1, 3):
        out = tmp_path / f"{number}.parquet"
        words = ("members", "--release", number, "--events", place.events, "--out", out)
        assert place.call(*words).exit_code == 0
        tables.append(pl.read_parquet(out).sort("user_id"))
    before, after = (table["segment_id"].to_numpy() for table in tables)
    found = diff(place, 1, 3, "--events", place.events)
    assert found.changed == pytest.approx(float((before != after).mean()))
    assert not found.vectors.same_encoder
    assert found.vectors.cosine is None
    least = found.min_segment_size
    for flow in found.migration.flows:
        assert flow.user_count >= least
        if flow.from_segment_id:
            mine = (before == flow.from_segment_id) & (after == flow.to_segment_id)
            assert flow.user_count == mine.sum()


def test_a_sample_is_drawn_and_releases_have_names(place: Place) -> None:
    found = diff(place, "stable", 1, "--users", 50)
    assert (found.before, found.after, found.users, found.user_count) == (3, 1, 50, USERS)


def test_what_cannot_be_compared_is_said(place: Place, tmp_path: Path) -> None:
    def refused(*words: object) -> str:
        result = place.call("diff", *words)
        assert result.exit_code in (1, 2), result.output
        return result.stderr

    assert "Release 2 cannot be compared with itself" in refused(2, 2)
    assert "There is no release 9" in refused(1, 9)
    assert "There is no canary" in refused(1, "canary")
    assert "number or `newest`" in refused(1, "x")
    assert "give a log with --events" in refused(1, 2, "--runs", tmp_path)
    assert "give both, or none" in refused(1, 2, "--config", place.path / "config.toml")
    assert "there is no directory" in refused(1, 2, "--out", tmp_path / "none" / "x.html")
    pl.read_csv(place.events).with_columns(item_id=pl.lit("other")).write_csv(tmp_path / "strange.csv")
    assert "belongs to their catalogue" in refused(1, 2, "--events", tmp_path / "strange.csv")


@pytest.fixture(scope="module")
def written(place: Place) -> Path:
    out = place.path / "diff.html"
    result = place.call("diff", 1, 3, "--runs", place.runs, "--out", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def page(written: Path, browser: Browser) -> Iterator[Page]:
    with offline_page(browser, written, DESKTOP) as opened:
        yield opened


def test_the_page_says_everything(page: Page) -> None:
    assert page.title() == "Release 1 and release 3"
    assert re.search(r"from release 1 to release 3: \d+", page.locator(".lead").inner_text())
    targets = page.eval_on_selector_all("nav a", "links => links.map(link => link.getAttribute('href'))")
    assert len(targets) == 7
    assert all(page.locator(target).count() == 1 for target in targets)
    assert page.locator("svg:visible").count() == page.get_by_role("img").count() == 2
    assert page.get_by_role("img", name=re.compile("Bars of users by how many")).count() == 1
    assert not re.search(r"u\d{5}", page.content())
    assert page.locator("script").count() == 0


@pytest.mark.parametrize("width", [NARROWEST, 600, DESKTOP])
def test_nothing_sticks_out_and_texts_can_be_read(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(CONTRAST) == []
    boxes = page.eval_on_selector_all(
        "svg text", "texts => texts.map(one => one.getBoundingClientRect().toJSON()).filter(box => box.height > 0)"
    )
    assert min(box["height"] for box in boxes) >= 9
    assert min(box["left"] for box in boxes) >= 0
    assert max(box["right"] for box in boxes) <= width


def test_headings_come_in_order_and_it_can_be_printed(page: Page) -> None:
    levels = page.eval_on_selector_all("h1,h2,h3,h4", "all => all.map(one => Number(one.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 690, "height": 970})
    assert page.evaluate("document.documentElement.scrollWidth") == 690
    assert page.locator("#moves svg.wide").is_visible()


def test_labels_are_text_on_the_page(place: Place) -> None:
    releases = [read_release(place.repository / MODEL_NAME / str(number)) for number in (1, 3)]
    found = diff(place, 1, 3)
    evil = json.loads(found.model_dump_json())
    evil["segments"][0]["label_after"] = "<script>alert(1)</script>"
    page = page_of(Diff.model_validate(evil), *releases)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
