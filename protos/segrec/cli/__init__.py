"""The command `segrec`: questions, streams, records and traffic from a shell.

The top of `segrec`: may import all of it. It needs grpcio and protobuf only.
"""
