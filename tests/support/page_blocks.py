"""The code of a page of the documentation."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    """The blocks of code in that language, in their order. `page`: a file of docs/."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def block_with(page: str, language: str, text: str) -> str:
    """The one block that holds `text`."""
    [found] = [block for block in blocks(page, language) if text in block]
    return found
