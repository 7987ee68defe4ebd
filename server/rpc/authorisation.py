"""Who may change the traffic: whoever has the token; without one callers of this machine, or with a certificate."""

import hmac
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from urllib.parse import unquote

from server.core.errors import NotAllowed, SetupError
from server.rpc.grpc_types import Context
from server.settings import Settings

METADATA_KEY = "authorization"
_PREFIX = "Bearer "


class Authorisation:
    """Lets callers change the traffic, or not. `token` None: callers of this machine, and all behind mutual TLS."""

    def __init__(self, token: str | None, has_mutual_tls: bool) -> None:
        self._token = token
        self._has_mutual_tls = has_mutual_tls

    def check(self, context: Context) -> None:
        """Raises `NotAllowed` unless the caller may."""
        if self._token is not None:
            if not hmac.compare_digest(_sent_token(context).encode(), self._token.encode()):
                raise NotAllowed("the traffic may be changed with the server's token alone: give it by --token-file")
        elif not self._has_mutual_tls and not is_local(context.peer()):
            raise NotAllowed(
                "the traffic may be changed from the server's own machine alone: ask there, or give the server a "
                "model_token_file or tls_client_ca"
            )


def authorisation_of(settings: Settings) -> Authorisation:
    """What the settings ask for. Raises `SetupError`."""
    path = settings.model_token_file
    return Authorisation(None if path is None else _read(path), settings.tls_client_ca is not None)


def is_local(peer: str) -> bool:
    """Whether gRPC's name of a caller, such as `ipv4:127.0.0.1:5000`, is of this machine."""
    kind, _, place = unquote(peer).partition(":")
    if kind == "unix":
        return True
    try:
        address = ip_address(place.rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _sent_token(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == METADATA_KEY and isinstance(value, str) and value.startswith(_PREFIX):
            return value.removeprefix(_PREFIX)
    return ""


def _read(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"model_token_file {path} cannot be read: {error}") from error
    if not token:
        raise SetupError(f"model_token_file {path} is empty: write a long random token into it")
    return token
