"""Code for other languages: generated for Go, Java, C# and TypeScript, and a TypeScript client of a running server."""

import json
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

from tests.support.server import ServerProcess

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PROTOS = sorted(
    path.relative_to(ROOT / "protos").as_posix() for path in (ROOT / "protos" / "segrec" / "v1").glob("*.proto")
)
GOOGLE = Path(str(files("google.rpc") / "status.proto")).parents[2]
GOOGLE_PROTOS = [f"google/{name}.proto" for name in ("api/annotations", "api/http", "api/field_behavior")]
GOOGLE_PROTOS += ["google/rpc/status.proto", "google/rpc/error_details.proto"]


def run(*command: str | Path, cwd: Path = ROOT, seconds: float = 120) -> str:
    """What the command prints; fails with what it says."""
    assert shutil.which(command[0]), f"{command[0]} is not installed: run `make services`"
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=seconds, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def protoc(*options: str, protos: list[str]) -> None:
    run("protoc", f"-I{ROOT / 'protos'}", f"-I{GOOGLE}", *options, *protos)


@pytest.mark.parametrize(
    ("out", "option", "expected"),
    [
        ("go", "--go_opt=paths=source_relative", ("segrec/v1/segrec_service.pb.go", "package segrecv1")),
        ("java", "", ("dev/segrec/v1/RecommendRequest.java", "package dev.segrec.v1;")),
        ("csharp", "", ("SegrecService.cs", "namespace Segrec.V1 {")),
    ],
    ids=["go", "java", "csharp"],
)
def test_code_is_generated(tmp_path: Path, out: str, option: str, expected: tuple[str, str]) -> None:
    protoc(f"--{out}_out={tmp_path}", *filter(None, [option]), protos=PROTOS)
    name, line = expected
    assert line in (tmp_path / name).read_text(encoding="utf-8")


def test_a_typescript_client_talks_to_a_running_server(running_server: ServerProcess, tmp_path: Path) -> None:
    for name in ("package.json", "tsconfig.json", "client.ts"):
        shutil.copy(HERE / name, tmp_path)
    run("npm", "install", "--no-audit", "--no-fund", "--silent", cwd=tmp_path, seconds=300)
    tools = tmp_path / "node_modules" / ".bin"
    (tmp_path / "gen").mkdir()
    plugin = f"--plugin=protoc-gen-es={tools / 'protoc-gen-es'}"
    out = [f"--es_out={tmp_path / 'gen'}", "--es_opt=target=ts,import_extension=js"]
    protoc(plugin, *out, protos=PROTOS + GOOGLE_PROTOS)
    run(tools / "tsc", "--project", ".", cwd=tmp_path)
    told = json.loads(run("node", "out/client.js", f"http://{running_server.address}", cwd=tmp_path))
    assert told == {
        "stored": 5,
        "segment": 2,
        "items": 3,
        "listed": 5,
        "outcomes": ["result", "status", "result"],
        "answered": 2,
        "error": {
            "code": "InvalidArgument",
            "reason": "TOP_K_OUT_OF_RANGE",
            "domain": "segrec.dev",
            "field": "options.top_k",
        },
    }
