"""Whose lists change with other rules: both lists of each user of a run, by the code that a server ranks with."""

from collections import Counter
from dataclasses import dataclass, replace
from time import time

import polars as pl
from rich.table import Table
from segrec.visible import visible

from server.core.ranking.query import Query, Ranking
from server.core.ranking.rank import rank
from server.core.release import Release
from server.core.rules import Rules, RulesInForce
from training.offline.recommend import USERS_PER_RANKING
from training.offline.users import OfflineUsers
from training.publish.publish import unpublished_release
from training.runs import Progress, Run, no_progress

SCHEMA = {"user_id": pl.String(), "before": pl.List(pl.String()), "after": pl.List(pl.String())}


@dataclass(frozen=True)
class Preview:
    """`changed` has the users whose lists change, with the items before and after, best first.

    `moved` counts, by rule id, the items in all lists that the new rules move.
    """

    user_count: int
    changed: pl.DataFrame
    moved: dict[str, int]
    rules: Rules

    def sentence(self) -> str:
        """How many lists change."""
        share = len(self.changed) / max(self.user_count, 1)
        return f"The lists of {len(self.changed):,} of {self.user_count:,} users ({share:.1%}) would change."

    def table(self) -> Table:
        """How many items each rule moves."""
        table = Table("rule", "items that it moves, in all lists", box=None)
        for rule in self.rules.rules:
            table.add_row(visible(rule.rule_id), f"{self.moved.get(rule.rule_id, 0):,}")
        return table


def previewed(run: Run, before: Rules, after: Rules, top_k: int, progress: Progress = no_progress) -> Preview:
    """Compare the lists of all users of a segmented run, under the rules that are valid now."""
    release, users = unpublished_release(run), OfflineUsers.of_run(run)
    old, new = _under(release, before, time()), _under(release, after, time())
    query, rows, moved, done = Query(top_k=top_k), [], Counter[str](), 0
    for part in users.parts(USERS_PER_RANKING):
        lists = zip(rank(old, query, part.subjects(old)), rank(new, query, part.subjects(new)), strict=True)
        for user_id, (first, second) in zip(part.user_ids.to_list(), lists, strict=True):
            moved.update(rule_id for item in second.items for rule_id in item.rule_ids)
            pair = _item_ids(release, first), _item_ids(release, second)
            if pair[0] != pair[1]:
                rows.append((user_id, *pair))
        done += len(part.user_ids)
        progress("ranking items", done, len(users.user_ids))
    return Preview(len(users.user_ids), pl.DataFrame(rows, SCHEMA, orient="row"), dict(moved), after)


def _under(release: Release, rules: Rules, seconds: float) -> Release:
    in_force = RulesInForce()
    in_force.put(rules, seconds)
    return replace(release, rules=in_force)


def _item_ids(release: Release, ranking: Ranking) -> list[str]:
    return [release.item_ids[item.row] for item in ranking.items]
