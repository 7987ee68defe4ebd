"""The access control that the settings define, with its metrics."""

import logging
from collections.abc import Callable
from functools import cache

from server.access.control import AccessControl, AccessFile, is_loopback
from server.monitoring.metrics import Metrics
from server.settings import Settings

log = logging.getLogger(__name__)


def access_controls(settings: Settings, metrics: Metrics) -> Callable[[str], AccessControl]:
    """The access control of an address. Raises `SetupError` when the access file cannot be used."""
    file = AccessFile(settings.access_file) if settings.access_file is not None else None
    remote = [address for address in (settings.address, settings.model_address) if not is_loopback(address)]
    if file is not None and file.callers.has_tokens and settings.tls_certificate is None and remote:
        log.warning("tokens travel unencrypted to %s: set tls_certificate and tls_key", " and ".join(remote))
    if file is None and remote:
        log.warning(
            "without access_file, callers of other machines may only read%s at %s",
            " and record" if settings.tls_client_ca is not None else "",
            " and ".join(remote),
        )

    counters = cache(metrics.caller_calls.labels)

    def observe(caller: str, outcome: str) -> None:
        counters(caller, outcome).inc()

    has_mutual_tls = settings.tls_client_ca is not None
    return lambda address: AccessControl(file, address, observe, has_mutual_tls=has_mutual_tls)
