"""The reasons of errors that the API lists are those that the server gives."""

import re
from pathlib import Path

from segrec.v1.error_reason_pb2 import ErrorReason

from server.core import errors

ROOT = Path(__file__).parents[2]
PREFIX = "ERROR_REASON_"


def given_reasons() -> set[str]:
    """The reasons of classes of errors, and those of their calls."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SegrecError)]
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "server").rglob("*.py"))
    return {kind.reason for kind in kinds} | set(re.findall(r'reason(?:: str)? ?= ?"([A-Z0-9_]+)"', text))


def test_the_api_lists_every_reason_that_the_server_gives_and_no_other() -> None:
    listed = {name.removeprefix(PREFIX) for name, _ in ErrorReason.items()}
    assert listed - {"UNSPECIFIED"} == given_reasons() - {"SETUP"}


def test_every_reason_but_those_of_requests_has_one_status() -> None:
    codes: dict[str, set[str]] = {}
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.SegrecError):
            codes.setdefault(kind.reason, set()).add(kind.code)
    assert all(len(found) == 1 for reason, found in codes.items() if reason != "INTERNAL"), codes
