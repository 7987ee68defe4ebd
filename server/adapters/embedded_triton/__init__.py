"""The real Triton on one machine: installed into an environment of its own, started, watched and ended by us."""

from server.adapters.embedded_triton.environment import TritonEnvironment, check_environment, install_environment
from server.adapters.embedded_triton.supervisor import EmbeddedTriton

__all__ = ["EmbeddedTriton", "TritonEnvironment", "check_environment", "install_environment"]
