"""The real Triton on one machine: installed into its own environment, started, watched and stopped by the server."""

from server.adapters.embedded_triton.environment import TritonEnvironment, check_environment, install_environment
from server.adapters.embedded_triton.supervisor import EmbeddedTriton

__all__ = ["EmbeddedTriton", "TritonEnvironment", "check_environment", "install_environment"]
