"""docs/RELIABILITY.md names tests, scenarios and modules that exist."""

import re
from pathlib import Path

from tests.benchmarks.bench_faults import SCENARIOS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "RELIABILITY.md").read_text(encoding="utf-8")


def test_each_named_test_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXT)
    assert len(named) > 30
    lost = [
        f"{path}::{test}"
        for path, test in named
        if not (ROOT / path).is_file() or (test and f"def {test}(" not in (ROOT / path).read_text(encoding="utf-8"))
    ]
    assert lost == []


def test_each_named_scenario_exists_and_each_scenario_is_named() -> None:
    named = {name for row in re.findall(r"faults: ([^;|]+)", TEXT) for name in re.findall(r"`(\w+)`", row)}
    assert named == set(SCENARIOS)


def test_each_named_benchmark_exists() -> None:
    modules = re.findall(r"python -m (tests\.benchmarks\.\w+)", TEXT)
    assert modules
    assert [name for name in modules if not (ROOT / f"{name.replace('.', '/')}.py").is_file()] == []
