"""docs/OPERATIONS.md names settings, commands and metrics that exist."""

import re
import shlex
import tomllib
from pathlib import Path

from server.settings import Settings
from server.store_cli import _parser
from training.config import Config
from training.tune.space import Space

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/OPERATIONS.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_its_settings_are_accepted() -> None:
    space, tracking = (tomllib.loads(block) for block in blocks("toml"))
    assert set(Space.model_validate(space).train) == {"learning_rate", "embedding_dim", "layers"}
    assert Config.model_validate(tracking).tracking.experiment == "shop"


def test_its_commands_for_the_store_exist() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("segrec-store")]
    assert len(lines) == 3
    for line in lines:
        _parser().parse_args(shlex.split(line)[1:])


def test_its_metrics_and_ports_exist() -> None:
    named = set(re.findall(r"`(segrec_\w+)`", PAGE))
    assert len(named) >= 6
    code = (ROOT / "server/monitoring/metrics.py").read_text(encoding="utf-8")
    assert [name for name in named if f'"{name}"' not in code] == []
    rows = re.findall(r"^\| (\d{5}) \| `(\w+)`", PAGE, re.MULTILINE)
    assert {name: Settings.model_fields[name].default.split(":")[1] for _, name in rows} == {
        name: port for port, name in rows
    }
