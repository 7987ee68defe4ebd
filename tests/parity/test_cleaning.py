"""What the encoder reads of callers' events is what it read of the same events in the log, whatever `[clean]` says."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from server.core.features import features_of
from server.core.hash_index import HashIndex
from server.core.history import Event, History, history_of
from server.core.preprocessing import Preprocessing
from server.core.release import action_index_of
from tests.support.logs import START_MS
from training.config import Config
from training.data.prepare import prepare
from training.data.sequences import read_log
from training.runs import Run

README = (Path(__file__).parents[2] / "README.md").read_text()
[SETTINGS] = [part.split("```")[0] for part in README.split("```toml\n")[1:]]
OF_README = tomllib.loads(SETTINGS) | {"columns": {}}
RENAMED = {"actions": {"view": {"weight": 0.1}, "buy": {"weight": 1, "name": "purchase"}}}
OUTLIERS = [
    {"method": method, "action": action}
    for method in ("z_score", "iqr", "isolation_forest")
    for action in ("clip", "drop")
]
NORMALISED = ["none", "z_score", "min_max", "robust", "log"]
MISSING = ["keep", "drop", "mean", "median", "most_frequent", "interpolate", {"method": "constant", "fill": 7}]


def raw_log(seed: int = 0) -> pl.DataFrame:
    """Events of 40 users, some at the same time; some values are missing, some are far from the others."""
    rng = np.random.default_rng(seed)
    count = 1_200
    value = np.round(rng.lognormal(2.0, 0.5, count), 2)
    value[rng.random(count) < 0.05] *= 1_000
    value[rng.random(count) < 0.2] = np.nan
    value[:8] = [1e200, -1.7976931348623157e308, 1e150, -1e150, 1e-300, 5e-324, 0.0, -0.0]
    return pl.DataFrame(
        {
            "user_id": [f"u{number:02}" for number in rng.integers(0, 40, count)],
            "item_id": [f"i{number}" for number in rng.integers(0, 60, count)],
            "action": rng.choice(["view", "purchase", "buy"], count, p=[0.6, 0.2, 0.2]),
            "value": pl.Series(value, nan_to_null=True),
            "timestamp": START_MS + rng.permutation(count) // 2 * 3_600_000,
        }
    )


def histories(log: pl.DataFrame, user_ids: list[str]) -> list[History]:
    """The events as callers record them."""
    rows = log.with_columns(pl.col("value").fill_null(float("nan"))).partition_by("user_id", as_dict=True)
    columns = ("item_id", "action", "value", "timestamp")
    return [history_of(Event(*row) for row in rows[(user_id,)].select(columns).rows()) for user_id in user_ids]


@pytest.mark.parametrize(
    "settings",
    [
        OF_README,
        RENAMED,
        *({"clean": {"outliers": outliers, "missing": {"value": "median"}}} for outliers in OUTLIERS),
        *({"clean": {"missing": {"value": missing}, "outliers": "iqr"}} for missing in MISSING),
        *({"clean": {"missing": {"value": missing}, "outliers": OUTLIERS[3]}} for missing in MISSING),
        *({"clean": {"normalise": how}} for how in NORMALISED),
        *({"clean": {"normalise": how, "missing": {"value": "drop"}, "outliers": OUTLIERS[0]}} for how in NORMALISED),
        {"clean": {"drop_duplicates": False, "missing": {"action": "most_frequent"}}} | RENAMED,
        {"clean": {"missing": {"action": {"method": "constant", "fill": "buy"}}}} | RENAMED,
        {"visits": {"ordered": True}, "clean": {"missing": {"value": "interpolate"}}},
    ],
    ids=str,
)
def test_online_is_offline(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = Config.model_validate(settings | {"train": {"max_length": 100}})
    log = raw_log()
    log.write_parquet(tmp_path / "events.parquet")
    run = Run.create(tmp_path / "runs")
    prepared = prepare(run, tmp_path / "events.parquet", None, None, config).directory
    preprocessing = Preprocessing.model_validate_json((prepared / "preprocessing.json").read_bytes())
    offline = read_log(prepared, preprocessing)
    items = HashIndex.of(pl.read_parquet(prepared / "items.parquet")["item_id"].to_list())
    user_ids = offline.users.to_list()
    online = features_of(histories(log, user_ids), items, action_index_of(preprocessing), preprocessing)
    assert online.offsets.tolist() == offline.features.offsets.tolist()
    assert len(online.item_index) > 400
    for name in ("item_index", "action_index", "gap_index"):
        assert getattr(online, name).tolist() == getattr(offline.features, name).tolist(), name
    np.testing.assert_allclose(online.value, offline.features.value, atol=1e-6)
