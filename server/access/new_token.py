"""`segrec-serve token`: makes a token and adds its caller to an access file."""

import argparse
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from server.access.callers import Entry, read_entries, token_hash
from server.access.roles import ROLES
from server.core.errors import SetupError

TOKEN_BYTES = 32


def token_command(arguments: Sequence[str]) -> None:
    """Print a new token, and add its caller to the access file. Raises `SetupError`."""
    parser = argparse.ArgumentParser(
        prog="segrec-serve token",
        description="Print a new token, and add its caller to the access file. That file holds only a hash of the "
        "token; `segrec --token-file` reads the token from a file.",
    )
    parser.add_argument("name", help="name of the caller, as metrics and the audit log show it")
    parser.add_argument("roles", nargs="+", choices=ROLES, metavar="role", help=", ".join(ROLES))
    parser.add_argument("--access-file", type=Path, required=True, help="created when it is missing")
    options = parser.parse_args(list(arguments))
    print(add_caller(options.access_file, options.name, options.roles))


def add_caller(path: Path, name: str, roles: Sequence[str]) -> str:
    """Add a caller to the access file, which is created when it is missing; returns the token. Raises `SetupError`."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    digest = token_hash(token)
    try:
        Entry.model_validate({"name": name, "roles": roles, "token_sha256": [digest]})
    except ValidationError as error:
        raise SetupError(f"the name {name!r} has other characters than a-z, 0-9 and ._-") from error
    if path.exists() and any(entry.name == name for entry in read_entries(path)):
        raise SetupError(f"access_file {path} has a caller {name} already: choose another name, or remove the entry")
    listed = ", ".join(f'"{role}"' for role in roles)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f'[[callers]]\nname = "{name}"\nroles = [{listed}]\ntoken_sha256 = ["{digest}"]\n\n')
    except OSError as error:
        raise SetupError(f"access_file {path} cannot be written: {error.strerror}") from error
    print(f"{name} may {' and '.join(roles)}; keep the token, which is shown this once:", file=sys.stderr)
    return token
