"""The examples of docs/API.md do what the page says, against the real server."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from segrec.errors import SegrecError

from deploy.api_page import ADDRESS, MODEL_ADDRESS, PAGE, read_examples
from deploy.protos import ROOT
from tests.service.test_grpcurl import GRPCURL
from tests.support.server import ServerProcess

EXAMPLES = read_examples()
NODE_SECONDS = 120


def blocks(language: str, server: ServerProcess) -> list[str]:
    """The code of a language in the order of the page, for this server: the introduction's first, if it has any."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text.replace(ADDRESS, server.address).replace(MODEL_ADDRESS, server.model_address) for text in found]


@pytest.fixture
def names(running_server: ServerProcess) -> Iterator[dict[str, Any]]:
    """What the introduction's Python defines."""
    defined: dict[str, Any] = {}
    exec(blocks("python", running_server)[0], defined)
    yield defined
    defined["client"].close()
    defined["models"].close()


def test_python(running_server: ServerProcess, names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    codes = blocks("python", running_server)[1:]
    for (method, example), code in zip(EXAMPLES.items(), codes, strict=True):
        if "refused" in example:
            with pytest.raises(SegrecError, match=example["refused"]):
                exec(code, names)
        else:
            exec(code, names)
            assert capsys.readouterr().out.strip(), method


def test_grpcurl(running_server: ServerProcess) -> None:
    for (method, example), command in zip(EXAMPLES.items(), blocks("sh", running_server), strict=True):
        words = shlex.split(command)
        result = subprocess.run([str(GRPCURL), *words[1:]], capture_output=True, text=True, timeout=60, check=False)
        if "refused" in example:
            assert example["refused"] in result.stderr
        else:
            assert result.returncode == 0, (method, result.stderr)


@pytest.mark.nightly
def test_node(running_server: ServerProcess, tmp_path: Path) -> None:
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("npm and node are missing: install them to run the examples of Node")
    packages = ["@grpc/grpc-js", "@grpc/proto-loader", "google-proto-files"]
    subprocess.run([npm, "install", "--silent", *packages], cwd=tmp_path, timeout=NODE_SECONDS, check=True)
    (tmp_path / "protos").symlink_to(ROOT / "protos")
    codes = blocks("js", running_server)
    assert len(codes) == len(EXAMPLES) + 1
    (tmp_path / "examples.js").write_text("\n".join(codes), encoding="utf-8")
    result = subprocess.run(
        [node, "examples.js"], cwd=tmp_path, capture_output=True, text=True, timeout=NODE_SECONDS, check=False
    )
    assert result.returncode == 0, result.stderr
    errors = re.findall(r"^(?:Error: )?\d+ [A-Z_]+: .*", result.stdout, re.MULTILINE)
    refused = [example["refused"] for example in EXAMPLES.values() if "refused" in example]
    assert len(errors) == len(refused), errors
    assert all(sentence in "\n".join(errors) for sentence in refused)
    assert "summary" in result.stdout
