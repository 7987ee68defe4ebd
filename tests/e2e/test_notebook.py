"""docs/notebook.ipynb runs in a real kernel, and shows tables of the form that it showed when it was written."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs/notebook.ipynb"


def shown(notebook: Any) -> Iterator[str]:
    """What each cell shows as text; of a table its shape, since the numbers of processors differ."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.output_type != "stream":
                text = output.get("data", {}).get("text/plain") or output["ename"]
                yield found[0] if (found := re.match(r"shape: \(.*\)", text)) else text


@pytest.mark.nightly
def test_it_runs_and_shows_what_it_shows(tmp_path: Path) -> None:
    before = nbformat.read(NOTEBOOK, 4)  # type: ignore[no-untyped-call]
    nbformat.validate(before)
    expected = list(shown(before))
    assert len(expected) == 10
    after = NotebookClient(before, timeout=280, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    assert list(shown(after.execute())) == expected
    assert (tmp_path / "model_repository").is_dir()
