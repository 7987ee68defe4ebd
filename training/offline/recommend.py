"""Recommendations for users of a run or of a log, by the code that a server ranks with."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import polars as pl

from server.core.ranking.query import Part, Query, Ranking, Strategy
from server.core.ranking.rank import rank
from server.core.release import Release
from training.errors import ConfigError
from training.offline.users import OfflineUsers, unknown_user
from training.runs import Progress, no_progress

USERS_PER_RANKING = 512
"""Users that are ranked at once; the memory of a ranking grows with them."""

REASONS: Mapping[Part, str] = {
    Part.OWN_HISTORY: "again",
    Part.ENCODER: "personal",
    Part.SEGMENT: "segment",
    Part.POPULARITY: "popular",
    Part.TREND: "trend",
    Part.RULE: "rule",
}
"""The words of the API's `ItemReason`."""

SCHEMA = {
    "user_id": pl.String(),
    "rank": pl.Int32(),
    "item_id": pl.String(),
    "title": pl.String(),
    "score": pl.Float32(),
    "reason": pl.String(),
}
"""Columns of recommendations: `rank` is from 1, the best item; `score` is comparable within one user."""

_TOP_K_MAX = 500
_FILTERS = tuple(field.name for field in fields(Query) if field.name not in ("top_k", "explain"))


def query_of(top_k: int, filters: Mapping[str, Any]) -> Query:
    """The query of keyword arguments. Raises ConfigError for an unknown filter or a value out of range."""
    if not isinstance(top_k, int) or isinstance(top_k, bool) or not 1 <= top_k <= _TOP_K_MAX:
        raise ConfigError(f"top_k must be a whole number from 1 to {_TOP_K_MAX}, not {top_k!r}.")
    values = {name: _filter(name, value) for name, value in filters.items()}
    return Query(top_k=top_k, **values)


def _filter(name: str, value: Any) -> Any:
    if name not in _FILTERS:
        raise ConfigError(f"There is no filter `{name}`; filters are {', '.join(_FILTERS)}.")
    if name == "strategy":
        names = [one.name.lower() for one in Strategy]
        if value not in names:
            raise ConfigError(f"strategy must be one of {', '.join(names)}, not {value!r}.")
        return Strategy[value.upper()]
    if name in ("exclude_seen", "include_variants"):
        if not isinstance(value, bool):
            raise ConfigError(f"{name} must be True or False, not {value!r}.")
        return value
    if name == "diversity":
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ConfigError(f"diversity must be a number from 0 to 1, not {value!r}.")
        return float(value)
    return tuple(texts(name, value))


def texts(name: str, values: Any) -> list[str]:
    """A list of ids or categories as texts; whole numbers become texts, as in a log. Raises ConfigError for others."""
    listed = None if isinstance(values, str | bytes) or not isinstance(values, Iterable) else list(values)
    if listed is None or any(isinstance(one, bool) or not isinstance(one, str | int) for one in listed):
        raise ConfigError(f'{name} must be a list of texts, such as ["a", "b"], not {values!r:.60}.')
    return [str(one) for one in listed]


def recommendations(
    release: Release, users: OfflineUsers, query: Query, progress: Progress = no_progress
) -> Iterable[pl.DataFrame]:
    """The best items of each user, in parts of `USERS_PER_RANKING` users with the columns of `SCHEMA`."""
    count, done = len(users.user_ids), 0
    for part in users.parts(USERS_PER_RANKING):
        rankings = rank(release, query, part.subjects(release))
        done += len(part.user_ids)
        progress("ranking items", done, count)
        yield _table(release, part.user_ids.to_list(), rankings)


def popular_items(release: Release, user_ids: Sequence[str], query: Query) -> pl.DataFrame:
    """What users without events get, with the columns of `SCHEMA`."""
    [ranking] = rank(release, query, [unknown_user()])
    return _table(release, user_ids, [ranking] * len(user_ids))


def _table(release: Release, user_ids: Sequence[str], rankings: Sequence[Ranking]) -> pl.DataFrame:
    rows = [
        (user_id, place, release.item_ids[item.row], release.titles[item.row], item.score, REASONS[item.reason])
        for user_id, ranking in zip(user_ids, rankings, strict=True)
        for place, item in enumerate(ranking.items, 1)
    ]
    return pl.DataFrame(rows, SCHEMA, orient="row")
