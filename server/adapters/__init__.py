"""I/O behind Protocols: Triton, history stores, the release directory."""
