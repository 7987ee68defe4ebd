"""How much of a caller's deadline is left for the work."""

from server.rpc.grpc_types import Context

REPLY_SECONDS = 0.05
"""Part of a caller's deadline that is reserved for the answer."""


def seconds_left(context: Context, most: float) -> float:
    """Seconds that a call may still work: up to `REPLY_SECONDS` before its deadline, and never more than `most`."""
    remaining: float | None = context.time_remaining()
    if remaining is None:
        return most
    return min(most, max(remaining - REPLY_SECONDS, remaining / 2))
