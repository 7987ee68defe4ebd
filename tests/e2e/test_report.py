"""The report of a real run, opened in a real browser without a network."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from typer.testing import CliRunner, Result

from server.core.profiles import Flow
from server.core.repository.segment_notes import SegmentNote, SegmentNotes, write_segment_notes
from tests.support.browser import CONTRAST, offline_page
from tests.support.logs import write_planted
from tests.support.reports import fill, write_moves, write_sweep
from training.cli.main import app
from training.runs import Run
from training.segments.result import Segmentation

SEGMENTS = 4
QUICK = f"""
[train]
embedding_dim = 16
layers = 1
heads = 1
epochs = 2
max_length = 8
[segment]
k = {SEGMENTS}
min_segment_size = 10
"""
NARROWEST, DESKTOP = 375, 1280
OVERLAPS = """[...document.querySelectorAll('.card')].flatMap(card => {
  const boxes = [...card.children].map(one => one.getBoundingClientRect());
  return boxes.slice(1).filter((box, place) => box.height && box.top < boxes[place].bottom - 1).map(box => box.top);
})"""
"""JavaScript that gives the parts of cards that begin above the end of the part before them."""
LONG_NAME = "Families who buy for the week on Saturdays, and what is new"
EVIL = "<script>alert(1)</script>"


def call(*words: object) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run segmented again after its release, with all that a segment stage can tell, and a report of it."""
    root = tmp_path_factory.mktemp("report")
    events, items, _ = write_planted(root, users=160, items=40, segments=SEGMENTS)
    (root / "quick.toml").write_text(QUICK)
    places = ("--runs", root / "runs", "--repository", root / "repository")
    files = ("--events", events, "--items", items, "--config", root / "quick.toml")
    call("run", *files, *places, "--run", "planted", "--force", "rules win on so small a log")
    call("segment", "--run", "planted", *places)
    planted = Run.open(root / "runs", "planted")
    assert Segmentation.read(planted.require("segment")).parent_release == 1
    profiles = fill(planted, "Histories are short.", trait=EVIL).profiles
    write_sweep(planted, SEGMENTS)
    flows = [
        Flow(from_segment_id=p.segment_id, to_segment_id=p.segment_id, user_count=p.user_count, share=1.0)
        for p in profiles
    ]
    write_moves(planted, 1, *flows)
    write_segment_notes(root / "repository", SegmentNotes(segments={1: SegmentNote(name=LONG_NAME, owner="Ana")}))
    told = call("report", "planted", *places).output
    assert str(planted.path / "report" / "report.html") in told
    return planted


@pytest.fixture
def page(run: Run, browser: Browser) -> Iterator[Page]:
    """The report in a browser that has no network; whatever it complains of or asks for is an error."""
    with offline_page(browser, run.path / "report" / "report.html", DESKTOP) as opened:
        yield opened


def test_there_is_a_card_for_each_segment_and_every_section(page: Page) -> None:
    assert page.locator(".card").count() == SEGMENTS
    assert page.locator(".absent").count() == 0
    for name in ("sizes", "map", "moves", "k", "quality", "training"):
        assert page.locator(f"#{name} svg:visible").count() == 1, name
    assert page.locator(".card svg").count() == SEGMENTS
    assert page.get_by_text("Histories are short.").is_visible()
    assert page.locator("#data").get_by_text("3,200 events were read").is_visible()
    read = "The log was read from events.csv and items.parquet; 160 users are left. Their events are"
    assert page.locator("#data").get_by_text(read).is_visible()


def test_links_of_the_contents_lead_somewhere(page: Page) -> None:
    targets = page.eval_on_selector_all("nav a", "links => links.map(link => link.getAttribute('href'))")
    assert len(targets) == 8
    for target in targets:
        assert page.locator(target).count() == 1


@pytest.mark.parametrize("width", [NARROWEST, 420, 600, 900, DESKTOP])
def test_nothing_sticks_out_of_the_page(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(OVERLAPS) == []
    assert page.locator("#map svg:visible").count() == 1
    box = page.locator("#map svg:visible").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width


@pytest.mark.parametrize("width", [420, DESKTOP])
def test_no_label_of_a_picture_is_cut(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    texts = page.eval_on_selector_all(
        "svg", "all => all.filter(one => one.checkVisibility()).map(one => one.textContent)"
    )
    assert any("Families who buy" in text for text in texts)
    assert [text for text in texts if "…" in text] == []


def test_it_says_what_segments_can_be_used_for_before_all_figures_of_models(page: Page) -> None:
    top = page.locator("body > .page > header")
    assert top.get_by_role("heading", name="What the segments can be used for").is_visible()
    assert page.locator(".trust").count() == SEGMENTS
    assert "of the ten items that the release recommends to them" in top.inner_text()
    assert "HR@10" not in top.inner_text()
    assert page.get_by_text("owner: Ana").is_visible()


def test_texts_in_pictures_are_large_enough_on_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": NARROWEST, "height": 800})
    heights = page.eval_on_selector_all(
        "svg text", "texts => texts.map(one => one.getBoundingClientRect().height).filter(height => height > 0)"
    )
    assert min(heights) >= 10


def test_pictures_are_named_for_those_who_cannot_see_them(page: Page) -> None:
    pictures = page.locator("svg:visible, img:visible")
    names = page.eval_on_selector_all(
        "svg, img",
        "all => all.filter(one => one.checkVisibility()).map(one => one.getAttribute('aria-label') || one.alt)",
    )
    assert pictures.count() == len(names) == 6 + SEGMENTS
    assert all(name and len(name) > 30 for name in names)
    assert page.get_by_role("img").count() == len(names)
    assert page.get_by_role("img", name=re.compile("Bars of users by segment")).count() == 1


def test_headings_come_in_order(page: Page) -> None:
    levels = page.eval_on_selector_all("h1,h2,h3,h4,h5,h6", "all => all.map(one => Number(one.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    assert page.title() == "Segments of planted"
    assert page.locator("html").get_attribute("lang") == "en"


def test_texts_stand_out_from_what_is_behind_them(page: Page) -> None:
    assert page.evaluate(CONTRAST) == []


def test_what_the_log_says_is_text(page: Page) -> None:
    assert page.locator("script").count() == 0
    assert page.get_by_text(EVIL).count() >= SEGMENTS


def test_it_can_be_printed(page: Page, tmp_path: Path) -> None:
    pdf = page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert pdf.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf)) <= 15
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 690, "height": 970})
    assert not page.locator("nav").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 690
    assert page.locator("#map svg.wide").is_visible()


def test_pictures_lie_beside_it(run: Run) -> None:
    names = {path.stem for path in (run.path / "report").glob("*.png")}
    rhythms = {name for name in names if name.startswith("rhythm-")}
    assert len(rhythms) == SEGMENTS
    assert names - rhythms == {"sizes", "map", "k_sweep", "moves", "quality", "curves"}


def test_a_run_without_segments_is_refused_in_a_sentence(run: Run) -> None:
    Run.create(run.path.parent, run_id="bare")
    result = CliRunner().invoke(app, ["report", "bare", "--runs", str(run.path.parent)])
    assert result.exit_code == 1
    assert "segrec-train segment --run bare" in result.output
