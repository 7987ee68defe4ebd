"""A Triton or a stub that hangs, and a Triton that answers wrongly, are found without traffic and mended."""

import asyncio
import os
import signal
import time

import pytest

from server.adapters.embedded_triton import EmbeddedTriton, supervisor
from server.adapters.triton import TritonEncoder
from server.core.errors import DamagedRelease
from tests.service.test_triton import answers, own_encoder  # noqa: F401  a fixture
from tests.support.onnx_models import random_inputs
from tests.support.waiting import wait_until_async

FOUND_SECONDS = 10.0
"""Within this a quiet machine finds and mends a hung part; a busy one has twice the time."""


def watch(triton: EmbeddedTriton, encoder: TritonEncoder) -> None:
    """Connect the two as the server does."""

    async def probe() -> None:
        await encoder.encode(1, random_inputs(1, 2), 5.0)

    triton.set_callbacks(encoder.reload, probe)
    encoder.on_hung_instance = triton.report_hung_stub


@pytest.mark.parametrize("hung", [1, 2])
async def test_hung_stubs_are_replaced(
    embedded_triton: EmbeddedTriton,
    own_encoder: TritonEncoder,  # noqa: F811
    hung: int,
) -> None:
    stubs, pid = embedded_triton.stub_pids(), embedded_triton.pid
    for stub in stubs[:hung]:
        os.kill(stub, signal.SIGSTOP)
    watch(embedded_triton, own_encoder)
    started = time.monotonic()

    async def mended() -> bool:
        now = embedded_triton.stub_pids()
        return embedded_triton.repair_count > 0 and len(now) == 2 and set(now).isdisjoint(stubs)

    await wait_until_async(mended)
    assert time.monotonic() - started < 2 * FOUND_SECONDS
    assert all([await answers(own_encoder, 1) for _ in range(4)])
    assert (embedded_triton.restart_count, embedded_triton.pid) == (0, pid)


async def test_a_hung_triton_is_restarted(
    embedded_triton: EmbeddedTriton,
    own_encoder: TritonEncoder,  # noqa: F811
) -> None:
    watch(embedded_triton, own_encoder)
    assert embedded_triton.pid
    os.kill(embedded_triton.pid, signal.SIGSTOP)
    started = time.monotonic()

    async def restarted() -> bool:
        return embedded_triton.restart_count == 1 and await answers(own_encoder, 1)

    await wait_until_async(restarted, timeout=2 * FOUND_SECONDS)
    print(f"restarted and loaded {time.monotonic() - started:.1f} s after it hung")


async def test_a_triton_that_ends_itself_is_counted_and_started_again(
    embedded_triton: EmbeddedTriton,
    own_encoder: TritonEncoder,  # noqa: F811
) -> None:
    assert embedded_triton.pid
    os.kill(embedded_triton.pid, signal.SIGABRT)

    async def restarted() -> bool:
        return embedded_triton.restart_count == 1 and await answers(own_encoder, 1)

    await wait_until_async(restarted)
    assert embedded_triton.abort_count == 1


async def test_wrong_embeddings_restart_triton_twice_and_no_more(
    embedded_triton: EmbeddedTriton,
    own_encoder: TritonEncoder,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "PROBE_SECONDS", 0.05)
    probes_of_second_restart, enough = 0, asyncio.Event()

    async def probe() -> None:
        nonlocal probes_of_second_restart
        probes_of_second_restart += embedded_triton.restart_count == 2
        if probes_of_second_restart > 20:
            enough.set()
        raise DamagedRelease("the embeddings differ")

    embedded_triton.set_callbacks(own_encoder.reload, probe)
    await asyncio.wait_for(enough.wait(), 20.0)
    assert embedded_triton.restart_count == 2
