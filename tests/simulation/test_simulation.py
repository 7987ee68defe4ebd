"""Simulated histories; `make nightly` plays a hundred thousand, and finds the planted fault that is rare."""

import os
import subprocess
import sys

import pytest

from tests.simulation.many import played
from tests.simulation.planted import PLANTED, RARE

HISTORIES = 1000
ENOUGH_FOR_A_PLANTED_FAULT = 400


@pytest.mark.timeout(1500)
def test_no_history_breaks_a_rule() -> None:
    assert [problem for problem in played(range(HISTORIES)) if problem] == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(set(PLANTED) - RARE))
def test_a_planted_fault_is_found(name: str) -> None:
    _, rule = PLANTED[name]
    problem = next((one for one in played(range(ENOUGH_FOR_A_PLANTED_FAULT), name) if one), "no rule is broken")
    assert f": {rule}" in problem


def test_a_seed_replays_in_another_process() -> None:
    """Also where Python orders sets in another way."""
    command = [sys.executable, "-m", "tests.simulation", "--seed", "5"]
    first, second = (
        subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    )
    assert len(first.splitlines()) > 10
    assert first == second
