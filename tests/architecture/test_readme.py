"""The README says what is so."""

import tomllib
from pathlib import Path

import pytest

from server.settings import Settings
from training.config import Config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return [part.split("```")[0] for part in README.split(f"```{language}\n")[1:]]


def test_its_configuration_is_accepted() -> None:
    [configuration] = blocks("toml")
    Config.model_validate(tomllib.loads(configuration))


def test_its_python_compiles() -> None:
    for code in blocks("python"):
        compile(code, "README.md", "exec")


@pytest.mark.parametrize("flag", ["keep-releases", "history-limit", "tls-certificate", "bootstrap-events", "triton"])
def test_the_flags_it_names_exist(flag: str) -> None:
    assert f"--{flag}" in README
    assert flag.replace("-", "_") in Settings.model_fields


def test_the_places_it_names_exist() -> None:
    for line in README.split("## Where things are")[1].split("```")[1].splitlines():
        if line.strip():
            assert (ROOT / line.split()[0]).exists(), line
