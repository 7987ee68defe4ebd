"""Who may change the traffic.

With a token file, the callers that send the token; otherwise callers on this machine, and with mutual TLS every caller.
"""

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
    """Decides which callers may change the traffic. `token` None: callers on this machine, and with mutual TLS all."""

    def __init__(self, token: str | None, has_mutual_tls: bool) -> None:
        self._token = token
        self._has_mutual_tls = has_mutual_tls

    def check(self, context: Context) -> None:
        """Raises `NotAllowed` when the caller must not change the traffic."""
        if self._token is not None:
            if not hmac.compare_digest(_sent_token(context).encode(), self._token.encode()):
                raise NotAllowed(
                    "only callers with the server's token may change the traffic: give the token with --token-file"
                )
        elif not self._has_mutual_tls and not is_local(context.peer()):
            raise NotAllowed(
                "only callers on the server's machine may change the traffic: run the command there, or set "
                "model_token_file or tls_client_ca in the server's configuration"
            )


def authorisation_of(settings: Settings) -> Authorisation:
    """The authorisation that the settings define. Raises `SetupError` when the token file cannot be used."""
    path = settings.model_token_file
    return Authorisation(None if path is None else _read(path), settings.tls_client_ca is not None)


def is_local(peer: str) -> bool:
    """Whether a peer in gRPC's notation, such as `ipv4:127.0.0.1:5000`, is on this machine."""
    scheme, _, host_and_port = unquote(peer).partition(":")
    if scheme == "unix":
        return True
    try:
        address = ip_address(host_and_port.rpartition(":")[0].strip("[]"))
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
