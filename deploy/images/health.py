"""Health check of the server's container: asks the gRPC health service, prints the answer, exits 0 or 1.

    python health.py [--alive] [ADDRESS]

By itself it says whether calls are answered, which they are once a release is active. With `--alive` any answer will
do, also NOT_SERVING: a server that waits for its first release must not be restarted.
"""

import argparse
import sys
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_SECONDS = 3.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", nargs="?", default="127.0.0.1:50051", help="HOST:PORT, without TLS")
    parser.add_argument("--alive", action="store_true", help="NOT_SERVING is good enough")
    options = parser.parse_args(arguments)
    with grpc.insecure_channel(options.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            print(f"{options.address} does not answer: {error.code().name}")
            return 1
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
    return 0 if options.alive or answer.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main())
