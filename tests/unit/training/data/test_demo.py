"""The demo log, written from a small stand-in for the package's tables."""

from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from training.config import Config
from training.data import demo
from training.data.prepare import prepare
from training.errors import LogError
from training.runs import Run


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "data"
    directory.mkdir()
    pl.DataFrame(
        {
            "household_id": [1, 1, 2],
            "product_id": [10, 11, 12],
            "sales_value": [1.5, 2.0, 3.0],
            "transaction_timestamp": [datetime(2017, 1, day) for day in (1, 2, 3)],
        }
    ).write_parquet(directory / "transactions.parquet")
    pl.DataFrame(
        {
            "product_id": [10, 11, 12, 13],
            "department": ["GROCERY", "MEAT", "PRODUCE", "COUPON"],
            "product_category": ["EGGS", "BEEF", "TROPICAL FRUIT", None],
            "product_type": ["EGGS - X-LARGE", "LEAN", "BANANAS", None],
            "brand": ["Private", "National", "National", "National"],
            "package_size": ["1 DZ", None, "40 LB", None],
        }
    ).write_parquet(directory / "products.parquet")
    pl.DataFrame({"household_id": [1], "age": ["65+"]}).write_parquet(directory / "demographics.parquet")
    monkeypatch.setattr(demo, "_source", lambda: directory)
    return directory


def test_titles_read_well_and_prepare_takes_it(tmp_path: Path, source: Path) -> None:
    log = demo.write_demo(tmp_path / "cache")
    items = pl.read_parquet(log.items)
    assert items["title"].to_list() == ["Eggs, x-large, 1 dozen (store brand)", "Beef, lean", "Bananas", "Coupon"]
    assert items["category"].to_list()[-2:] == [["Produce", "Tropical fruit"], ["Coupon"]]
    result = prepare(Run.create(tmp_path / "runs"), log.events, log.items, log.users, Config())
    assert (result.users, result.items, result.preprocessing.has_clock) == (2, 3, True)


def test_what_is_there_is_used_again(tmp_path: Path, source: Path) -> None:
    first = demo.write_demo(tmp_path / "cache")
    before = first.events.stat().st_mtime_ns
    assert demo.write_demo(tmp_path / "cache").events.stat().st_mtime_ns == before


def test_without_the_package_the_error_names_the_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "PACKAGE", "no_such_package_here")
    with pytest.raises(LogError, match=r"pip install 'segrec-platform\[demo\]'"):
        demo.write_demo(tmp_path)
