"""Seeded behaviour logs whose right answer is known: users of a segment keep to the items of that segment."""

from pathlib import Path

import numpy as np
import polars as pl

START_MS = 1_700_000_000_000
DAY_MS = 86_400_000


def planted_log(
    users: int = 60, items: int = 40, segments: int = 4, events_per_user: int = 20, noise: float = 0.1, seed: int = 0
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events in time order, and the planted labels (user_id, segment 0..segments-1).

    User u belongs to segment u % segments and item i to segment i % segments. A user walks in a circle over the items
    of its segment, from a start of its own, so the next item can be learned; a share `noise` of its events goes to
    any item at all. No two events are equal. Columns: user_id, item_id, action, value, timestamp (milliseconds).
    """
    rng = np.random.default_rng(seed)
    own = items // segments
    user = np.repeat(np.arange(users), events_per_user)
    turn = np.tile(np.arange(events_per_user), users)
    place = (rng.integers(0, own, users)[user] + turn) % own
    item = np.where(
        rng.random(len(user)) < noise, rng.integers(0, items, len(user)), place * segments + user % segments
    )
    minutes = turn * 60 + rng.integers(0, 60, len(user))
    events = pl.DataFrame(
        {
            "user_id": [f"u{number:05}" for number in user],
            "item_id": [f"i{number:05}" for number in item],
            "action": rng.choice(["view", "cart", "purchase"], len(user), p=[0.7, 0.1, 0.2]),
            "value": np.round(rng.lognormal(2.0, 0.5, len(user)), 2),
            "timestamp": START_MS + minutes * 60_000,
        }
    )
    numbers = np.arange(users)
    labels = pl.DataFrame({"user_id": [f"u{number:05}" for number in numbers], "segment": numbers % segments})
    return events.sort("timestamp", maintain_order=True), labels


def fashionable(events: pl.DataFrame, items: int = 40, segments: int = 4) -> pl.DataFrame:
    """A planted log in which users come once a day, from one of 50 days on.

    Three of four events are on their group's item of the week.
    """
    number, hour = pl.col("user_id").str.slice(1).cast(pl.Int64), (pl.col("timestamp") - START_MS) // 3_600_000
    day = number * 7 % 50 + hour
    of_the_week = number % segments + segments * (day // 7 % (items // segments))
    named = pl.format("i{}", of_the_week.cast(pl.String).str.zfill(5))
    return events.with_columns(
        pl.when((number + hour) % 4 > 0).then(named).otherwise("item_id").alias("item_id"),
        (pl.col("timestamp") + (day - hour) * DAY_MS + hour * (DAY_MS - 3_600_000)).alias("timestamp"),
    )


def planted_items(items: int = 40, segments: int = 4) -> pl.DataFrame:
    """The item table that goes with `planted_log`: item_id, title, category (the planted segment)."""
    numbers = range(items)
    return pl.DataFrame(
        {
            "item_id": [f"i{number:05}" for number in numbers],
            "title": [f"Item {number}" for number in numbers],
            "category": [[f"group {number % segments}"] for number in numbers],
        }
    )


def write_planted(directory: Path, noise: float = 0.1, **shape: int) -> tuple[Path, Path, Path]:
    """Files `events.csv`, `items.parquet` and `users.csv` of a planted log of the given shape and noise."""
    events, labels = planted_log(noise=noise, **shape)
    paths = directory / "events.csv", directory / "items.parquet", directory / "users.csv"
    events.write_csv(paths[0])
    sizes = {name: shape[name] for name in ("items", "segments") if name in shape}
    planted_items(**sizes).write_parquet(paths[1])
    labels.write_csv(paths[2])
    return paths


def sorted_baskets(users: int = 150, items: int = 40, visits: int = 6, size: int = 5, seed: int = 0) -> pl.DataFrame:
    """Baskets of items with consecutive ids, from a random one on, whose rows are sorted by item id.

    A basket tells nothing about the next one. Columns as in `planted_log`.
    """
    first = np.random.default_rng(seed).integers(1, items - size + 2, (users, visits))
    rows = [
        (f"u{user:05}", f"i{first[user, visit] + place:05}", "purchase", 1.0, START_MS + 7 * visit * DAY_MS + user)
        for visit in range(visits)
        for user in range(users)
        for place in range(size)
    ]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "action", "value", "timestamp"], orient="row")


def planted_baskets(users: int = 60, items: int = 40, visits: int = 8, seed: int = 0) -> pl.DataFrame:
    """Baskets of users who buy the same three items on each visit, once a week, and two more that are drawn at random.

    The items of a basket have one time stamp. Columns as in `planted_log`.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        habit, first = rng.choice(items, 3, replace=False), int(rng.integers(0, 7))
        for visit in range(visits):
            more = rng.choice(items, 2, replace=False)
            basket = rng.permutation(np.unique(np.concatenate([habit, more])))
            time = START_MS + (7 * visit + first) * DAY_MS
            rows += [(f"u{user:05}", f"i{item:05}", "purchase", 1.0, time) for item in basket.tolist()]
    names = ["user_id", "item_id", "action", "value", "timestamp"]
    return pl.DataFrame(rows, schema=names, orient="row").sort("timestamp", maintain_order=True)
