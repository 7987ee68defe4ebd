"""The unix socket of an embedded Triton, in a directory that only the user of this process may enter.

Whoever reaches Triton's gRPC can have it run a model, which is code of the caller's choice. A TCP port on loopback is
open to every local user, and a secret among Triton's arguments can be read in `/proc`. For a socket in a directory of
mode 700, the kernel refuses every other user.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from server.core.errors import SetupError

_PREFIX = "segrec-triton-"
_LONGEST_PATH_BYTES = 100
"""The kernel allows 107 bytes for the path of a socket."""


class PrivateSocket:
    """A directory of mode 700 in the directory for temporary files, locked while this process lives.

    Directories of processes that were killed are recognised by their free lock, and removed. Raises `SetupError` when
    the directory cannot be made.
    """

    def __init__(self) -> None:
        _remove_orphans()
        self._path, self._lock = _locked_directory()
        if len(os.fsencode(self._path / "triton:1")) > _LONGEST_PATH_BYTES:
            self.remove()
            raise SetupError(f"the path {self._path} is too long for a socket: set TMPDIR to a shorter path")

    @property
    def host(self) -> str:
        """Value of Triton's `--grpc-address`; Triton appends a colon and `--grpc-port`."""
        return f"unix:{self._path / 'triton'}"

    @property
    def address(self) -> str:
        """Address for gRPC clients, with `port` 1."""
        return f"{self.host}:1"

    @property
    def name(self) -> str:
        """A name that no other socket of this machine has."""
        return self._path.name.removeprefix(_PREFIX)

    def remove(self) -> None:
        """Remove the directory; can be called twice."""
        shutil.rmtree(self._path, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.close(self._lock)
        self._lock = -1


def _locked_directory() -> tuple[Path, int]:
    """A new directory and the descriptor that holds its lock."""
    while True:
        try:
            path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise SetupError(
                f"no directory for the socket of Triton can be made in {tempfile.gettempdir()} ({error.strerror}): "
                "set TMPDIR to a directory that can be written"
            ) from error
        if _lock(descriptor) and path.exists():  # another start may take a new directory for an orphan
            return path, descriptor
        os.close(descriptor)


def _remove_orphans() -> None:
    """Remove the directories of processes of this user that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # it belongs to another user, or was removed meanwhile
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid() and _lock(descriptor):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
