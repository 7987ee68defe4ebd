"""Texts of files reach a terminal or a page through the places that show them as data, and through no others."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def calls(folder: str, *names: str) -> Iterator[str]:
    """Modules below `folder` that call one of `names`."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
                yield str(path.relative_to(ROOT / folder))


def test_the_trainer_prints_through_its_console() -> None:
    printing = set(calls("training", "print", "typer.echo", "typer.secho"))
    assert printing == {"cli/config.py"}  # prints settings and their reference, which hold no text of a file
    assert set(calls("training", "Console", "TextConsole")) == {"cli/console.py"}
    assert set(calls("training", "Text.from_markup")) == set()


def test_the_client_prints_through_its_terminal() -> None:
    assert set(calls("protos/segrec", "print")) == {"cli/terminal.py", "cli/stream_counts.py"}
    meter = ast.parse((ROOT / "protos/segrec/cli/stream_counts.py").read_text())
    printing = {
        part.name
        for part in meter.body
        if isinstance(part, ast.FunctionDef | ast.ClassDef)
        for node in ast.walk(part)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    }
    assert printing == {"Meter"}  # it prints numbers, and moves the cursor


def test_pages_are_escaped() -> None:
    templates = "".join(path.read_text() for path in (ROOT / "training").rglob("*.j2"))
    assert "autoescape" not in templates
    assert "|safe" not in templates.replace(" ", "")
    assert set(calls("training", "Markup", "Environment")) == {"reports/page.py"}
