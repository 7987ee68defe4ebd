"""A page that opens without a network: its pictures are SVG inside it, for a wide page and for a phone; no script."""

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from training.reports import wording as words
from training.reports.style import NARROW, WIDE, Chart, Page, styled

_TEMPLATES = Path(__file__).parent
"""Root of the templates; a template is named by its path below it."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What is drawn, by page; `alt` says it in words; `name` is that of its PNG file."""

    name: str
    alt: str
    draw: Callable[[Page], Chart]
    pages: tuple[Page, ...] = (WIDE, NARROW)

    def svgs(self) -> dict[Page, str]:
        """Drawn for each page."""
        return {page: _svg(self.draw(page)) for page in self.pages}


def rendered(template: str, **told: Any) -> str:
    """The HTML of a template with what it tells."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for tool in (words.percent, words.signed_percent, words.count, words.figure):
        environment.filters[tool.__name__] = tool
    return environment.get_template(template).render(**told)


def _svg(chart: Chart) -> str:
    buffer = io.StringIO()
    styled(chart).save(buffer, format="svg")
    return buffer.getvalue()


def all_inlined(picture: Picture, svgs: dict[Page, str]) -> Markup:
    """A picture for all its pages; the style sheet shows one of them."""
    return Markup("").join(inlined(picture, page, svg) for page, svg in svgs.items())


def drawn(pictures: Iterable[Picture]) -> dict[str, Markup]:
    """Pictures by name, as a page holds them."""
    return {picture.name: all_inlined(picture, picture.svgs()) for picture in pictures}


def inlined(picture: Picture, page: Page, svg: str) -> Markup:
    """SVG with a name for those who cannot see it, and ids that no other picture of the page has.

    The page's style sheet shows those of class `wide` or those of class `narrow`.
    """
    shown = ("wide" if page.is_wide else "narrow") if len(picture.pages) > 1 else "only"
    svg = re.sub(r'(?<=\sid=")|(?<=url\(#)|(?<=href="#)', f"{picture.name}-{shown}-", svg)
    box = re.search(r'viewBox="([\d.\s-]+)"', svg)
    assert box is not None, "Vega draws SVG with a view box"
    head = Markup('<svg xmlns="http://www.w3.org/2000/svg" class="{}" role="img" aria-label="{}" {}>')
    size = Markup('viewBox="{}" width="{}"').format(box[1], box[1].split()[2])
    rest = Markup(svg[svg.index(">") + 1 :])  # noqa: S704  Vega escapes the texts in it
    return head.format(shown, picture.alt, size) + rest
