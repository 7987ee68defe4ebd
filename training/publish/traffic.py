"""Changes of the traffic by `segrec-train traffic` and `rollback`."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import segrec.errors
from segrec.traffic import NEWEST, TrafficState, parse_change, percent_of

from server.core.errors import DamagedRelease, InvalidArgument
from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_manifest
from server.core.repository.traffic import Traffic, change_traffic, rolled_back, validated_traffic
from training.errors import ConfigError, PublishError
from training.repository import find_release, newest_release, read_trusted, release_numbers


def set_traffic(
    repository: Path, shares: Sequence[str], shadow: str | None, guard: str | None, who: str, reason: str = ""
) -> Traffic:
    """Parse a change with `segrec.traffic.parse_change` and put it in force; returns the new traffic.

    Raises ConfigError for an invalid change, PublishError for a missing release or a repository that cannot be written,
    DamagedRelease for a release that does not pass its checks.
    """

    def changed(before: Traffic) -> Traffic:
        newest = None if before.stable else newest_release(repository, answering=True)
        active = newest.number if newest else before.stable
        after = before.replaced_by(_traffic_of(change.applied_to(state_of(before), active)), active)
        for number in sorted({after.stable, after.canary, after.shadow} - {NEWEST}):
            find_release(repository, number)
        return after

    try:
        change = parse_change(shares, shadow, guard)
        return change_traffic(repository, changed, "traffic", who, reason)
    except segrec.errors.InvalidArgument as error:
        raise ConfigError(f"{error}.") from error
    except InvalidArgument as error:
        raise ConfigError(f"This traffic is not possible: {error}.") from error
    except OSError as error:
        raise _unwritable(repository, error) from error


def state_of(traffic: Traffic) -> TrafficState:
    """The part of the traffic that people set."""
    guard = traffic.guard.model_dump(exclude_none=True) if traffic.guard else None
    return TrafficState(traffic.stable, traffic.canary, percent_of(traffic.canary_share), traffic.shadow, guard)


def _traffic_of(state: TrafficState) -> Traffic:
    share = state.canary_percent / 100.0
    releases = {"stable": state.stable, "canary": state.canary, "shadow": state.shadow}
    return validated_traffic({**releases, "canary_share": share, "guard": state.guard})


def roll_back(repository: Path, who: str, reason: str = "") -> tuple[Traffic, str]:
    """Undo the last change; returns the new traffic and a sentence about it.

    Raises NothingToRollBack when no earlier release can answer, PublishError for a repository that cannot be written.
    """
    summary = ""

    def change(before: Traffic) -> Traffic:
        nonlocal summary
        after, summary = _one_step_back(repository, before)
        return after

    try:
        return change_traffic(repository, change, "rollback", who, reason), summary
    except OSError as error:
        raise _unwritable(repository, error) from error


def rollback_target(repository: Path, before: Traffic) -> int:
    """The release that a roll-back would make stable. Raises NothingToRollBack."""
    return _one_step_back(repository, before.with_answering())[0].stable


def readable_releases(repository: Path) -> list[int]:
    """Numbers of the releases whose manifest can be read, ascending; their other files are not checked."""
    numbers = []
    for number in release_numbers(repository):
        with suppress(DamagedRelease):
            read_manifest(repository / MODEL_NAME / str(number))
            numbers.append(number)
    return numbers


def _one_step_back(repository: Path, before: Traffic) -> tuple[Traffic, str]:
    """The traffic after a roll-back to a release that passes all checks, and a sentence; only targets are checked."""
    good = [number for number in readable_releases(repository) if _may_answer(repository, number, before)]
    if not before.stable:
        newest = newest_release(repository, answering=True)
        good = [number for number in good if newest and number <= newest.number]
    while True:
        after, summary = rolled_back(before, good)
        if after.stable == before.stable or _is_good(repository, after.stable):
            return after, summary
        good.remove(after.stable)


def _may_answer(repository: Path, number: int, traffic: Traffic) -> bool:
    """Whether a release does not stand by, or has answered before."""
    if number == traffic.stable or number in traffic.previous:
        return True
    return not read_manifest(repository / MODEL_NAME / str(number)).stands_by


def _is_good(repository: Path, number: int) -> bool:
    try:
        read_trusted(repository / MODEL_NAME / str(number))
    except DamagedRelease:
        return False
    return True


def _unwritable(repository: Path, error: OSError) -> PublishError:
    return PublishError(f"The traffic of {repository} cannot be changed: {error.strerror}.")
