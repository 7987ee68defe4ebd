"""`rules/` of the model repository: the versions of the operators' rules, of which the newest is in force.

Each version is a file of its own, `<version>.json`, which is created once and never changed. All servers follow.
"""

import os
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex

from pydantic import AwareDatetime, Field, ValidationError

from server.core.errors import DamagedRules, NotFound, RulesChanged
from server.core.frozen_model import FrozenModel
from server.core.repository.audit import AuditEntry, append_audit
from server.core.rules import Rules

RULES = "rules"


class RulesVersion(FrozenModel):
    """One version of the rules, who put it in force, when and why."""

    version: int = Field(ge=1)
    time: AwareDatetime
    who: str
    reason: str = ""
    rules: Rules


def versions(repository: Path) -> list[int]:
    """The versions that there are, ascending. Raises OSError."""
    try:
        names = os.listdir(repository / RULES)
    except FileNotFoundError:
        return []
    return sorted(int(stem) for name in names if name.endswith(".json") and (stem := name[:-5]).isdecimal())


def read_version(repository: Path, version: int) -> RulesVersion:
    """One version. Raises `NotFound`, or `DamagedRules`, which says what to mend."""
    path = repository / RULES / f"{version}.json"
    try:
        return RulesVersion.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise NotFound(
            f"there is no version {version} of the rules in {repository}", "version", reason="RULES_VERSION_NOT_FOUND"
        ) from None
    except OSError as error:
        raise DamagedRules(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise DamagedRules(f"{path}: {_sentence(error)}; put a sound version in force") from error


def newest_version(repository: Path) -> RulesVersion | None:
    """The version in force; None before the first. Raises `DamagedRules`."""
    try:
        found = versions(repository)
    except OSError as error:
        raise DamagedRules(f"{repository / RULES} cannot be read: {error.strerror}") from error
    return read_version(repository, found[-1]) if found else None


def put_version(repository: Path, rules: Rules, who: str, reason: str, after: int) -> RulesVersion:
    """Put rules in force as the version after `after`, durably, with a line in the audit.

    Raises `RulesChanged` when that version is there already or `after` is not the newest, and OSError.
    """
    found = versions(repository)
    if (found[-1] if found else 0) != after:
        raise _changed(found[-1])
    made = RulesVersion(version=after + 1, time=datetime.now(UTC), who=who, reason=reason, rules=rules)
    directory = repository / RULES
    directory.mkdir(exist_ok=True)
    temporary = directory / f".{made.version}.{token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            file.write(made.model_dump_json(indent=1, exclude_defaults=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, directory / f"{made.version}.json")  # fails where the version is there
    except FileExistsError:
        raise _changed(made.version) from None
    finally:
        temporary.unlink(missing_ok=True)
    counts = {"version": made.version, "rules": len(rules.rules), "action_weights": len(rules.action_weights)}
    append_audit(repository, AuditEntry(who=who, what="rules", release=0, reason=reason, details=counts))
    return made


def _changed(version: int) -> RulesChanged:
    return RulesChanged(
        f"version {version} of the rules was put in force meanwhile; nothing was changed: look, then try again"
    )


def read_rules_file(path: Path) -> Rules:
    """Rules in a TOML file that people write. Raises `DamagedRules`, which names the place."""
    try:
        return Rules.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DamagedRules(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise DamagedRules(f"{path}: {_sentence(error)}") from error
    except ValueError as error:  # no UTF-8, or no TOML
        raise DamagedRules(f"{path} is no TOML file: {error}") from error


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part + 1 if isinstance(part, int) else part) for part in first["loc"])
    said = str(first["msg"]).removeprefix("Value error, ")
    return f"{place}: {said}" if place else said
