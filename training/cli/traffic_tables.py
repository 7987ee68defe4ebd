"""What the command line tells of traffic and of the audit: tables and sentences for people."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from server.core.errors import DamagedRelease, DamagedTraffic
from server.core.repository.audit import AuditEntry
from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_manifest
from server.core.repository.traffic import Guard, Traffic, read_traffic
from training.repository import newest_release, release_numbers

_ROLES = {"stable": "answers", "canary": "canary", "shadow": "shadow, compared and never returned"}


def in_force(repository: Path, traffic: Traffic) -> RenderableType:
    """Which release answers whom, who says so and why, and what stands by."""
    parts: list[RenderableType] = [_table(repository, traffic), sentence(traffic)]
    if traffic.guard:
        parts.append(f"The guard takes release {traffic.canary} out: {guard_in_words(traffic.guard)}.")
    if traffic.previous:
        parts.append(f"Stable before, the latest first: {', '.join(map(str, traffic.previous))}.")
    if traffic.changed_time:
        why = f", because: {escape(traffic.reason)}" if traffic.reason else ""
        parts.append(f"Set by {escape(traffic.changed_by)} at {traffic.changed_time:%Y-%m-%d %H:%M:%S} UTC{why}")
    return Group(*parts)


def sentence(traffic: Traffic) -> str:
    """Who answers whom, in one sentence."""
    if not traffic.stable:
        return "The newest good release answers everyone, and the next one that is published takes its place at once."
    rest = f"release {traffic.stable} answers"
    if not traffic.canary:
        return f"R{rest[1:]} everyone; one that is published stands by until it is given a share."
    return f"Release {traffic.canary} answers {traffic.canary_percent:g} % of the users, {rest} the others."


def after_publishing(repository: Path, number: int) -> str:
    """What becomes of a release that has just been published, and what to do next."""
    try:
        stable = read_traffic(repository).stable
    except DamagedTraffic as error:
        return f"Servers go on with the traffic that was in force: {error}."
    if not stable:
        return (
            f"Release {number} takes all traffic as soon as servers have loaded and proved it; `segrec-train rollback` "
            "takes it back."
        )
    return (
        f"Release {number} stands by, and release {stable} answers. See what would change, and give it a share:\n"
        f"  segrec-train diff {stable} {number}\n"
        f"  segrec-train traffic {stable}=99 {number}=1"
    )


def guard_in_words(guard: Guard) -> str:
    """When a guard acts, for people."""
    bounds = {
        "errors": guard.max_error_share,
        "degraded answers": guard.max_degraded_share,
        "answers without a confident segment": guard.max_unconfident_share,
    }
    told = [f"{bound:.2%} {name}" for name, bound in bounds.items() if bound is not None]
    if guard.max_p99_seconds is not None:
        told.append(f"a p99 of {guard.max_p99_seconds * 1000:g} ms")
    return f"above {' or '.join(told)} over {guard.window_seconds:g} s of {guard.min_answer_count:,} answers or more"


def _table(repository: Path, traffic: Traffic) -> Table:
    table = Table("release", "made", "share", "what it does", title=f"Releases in {escape(str(repository))}")
    roles = roles_of(repository, traffic)
    for number in sorted({*release_numbers(repository), *roles}, reverse=True):
        role, share = roles.get(number, ("stands by", 0.0))
        try:
            made = f"{read_manifest(repository / MODEL_NAME / str(number)).created_time:%Y-%m-%d %H:%M}"
        except DamagedRelease as error:
            made, role = "?", f"{role}; but {escape(str(error))}"
        table.add_row(str(number), made, f"{share:g} %" if share else "–", role)
    return table


def roles_of(repository: Path, traffic: Traffic) -> dict[int, tuple[str, float]]:
    """What each release does that has something to do, with its share of the users in percent."""
    stable = traffic.stable
    if not stable:
        newest = newest_release(repository)
        return {newest.number: ("answers, as the newest good one", 100.0)} if newest else {}
    roles = {stable: (_ROLES["stable"], 100.0 - traffic.canary_percent)}
    if traffic.canary:
        roles[traffic.canary] = (_ROLES["canary"], traffic.canary_percent)
    if traffic.shadow:
        roles[traffic.shadow] = (_ROLES["shadow"], 0.0)
    return roles


def audit_table(entries: Sequence[AuditEntry]) -> Table:
    """Audit lines, the oldest first."""
    table = Table("when (UTC)", "who", "what", "release", "what it meant", "why", title="Audit", show_lines=True)
    for entry in entries:
        when = f"{entry.time:%Y-%m-%d %H:%M:%S}"
        cells = (entry.who, entry.what, str(entry.release or "–"), meaning(entry), entry.reason)
        table.add_row(when, *map(escape, cells))
    return table


def meaning(entry: AuditEntry) -> str:
    """What an entry's details say, in short; empty where they say nothing that is known here."""
    details = entry.details
    if "traffic" in details:
        return _shares(details["traffic"])
    if "gone" in details:
        gone = ", ".join(map(str, details["gone"]))
        return f"took out {gone}; {details['freed_bytes'] / 1e6:,.1f} MB"
    told = [f"from {details['source']}"] if "source" in details else []
    told += [f"{name} {value:.4f}" for name, value in details.get("measured", {}).items()]
    told += [f"forced past: {problem}" for problem in details.get("forced", [])]
    return "; ".join(told)


def _shares(traffic: dict[str, object]) -> str:
    stable, canary, percent = (traffic.get(name) for name in ("stable", "canary", "canary_percent"))
    if not stable:
        return "newest=100"
    rest = 100.0 - float(str(percent or 0))
    told = f"{stable}={rest:g}" + (f" {canary}={percent:g}" if canary else "")
    return told + (f", shadow {traffic['shadow']}" if traffic.get("shadow") else "")
