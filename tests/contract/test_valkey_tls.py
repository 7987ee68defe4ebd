"""A history store behind mutual TLS, by the parameters of a rediss:// URL."""

import socket
from pathlib import Path

import pytest

from server.adapters.valkey_store import ValkeyStore
from server.core.errors import StoreUnavailable
from tests.support.certificates import Authority
from tests.support.redis_server import RedisServer


async def test_a_store_is_reached_by_mutual_tls_and_checks_the_authority(tmp_path: Path) -> None:
    authority, strangers = Authority(tmp_path), Authority(tmp_path, "strangers")
    server, client = authority.issue("server"), authority.issue("client")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tls = ("--tls-port", str(port), "--tls-cert-file", str(server.certificate), "--tls-key-file", str(server.key))
    redis = RedisServer(tmp_path, *tls, "--tls-ca-cert-file", str(authority.root), "--appendonly", "yes")
    redis.start()
    try:
        shown = f"ssl_certfile={client.certificate}&ssl_keyfile={client.key}"
        url = f"rediss://localhost:{port}/0"
        store = await ValkeyStore.connect(f"{url}?ssl_ca_certs={authority.root}&{shown}", 10)
        assert len(await store.get("nobody")) == 0
        await store.close()
        for parameters in (f"ssl_ca_certs={strangers.root}&{shown}", f"ssl_ca_certs={authority.root}"):
            with pytest.raises(StoreUnavailable):
                await ValkeyStore.connect(f"{url}?{parameters}", 10)
    finally:
        redis.kill()
