"""What a caller can set for one call: deadline, metadata and request id; and names of arguments that do not exist."""

import functools
import inspect
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ParamSpec, Self, TypedDict, TypeVar, get_args

from segrec.errors import REQUEST_ID_KEY, InvalidArgument

P = ParamSpec("P")
ResultT = TypeVar("ResultT")
Metadata = tuple[tuple[str, str | bytes], ...]

MAX_REQUEST_ID_LENGTH = 128
_KEY = re.compile(r"[0-9a-z_.-]+")


class CallOptions(TypedDict, total=False):
    """What each method of the clients takes for one call; all optional.

    `timeout`: the deadline in seconds, in place of the client's; for a stream the deadline of the whole stream, which
    has none by default. `metadata`: pairs of gRPC metadata to send along, with keys in lower case. `request_id`: 1 to
    128 printable ASCII characters by which the server's log and errors name the call; default: the server makes one.
    """

    timeout: float | None
    metadata: Mapping[str, str | bytes]
    request_id: str


@dataclass(frozen=True, slots=True)
class Call:
    """The checked options of one call. `timeout` is None without a deadline; `end` is monotonic time."""

    timeout: float | None
    end: float
    metadata: Metadata

    @classmethod
    def of(cls, options: CallOptions, own_metadata: Metadata, default_timeout: float | None) -> Self:
        """Raises InvalidArgument for an option that cannot be used."""
        timeout = options.get("timeout")
        if timeout is None:
            timeout = default_timeout
        if timeout is not None and not _is_positive(timeout):
            raise InvalidArgument(f"timeout is {timeout!r}: give a number of seconds above 0", field="timeout")
        metadata = (*own_metadata, *_metadata_of(options.get("metadata", {})), *_request_id_of(options))
        return cls(timeout, math.inf if timeout is None else time.monotonic() + timeout, metadata)

    def seconds_left(self) -> float | None:
        """Seconds until the deadline, for gRPC; None without a deadline."""
        return None if self.timeout is None else self.end - time.monotonic()

    def stream_opener(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Opens a connection of a stream, with what is left of the deadline."""

        def open_call(requests: Any) -> Any:
            return method(requests, timeout=self.seconds_left(), metadata=self.metadata)

        return open_call


def _is_positive(timeout: object) -> bool:
    return isinstance(timeout, int | float) and not isinstance(timeout, bool) and 0 < timeout < math.inf


def _metadata_of(metadata: object) -> Metadata:
    if not isinstance(metadata, Mapping):
        raise InvalidArgument(f"metadata must be a mapping of keys to values, not {_kind(metadata)}", field="metadata")
    for key, value in metadata.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key) or key.startswith("grpc-"):
            message = f"metadata cannot have the key {key!r}: lower-case letters, digits and _ . - are allowed"
            raise InvalidArgument(message, field="metadata")
        kind = bytes if key.endswith("-bin") else str
        if not isinstance(value, kind) or (isinstance(value, str) and not _is_printable(value)):
            wanted = "bytes" if kind is bytes else "printable ASCII text"
            raise InvalidArgument(f"metadata[{key!r}] must be {wanted}", field="metadata")
    return tuple(metadata.items())


def _request_id_of(options: CallOptions) -> Metadata:
    if "request_id" not in options:
        return ()
    request_id: object = options["request_id"]
    if (
        not isinstance(request_id, str)
        or not 1 <= len(request_id) <= MAX_REQUEST_ID_LENGTH
        or not _is_printable(request_id)
    ):
        message = f"request_id must be 1 to {MAX_REQUEST_ID_LENGTH} printable ASCII characters"
        raise InvalidArgument(message, field="request_id")
    return ((REQUEST_ID_KEY, request_id),)


def _is_printable(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _kind(value: object) -> str:
    return type(value).__name__


def named_arguments(method: Callable[P, ResultT]) -> Callable[P, ResultT]:
    """The method, which raises InvalidArgument with the nearest name where a keyword argument does not exist."""
    known, title = _keywords_of(method), method.__qualname__.removesuffix(".__init__")

    @functools.wraps(method)
    def checked(*args: P.args, **kwargs: P.kwargs) -> ResultT:
        for name in kwargs.keys() - known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(sorted(known))}"
            raise InvalidArgument(f"{title} has no argument {name}: {hint}", field=name)
        return method(*args, **kwargs)

    return checked


def _keywords_of(method: Callable[..., Any]) -> set[str]:
    """Names of the keyword arguments of a method; `**options: Unpack[T]` takes the keys of T."""
    known: set[str] = set()
    for parameter in inspect.signature(method).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            [fields] = get_args(parameter.annotation)
            known |= {*fields.__required_keys__, *fields.__optional_keys__}
        else:
            known.add(parameter.name)
    return known - {"self"}
