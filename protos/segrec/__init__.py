"""Client of the Segrec services: segments and recommendations over gRPC."""
