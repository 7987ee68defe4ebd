"""An `Encoder` without Triton, for unit tests: ONNX Runtime in this process, with faults on demand."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.core.errors import EncoderUnavailable, ReleaseNotLoaded
from server.core.repository.layout import MODEL_NAME
from tests.support.releases import encode_with_onnx
from tests.support.waiting import wait_until_async


class OnnxEncoder:
    """Answers for the releases of a repository that were loaded."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self.loaded: tuple[int, ...] = ()
        self.down = False
        """Every call fails."""
        self.wrong = False
        """Answers are not what the model says."""
        self.wrong_releases: set[int] = set()
        """Answers of these are not what the model says."""
        self.unloadable: set[int] = set()
        self.call_sizes: list[int] = []
        self.counts: Counter[int] = Counter()
        """Inferences by release."""
        self.gate: asyncio.Event | None = None
        """When there is one, calls wait for it."""
        self.answers_others = True
        """Whether calls of other releases are answered all the time."""

    async def encode(
        self, release: int, inputs: Mapping[str, NDArray[np.generic]], timeout_seconds: float
    ) -> NDArray[np.float32]:
        self.call_sizes.append(len(inputs["item_index"]))
        if self.gate is not None:
            await self.gate.wait()
        if self.down:
            raise EncoderUnavailable(f"no answer within {timeout_seconds:g} s")
        if release not in self.loaded:
            raise ReleaseNotLoaded(f"release {release} is not loaded")
        self.counts[release] += 1
        answer = encode_with_onnx(self._repository / MODEL_NAME / str(release) / "model.onnx", dict(inputs))
        return answer + np.float32(1.0) if self.wrong or release in self.wrong_releases else answer

    def longest_silence(self, since: float) -> float:
        return 0.0 if self.answers_others else time.monotonic() - since

    async def until_asked(self) -> None:
        """Return once there was a call."""

        async def asked() -> bool:
            return bool(self.call_sizes)

        await wait_until_async(asked)

    async def load(self, releases: Sequence[int], keep: Callable[[], Collection[int]] | None = None) -> None:
        broken = self.unloadable & set(releases)
        if self.down or broken & set(self.loaded):
            raise EncoderUnavailable(f"cannot load {sorted(broken)}")
        self.loaded = tuple(sorted({*releases, *(set(keep() if keep else ()) & set(self.loaded))} - broken))
        if broken:
            raise EncoderUnavailable(f"cannot load {sorted(broken)}")

    async def inference_counts(self) -> dict[int, int]:
        if self.down:
            raise EncoderUnavailable("no answer")
        return {number: self.counts[number] for number in self.loaded}

    async def is_ready(self, release: int) -> bool:
        return not self.down and release in self.loaded

    async def close(self) -> None:
        self.loaded = ()
