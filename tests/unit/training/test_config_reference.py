"""The reference of settings and the files to start from are made of the code, and docs/CONFIG.md is equal to them."""

import tomllib
from pathlib import Path

import pytest

import server.config_command as serve
from server.core.settings_reference import LEFT_OUT, REQUIRED, Section, Setting, sections_of
from server.settings import Settings
from training.config import Config
from training.config.reference import reference_page, starting_file

ROOT = Path(__file__).parents[3]
TRAIN = [(section, it) for section in sections_of(Config) for it in section.settings]
SERVE = [(section, it) for section in sections_of(Settings) for it in section.settings]
TOGETHER = {"segment.naming.url": 'model = "gpt"'}


def test_the_page_is_that_of_the_code() -> None:
    page = (
        "# Settings\n\nMade by `make reference` from the code.\n\n" + reference_page() + "\n" + serve.reference_page()
    )
    assert (ROOT / "docs/CONFIG.md").read_text(encoding="utf-8") == page, "run `make reference` and commit"


def test_every_setting_is_on_it() -> None:
    assert {section.name for section, _ in TRAIN} >= {"columns", "clean.missing", "segment.naming", "actions.NAME"}
    assert {it.key for _, it in SERVE} == set(Settings.model_fields)
    assert len(TRAIN) > 70


@pytest.mark.parametrize(("section", "it"), [*TRAIN, *SERVE], ids=lambda part: getattr(part, "key", ""))
def test_says_what_a_setting_means_and_when_to_change_it(section: Section, it: Setting) -> None:
    assert it.meaning, "give the field a description"
    assert it.touch, 'give the field json_schema_extra={"touch": …}: when to change the default'
    assert it.example not in (LEFT_OUT, REQUIRED) or section.is_pattern, "give the field examples=[…]"


@pytest.mark.parametrize("file", [starting_file(), serve.starting_file()], ids=["train", "serve"])
def test_the_file_to_start_from_changes_nothing(file: str) -> None:
    assert not any(isinstance(part, dict) and any(part.values()) for part in tomllib.loads(file).values())


def test_its_lines_are_the_defaults() -> None:
    text = "\n".join(
        f"[{section.name}]\n" * bool(section.name)
        + "\n".join(f"{it.key} = {it.example}" for it in section.settings if it.default != LEFT_OUT)
        for section in sections_of(Config)
        if not section.is_pattern and section.name != "clean.outliers"
    )
    assert Config.model_validate(tomllib.loads(text) | {"actions": {}}) == Config()


@pytest.mark.parametrize(("section", "it"), TRAIN, ids=lambda part: getattr(part, "key", ""))
def test_its_examples_are_accepted(section: Section, it: Setting) -> None:
    if not section.is_pattern:
        head = f"[{section.name}]\n" if section.name else ""
        line = f"{it.key} = {it.example}"
        Config.model_validate(tomllib.loads(f"{head}{line}\n{TOGETHER.get(f'{section.name}.{it.key}', '')}"))
        assert f"\n# {line}\n" in starting_file()


def test_ranges_are_those_of_the_checks() -> None:
    ranges = {f"{section.name}.{it.key}": it.range for section, it in TRAIN}
    assert ranges["train.embedding_dim"] == "2 to 4,096"
    assert ranges["split.test_share"] == "above 0, at most 0.4"
    assert ranges["train.dropout"] == "at least 0, below 1"
