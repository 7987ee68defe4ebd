"""The command `segrec`: queries, streams, event recording and traffic from a shell.

The top package of `segrec`: it may import every other module. It needs only grpcio and protobuf.
"""
