"""The examples of docs/API.md do what the page says, against the real server."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from segrec.errors import SegrecError
from segrec.v1 import catalogue_service_pb2, event_service_pb2, model_service_pb2, segrec_service_pb2

from deploy.api_page import ADDRESS, MODEL_ADDRESS, PAGE, read_examples
from deploy.protos import ROOT
from tests.service.test_grpcurl import GRPCURL
from tests.support.server import ServerProcess
from training.data.demo import write_demo

EXAMPLES = read_examples()
FILES = [one.DESCRIPTOR for one in (segrec_service_pb2, catalogue_service_pb2, event_service_pb2, model_service_pb2)]
NODE_SECONDS = 120
STAND_INS = {
    "1082185": "item-001",
    "995242": "item-002",
    "Produce": "category-1",
    "Eggs": "category-2",
    '"purchase"': '"view"',
    '"release": 1': '"release": 3',
    "get_release(1)": "get_release(3)",
}
"""What the test's release has in place of names of the demo."""


def blocks(language: str, server: ServerProcess) -> list[str]:
    """The code of a language in the order of the page, for this server: the introduction's first, if it has any."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names = {ADDRESS: server.address, MODEL_ADDRESS: server.model_address} | STAND_INS
    return [reduce(lambda text, pair: text.replace(*pair), names.items(), code) for code in found]


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
            assert_has_content(method, result.stdout)


def assert_has_content(method: str, output: str) -> None:
    """The first field of each message is what was asked for; grpcurl leaves out what is empty."""
    service, name = method.split(".")
    [described] = [file.services_by_name[service] for file in FILES if service in file.services_by_name]
    first = described.methods_by_name[name].output_type.fields[0].name
    answers = [json.loads(text) for text in re.split(r"(?<=^})\n", output, flags=re.MULTILINE) if text]
    assert first in answers[0], (method, output)
    if name.startswith("Stream"):
        assert all("result" in row for row in answers[0]["chunk"]["rows"]), (method, output)


def test_the_names_are_of_the_demo(tmp_path: Path) -> None:
    log = write_demo(tmp_path)
    bought = pl.scan_parquet(log.events).unique("item_id").select("item_id", "action")
    items = pl.scan_parquet(log.items).join(bought, on="item_id").collect()
    known = {*items["item_id"], *items["category"].explode(), *(f'"{action}"' for action in items["action"].unique())}
    assert {name for name in STAND_INS if "release" not in name} <= known
    users = set(pl.read_parquet(log.events, columns=["user_id"])["user_id"])
    assert users >= {"42", "43"}
    assert "visitor-1" not in users  # the examples record and erase this user
    for name in ("RecordEvents", "EraseUser"):
        assert '"user_id": "visitor-1"' in EXAMPLES[f"EventService.{name}"]["requests"][0]


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
