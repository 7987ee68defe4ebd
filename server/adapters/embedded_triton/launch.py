"""Replaces itself by the given command, which the kernel kills when the parent process ends for any reason.

    python -I launch.py PARENT_PID COMMAND [ARGUMENT...]

A process of its own does this, because Python code after a fork in a threaded server may deadlock.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent, then become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the line above
        sys.exit(1)
    os.umask(0o077)  # what the command writes, this user alone can read
    os.execv(command[0], command)  # noqa: S606  the command is ours


if __name__ == "__main__":
    main()
