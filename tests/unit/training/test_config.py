"""Configuration: defaults, and errors that help."""

from pathlib import Path

import pytest

from training.config import Config, load_config
from training.errors import ConfigError


def loaded(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def test_no_file_gives_the_defaults() -> None:
    assert load_config(None) == Config()


def test_everything_can_be_set(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        """
        [columns]
        user_id = "谁"
        [actions]
        "购买" = 2
        "4" = { name = "purchase", weight = 1.5 }
        [items]
        category = ["department", "kind"]
        [clean]
        min_events_per_item = 3
        outliers = "iqr"
        missing.value = "median"
        missing.action = { method = "constant", fill = "view" }
        [train]
        layers = 1
        [segment]
        k = 4
        """,
    )
    assert config.columns.user_id == "谁"
    assert config.actions["购买"].weight == 2
    assert config.actions["4"].name == "purchase"
    assert config.items.category == ("department", "kind")
    assert config.clean.missing.value.method == "median"
    assert config.clean.missing.action.fill == "view"
    assert config.clean.outliers.method == "iqr"
    assert Config.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[train]\nlayer = 2", ["train.layer", "`layers`"]),
        ("[trian]\nlayers = 2", ["trian", "`train`"]),
        ("[clean]\nmissing.valu = 'drop'", ["clean.missing.valu", "`value`"]),
        ("[clean]\nzzz = 1", ["clean.zzz", "known here", "drop_duplicates"]),
        ("[actions]\nbuy = { weigth = 1 }", ["actions.buy", "weight"]),
        ("[train]\nepochs = 'many'", ["train.epochs", "integer"]),
        ("[train]\nheads = 3", ["train", "not a multiple of heads 3"]),
        ("[clean]\nmissing.user_id = 'mean'", ["user_id can be drop or constant"]),
        ("[clean]\nmissing.action = 'mean'", ["action can be drop or constant or most_frequent"]),
        ("[clean]\nmissing.action = { method = 'constant', fill = 3.0 }", ["action needs a text"]),
        ("[clean]\nmissing.value = { method = 'constant', fill = 'x' }", ["value needs a number"]),
        ("[clean]\nmissing.value = 'constant'", ["needs `fill`, and no other"]),
        ("[clean]\nmissing.timestamp = 'keep'", ["cannot be kept"]),
        ("[clean]\noutliers = { method = 'isolation_forest', threshold = 0.9 }", ["at most 0.5"]),
        ("[clean", ["not valid TOML"]),
        ("[actions]\n购买 = 1", ["not valid TOML", "need quotes"]),
        ("[items]\ntitle = true", ["items.title: give the name of a column, or false for no column."]),
        ("[items]\ncategory = ['a', 3]", ["items.category: give the name of a column"]),
    ],
)
def test_errors_name_the_file_the_key_and_a_remedy(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    for part in ["mine.toml", *parts]:
        assert part in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        load_config(tmp_path / "none.toml")
