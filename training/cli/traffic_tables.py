"""Traffic and audit as tables and sentences."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from segrec.traffic import TrafficState, notation, origin_sentences, percent_of, sentences
from segrec.visible import visible

from server.core.errors import DamagedRelease, DamagedTraffic
from server.core.repository.audit import AuditEntry
from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_manifest
from server.core.repository.traffic import Traffic, read_traffic
from training.cli.options import REPOSITORY
from training.publish.traffic import state_of
from training.repository import newest_release, release_numbers, stands_by

_ROLES = {"stable": "answers", "canary": "canary", "shadow": "shadow, compared and never returned"}

_TOLD = ("segments.json", "migration.json")
"""Files of a release that tell its history, and differ when a run is published again."""


def traffic_in_force(repository: Path, traffic: Traffic) -> RenderableType:
    """The releases with their shares, the traffic in sentences, and who set the traffic, when and why."""
    origin = origin_sentences(traffic.previous, traffic.changed_time, traffic.changed_by, traffic.reason)
    return Group(_table(repository, traffic), *map(visible, [*sentences(state_of(traffic)), *origin]))


def after_publishing(repository: Path, number: int) -> str:
    """Sentences for a release that was just published: whether it answers now, and the next command."""
    where = "" if repository == REPOSITORY else f" --repository {shlex.quote(str(repository))}"
    if reason := stands_by(repository, number):
        return (
            f"Release {number} stands by and answers nobody. {reason} Train longer or on more events and publish "
            "again, or let it answer all the same:\n"
            f'  segrec-train traffic {number}=100 --reason "why"{where}'
        )
    try:
        stable = read_traffic(repository).stable
    except DamagedTraffic as error:
        return f"Servers keep the traffic that was in force: {error}."
    if not stable:
        return (
            f"Release {number} answers all users as soon as servers have loaded and checked it; "
            f"`segrec-train rollback{where}` undoes that."
        )
    return (
        f"Release {stable} still answers. See what release {number} would change, then give it a share of the users:\n"
        f"  segrec-train diff {stable} {number}{where}\n"
        f"  segrec-train traffic {stable}=99 {number}=1{where}"
    )


def same_as_before(repository: Path, number: int) -> str:
    """A sentence if an earlier release has the same model, items and segments; empty otherwise."""
    own = _content(repository, number)
    same = [
        earlier for earlier in release_numbers(repository) if earlier < number and _content(repository, earlier) == own
    ]
    if not own or not same:
        return ""
    return f"Release {number} has the model, the items and the segments of release {same[-1]}: nothing differs."


def _content(repository: Path, number: int) -> dict[str, str]:
    """The fingerprint of each file of a release that decides on answers; empty for a damaged one."""
    try:
        files = read_manifest(repository / MODEL_NAME / str(number)).files
    except DamagedRelease:
        return {}
    return {name: record.sha256 for name, record in files.items() if name not in _TOLD}


def _table(repository: Path, traffic: Traffic) -> Table:
    table = Table("release", "made", "share", "what it does", title=f"Releases in {repository}")
    roles = roles_of(repository, traffic)
    for number in sorted({*release_numbers(repository), *roles}, reverse=True):
        role, share = roles.get(number, ("not in use", 0.0))
        try:
            manifest = read_manifest(repository / MODEL_NAME / str(number))
            made = f"{manifest.created_time:%Y-%m-%d %H:%M}"
            if number not in roles and manifest.stands_by:
                role = f"stands by. {manifest.stands_by}"
        except DamagedRelease as error:
            made, role = "?", f"{role}; but {error}"
        table.add_row(str(number), made, f"{share:g} %" if share else "–", role)
    return table


def roles_of(repository: Path, traffic: Traffic) -> dict[int, tuple[str, float]]:
    """Role and share of users, in percent, of each release that the traffic uses."""
    stable = traffic.stable
    if not stable:
        newest = newest_release(repository, answering=True)
        return {newest.number: ("answers, as the newest good release", 100.0)} if newest else {}
    roles = {stable: (_ROLES["stable"], 100.0 - percent_of(traffic.canary_share))}
    if traffic.canary:
        roles[traffic.canary] = (_ROLES["canary"], percent_of(traffic.canary_share))
    if traffic.shadow:
        roles[traffic.shadow] = (_ROLES["shadow"], 0.0)
    return roles


def audit_table(entries: Sequence[AuditEntry]) -> Table:
    """One row for each entry, in the order of `entries`."""
    table = Table("when (UTC)", "who", "what", "release", "details", "why", title="Audit", show_lines=True)
    for entry in entries:
        when = f"{entry.time:%Y-%m-%d %H:%M:%S}"
        cells = (entry.who, entry.what, str(entry.release or "–"), details_in_short(entry), entry.reason)
        table.add_row(when, *cells)
    return table


def details_in_short(entry: AuditEntry) -> str:
    """The details of an entry as one line; empty for details that this version does not know."""
    details = entry.details
    if "traffic" in details:
        return _notation(details["traffic"])
    if "gone" in details:
        gone = ", ".join(map(str, details["gone"]))
        return f"deleted {gone}; {details['freed_bytes'] / 1e6:,.1f} MB"
    if "user_mark" in details:
        return f"{details['erased_event_count']} events of the user with mark {details['user_mark']}"
    parts = [f"from {details['source']}"] if "source" in details else []
    parts += [f"{name} {value:.4f}" for name, value in details.get("measured", {}).items()]
    parts += [f"forced: {problem}" for problem in details.get("forced", [])]
    return "; ".join(parts)


def _notation(traffic: Mapping[str, Any]) -> str:
    """The traffic of an audit entry in short; an entry of an older version may lack fields."""
    names = ("stable", "canary", "canary_share", "shadow")
    stable, canary, share, shadow = (traffic.get(name) or 0 for name in names)
    return notation(TrafficState(stable, canary, percent_of(share), shadow))
