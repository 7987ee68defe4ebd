"""What people see of operators' rules: a table, the version in a sentence, and names that the release does not know."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from segrec.visible import visible

from server.core.repository.rules import RulesVersion
from server.core.rules import Rule, Rules
from training.repository import newest_release

_SHOWN = 5


def version_sentence(version: RulesVersion) -> str:
    """Number, size, time, author and reason of a version."""
    count = len(version.rules.rules)
    why = f": {version.reason}" if version.reason else ""
    said = f"Version {version.version}, {count} rule{'' if count == 1 else 's'}, by {version.who}"
    return visible(f"{said} at {version.time:%Y-%m-%d %H:%M} UTC{why}")


def rules_table(rules: Rules) -> Table:
    """One row a rule, and one for each weight of an action."""
    table = Table("rule", "what it does", "for", "users", "when", box=None)
    for rule in rules.rules:
        users = ", ".join(map(str, rule.segment_ids))
        texts = (rule.rule_id, _effect(rule), _targets(rule), f"segments {users}" if users else "all", _period(rule))
        table.add_row(*map(visible, texts))
    for action, weight in rules.action_weights.items():
        table.add_row("", f"weight {weight:g}", visible(f"action {action}"), "all", "always")
    return table


def unknown_names(repository: Path, rules: Rules) -> list[str]:
    """A sentence on items, categories, sellers and segments that the newest release does not know; none without one."""
    release = newest_release(repository)
    if release is None:
        return []
    known = {
        "item": set(release.vocabulary),
        "category": set(release.category_rows),
        "seller": set(release.seller_rows),
        "segment": {str(segment.segment_id) for segment in release.segments},
    }
    named: dict[str, list[str]] = {name: [] for name in known}
    for rule in rules.rules:
        named["item"] += [*rule.item_ids, *([rule.replacement_item_id] if rule.replacement_item_id else [])]
        named["category"] += rule.categories
        named["seller"] += rule.sellers
        named["segment"] += map(str, rule.segment_ids)
    sentences = []
    for what, names in named.items():
        missing = sorted({name for name in names if name not in known[what]})
        if missing:
            said = f"Release {release.number} knows no {what} {_some(missing)}; such names ({len(missing)}) are ignored"
            sentences.append(visible(said))
    return sentences


def _effect(rule: Rule) -> str:
    per = f" of each {rule.per}" if rule.per else ""
    return {
        "boost": f"boost × {rule.factor:g}" if rule.factor else "",
        "bury": f"bury × 1/{rule.factor:g}" if rule.factor else "",
        "pin": f"pin to place {rule.place}",
        "replace": f"replace by {rule.replacement_item_id}",
        "ban": "ban",
        "cap": f"at most {rule.max_items}{per}",
    }[rule.kind]


def _targets(rule: Rule) -> str:
    kinds = {"items": rule.item_ids, "categories": rule.categories, "sellers": rule.sellers}
    return "; ".join(f"{kind} {_some(names)}" for kind, names in kinds.items() if names) or "all items"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")


def _period(rule: Rule) -> str:
    start = f"from {rule.start_time:%Y-%m-%d %H:%M %Z}" if rule.start_time else ""
    end = f"until {rule.end_time:%Y-%m-%d %H:%M %Z}" if rule.end_time else ""
    return " ".join(part for part in (start, end) if part) or "always"
