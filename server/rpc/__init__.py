"""The gRPC edge: services, validation, conversion, errors, access, TLS.

This package may import `monitoring`, `releases`, `serving` and the packages below them.
"""
