"""The gRPC edge: services, validation, conversion, interceptors, health and TLS."""
