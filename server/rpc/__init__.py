"""The gRPC edge: services, validation, conversion, errors, authorisation, TLS.

May import `monitoring`, `releases`, `serving` and what stands below them.
"""
