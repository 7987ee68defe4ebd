"""HTML pages that open offline: pictures are inline SVG, one for a wide page and one for a phone; no scripts."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from segrec.visible import visible

from training.reports import wording
from training.reports.style import NARROW, WIDE, Chart, Page, styled

_TEMPLATES = Path(__file__).parent
"""Root of the templates; a template is named by its path below it."""
_VEGA_LITE = alt.SCHEMA_VERSION.rpartition(".")[0]
"""The version of Vega-Lite for which Altair writes, as in `v6.1`."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A chart for each page width. `alt` describes the chart in words; `name` is also the name of its PNG file."""

    name: str
    alt: str
    draw: Callable[[Page], Chart]
    pages: tuple[Page, ...] = (WIDE, NARROW)

    def svgs(self) -> dict[Page, str]:
        return {page: _svg(self.draw(page)) for page in self.pages}


def rendered(template: str, **variables: Any) -> str:
    """The HTML of a template, named by its path below `training/reports`."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters["code"] = with_code
    for text_filter in (wording.percent, wording.signed_percent, wording.count, wording.figure):
        environment.filters[text_filter.__name__] = text_filter
    return environment.get_template(template).render(**variables)


def with_code(text: str) -> Markup:
    """A sentence as HTML, in which what stands between backticks is code."""
    parts = str(visible(text)).split("`")
    marked = [Markup("<code>{}</code>").format(part) if place % 2 else escape(part) for place, part in enumerate(parts)]
    return Markup("").join(marked) if len(parts) % 2 else escape("`".join(parts))


def _shown(value: object) -> object:
    """A variable of a template: control characters of a text are shown, its markup is escaped by the template."""
    return visible(value) if type(value) is str else value


def _svg(chart: Chart) -> str:
    with alt.data_transformers.disable_max_rows():
        drawing = _all_visible(styled(chart).to_dict())
    return vl_convert.vegalite_to_svg(drawing, vl_version=_VEGA_LITE)


def _all_visible(part: Any) -> Any:
    """A part of a drawing with `visible` texts: SVG cannot hold control characters, and Vega ends the process."""
    if isinstance(part, str):
        return visible(part)
    if isinstance(part, dict):
        return {key: _all_visible(inner) for key, inner in part.items()}
    return list(map(_all_visible, part)) if isinstance(part, list) else part


def all_inlined(picture: Picture, svgs: dict[Page, str]) -> Markup:
    """The SVGs of a picture for all its pages; the style sheet shows one of them."""
    return Markup("").join(inlined(picture, page, svg) for page, svg in svgs.items())


def drawn(pictures: Iterable[Picture]) -> dict[str, Markup]:
    """Inline SVG of pictures by name."""
    return {picture.name: all_inlined(picture, picture.svgs()) for picture in pictures}


def inlined(picture: Picture, page: Page, svg: str) -> Markup:
    """SVG with a label for screen readers and with ids that no other picture of the page has.

    Its class is `wide`, `narrow` or `only`, by which the style sheet shows or hides it.
    """
    shown = ("wide" if page.is_wide else "narrow") if len(picture.pages) > 1 else "only"
    svg = re.sub(r'(?<=\sid=")|(?<=url\(#)|(?<=href="#)', f"{picture.name}-{shown}-", svg)
    box = re.search(r'viewBox="([\d.\s-]+)"', svg)
    assert box is not None, "Vega draws SVG with a view box"
    head = Markup('<svg xmlns="http://www.w3.org/2000/svg" class="{}" role="img" aria-label="{}" {}>')
    size = Markup('viewBox="{}" width="{}"').format(box[1], box[1].split()[2])
    rest = Markup(svg[svg.index(">") + 1 :])  # noqa: S704  Vega escapes the texts in its SVG
    return head.format(shown, visible(picture.alt), size) + rest
