"""The exit codes of `segrec` and the errors that they stand for."""

import grpc

from segrec.errors import SegrecError

OK = 0
OTHER = 1
USAGE = 2
NOT_FOUND = 3
UNAVAILABLE = 4
ROWS_FAILED = 5
DATA_LOSS = 6
ROWS_DEGRADED = 7
INTERRUPTED = 130
BROKEN_PIPE = 141

_BY_CODE = {
    grpc.StatusCode.INVALID_ARGUMENT: USAGE,
    grpc.StatusCode.NOT_FOUND: NOT_FOUND,
    grpc.StatusCode.UNAVAILABLE: UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS: DATA_LOSS,
}

HELP = """\
exit codes:
  0    all done
  1    any other failure
  2    a wrong argument, option or file
  3    the release or the segment does not exist
  4    no server answers, it is not ready, or the answer is too late
  5    done, but some users failed or some events were refused
  6    the answers or counts of a stream do not match
  7    done, but an answer is degraded, or of a stream more than --max-degraded (and none failed)
  130  interrupted (Ctrl-C)"""


def exit_code(error: SegrecError) -> int:
    """The exit code of an error that ended a command."""
    return _BY_CODE.get(error.code, OTHER)
