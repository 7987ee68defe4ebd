"""gRPC types that are generic in the type stubs, but not at run time."""

from typing import TYPE_CHECKING, Any

import grpc
from grpc.aio import ServicerContext

if TYPE_CHECKING:
    Context = ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]
else:
    Context = ServicerContext
    Handler = grpc.RpcMethodHandler
