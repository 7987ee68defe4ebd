"""The stubs of a Triton: the processes that run its models."""

import contextlib
import re
from typing import NamedTuple, Self

import psutil

from server.core.repository.layout import MODEL_NAME


class Stub(NamedTuple):
    """A stub, and the version that it runs by its command line; None for a stub that had ended."""

    process: psutil.Process
    version: int | None

    @classmethod
    def of(cls, process: psutil.Process) -> Self:
        return cls(process, _version_of(process))

    @property
    def is_running(self) -> bool:
        """Whether it still runs; another process with the same id does not count."""
        with contextlib.suppress(psutil.Error):
            return self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE
        return False


def _version_of(stub: psutil.Process) -> int | None:
    with contextlib.suppress(psutil.Error):
        for argument in stub.cmdline():
            match = re.search(rf"/{MODEL_NAME}/(\d+)/", argument)
            if match:
                return int(match[1])
    return None
