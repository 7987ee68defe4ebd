"""The gRPC edge: services, validation, conversion, errors, authorisation, TLS.

This package may import `monitoring`, `releases`, `serving` and the packages below them.
"""
