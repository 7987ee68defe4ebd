"""What is left of a call to Triton whose caller has gone."""

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from server.adapters.triton import TritonEncoder
from tests.support.releases import tiny_release


async def test_a_failure_that_nobody_waits_for_is_not_logged_as_unseen(tmp_path: Path) -> None:
    config = tiny_release(tmp_path, 1).parent / "config.pbtxt"
    encoder = TritonEncoder("localhost:1", config)
    unseen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    begun, fails = asyncio.Event(), asyncio.Event()

    async def method(_request: object, metadata: object) -> None:
        begun.set()
        await fails.wait()
        raise ConnectionError("Triton has ended")

    caller = asyncio.ensure_future(encoder._call(method, service_pb2.ModelReadyRequest(), 60.0))
    await begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert encoder.abandoned_count == 1
    fails.set()
    await encoder.close()
    assert encoder.abandoned_count == 0
    gc.collect()  # a task whose failure nobody has seen says so when it is collected
    assert unseen == []
