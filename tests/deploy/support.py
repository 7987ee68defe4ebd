"""What the tests of images, compose and Kubernetes share."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from server.adapters.embedded_triton.environment import TritonEnvironment
from server.adapters.embedded_triton.process import _server_flags
from server.adapters.triton_access import RESTRICTED_PROTOCOLS
from server.settings import Settings
from tests.support.triton import ROOT

PORTS = {
    name: int(Settings.model_fields[name].default.rpartition(":")[2])
    for name in ("address", "model_address", "metrics_address")
}
"""Where the server listens by default."""
TRITON_PORTS = {"grpc": 8001, "metrics": 8002}
FIRST_TRITON_THAT_KNOWS = {23: (25, 11)}
"""For each opset the first of NVIDIA's containers whose ONNX Runtime loads it: 1.22 of 25.06 refuses opset 23."""


def settings_fields(names: Iterable[str]) -> set[str]:
    """Environment variables of ours, as the settings they set."""
    return {name.removeprefix("SEGREC_").lower() for name in names if name.startswith("SEGREC_")}


def check_pinned(image: str) -> None:
    """An image has a tag that names one version."""
    tag = image.rpartition("/")[2].partition(":")[2]
    assert re.fullmatch(r"v?\d+\.\d+(\.\d+)?(-\w+)?", tag), f"{image} is not pinned"


def check_triton(image: str, flags: Sequence[str], repository: str = "/models") -> None:
    """Triton's container treats models as the embedded Triton does, and can load what training exports."""
    found = {name: value for name, _, value in (flag.partition("=") for flag in flags)}
    ours = _server_flags(TritonEnvironment(Path()), Path(repository), "0.0.0.0", "")
    expected = {name: value for name, _, value in (flag.partition("=") for flag in ours)}
    for flag in (
        "--model-repository",
        "--model-control-mode",
        "--strict-readiness",
        "--allow-http",
        "--disable-auto-complete-config",
    ):
        assert found[flag] == expected[flag]
    assert any(
        flag.partition("--grpc-restricted-protocol=")[2].startswith(f"{RESTRICTED_PROTOCOLS}:segrec=$")
        for flag in flags
    )
    assert found["--grpc-port"] == str(TRITON_PORTS["grpc"])
    assert found["--metrics-port"] == str(TRITON_PORTS["metrics"])
    [opset] = re.findall(r"^OPSET = (\d+)$", (ROOT / "training" / "model" / "export.py").read_text(), re.MULTILINE)
    [(year, month)] = re.findall(r"nvcr\.io/nvidia/tritonserver:(\d+)\.(\d+)-py3", image)
    assert (int(year), int(month)) >= FIRST_TRITON_THAT_KNOWS[int(opset)]
