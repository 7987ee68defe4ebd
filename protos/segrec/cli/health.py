"""`segrec health`: whether a server answers and is ready, for scripts and probes."""

import argparse
import time
from contextlib import closing
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from segrec.channel import Tls, open_channel
from segrec.cli.exit_codes import OK, UNAVAILABLE
from segrec.cli.records import json_line
from segrec.cli.terminal import say
from segrec.errors import SegrecError, error_of_call

_METHOD = "/grpc.health.v1.Health/Check"
_STATES = {0: "unknown", 1: "serving", 2: "not_serving", 3: "service_unknown"}
_PAUSE_SECONDS = 0.2


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `segrec health`."""
    parser.add_argument("--wait", action="store_true", help="try until the server is ready, or --timeout has passed")


def health(address: str, tls: Tls | None, timeout_seconds: float, options: argparse.Namespace) -> int:
    """Prints the state of the server. Raises SegrecError when none answers."""
    end = time.monotonic() + timeout_seconds
    with closing(open_channel(address, tls)) as channel:
        while True:
            try:
                state = _state(channel, address, end - time.monotonic(), timeout_seconds)
            except SegrecError as error:
                if not _may_try_again(options, end) or error.code is not grpc.StatusCode.UNAVAILABLE:
                    raise
            else:
                if state == "serving" or not _may_try_again(options, end):
                    break
            time.sleep(_PAUSE_SECONDS)
    say(json_line({"address": address, "state": state}) if options.json else f"{address}: {state.replace('_', ' ')}")
    return OK if state == "serving" else UNAVAILABLE


def _may_try_again(options: argparse.Namespace, end: float) -> bool:
    return options.wait and time.monotonic() + _PAUSE_SECONDS < end


def _state(channel: grpc.Channel, address: str, left_seconds: float, timeout_seconds: float) -> str:
    # The messages of grpc.health.v1 have one field each, a text and a number: on the wire they are those of protobuf's
    # wrappers, so that the client needs no package more.
    check: Any = channel.unary_unary(
        _METHOD, request_serializer=StringValue.SerializeToString, response_deserializer=Int32Value.FromString
    )
    try:
        return _STATES.get(check(StringValue(), timeout=left_seconds).value, "unknown")
    except grpc.RpcError as error:
        raise error_of_call(error, address, timeout_seconds) from error
