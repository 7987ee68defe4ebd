"""Every method and every field of a request says what gateways and generators need; breaking changes are found."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.api.annotations_pb2 import http
from google.api.field_behavior_pb2 import field_behavior
from google.protobuf.descriptor import Descriptor, FileDescriptor, MethodDescriptor
from segrec.v1 import catalogue_service_pb2, event_service_pb2, model_service_pb2, segrec_service_pb2

ROOT = Path(__file__).parents[2]
FILES: list[FileDescriptor] = [
    module.DESCRIPTOR for module in (catalogue_service_pb2, event_service_pb2, model_service_pb2, segrec_service_pb2)
]
METHODS: list[MethodDescriptor] = [
    method for file in FILES for service in file.services_by_name.values() for method in service.methods
]


def messages_of(message: Descriptor, seen: set[str]) -> Iterator[Descriptor]:
    """A message of the API and those in its fields, each once."""
    if message.full_name in seen or not message.full_name.startswith("segrec."):
        return
    seen.add(message.full_name)
    yield message
    for field in message.fields:
        if field.message_type is not None:
            yield from messages_of(field.message_type, seen)


def test_every_unary_method_has_an_http_path_of_its_own() -> None:
    unary = [method for method in METHODS if not method.client_streaming]
    rules = [method.GetOptions().Extensions[http] for method in unary]
    paths = [(rule.WhichOneof("pattern"), getattr(rule, rule.WhichOneof("pattern") or "custom")) for rule in rules]
    assert len(paths) > 10
    assert len(set(map(str, paths))) == len(unary)


@pytest.mark.parametrize("method", METHODS, ids=[method.name for method in METHODS])
def test_every_field_of_a_request_says_whether_it_is_required(method: MethodDescriptor) -> None:
    silent = [
        field.full_name
        for message in messages_of(method.input_type, set())
        for field in message.fields
        if not field.GetOptions().Extensions[field_behavior]
    ]
    assert silent == []


def protos(command: str, root: Path) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(ROOT / "deploy" / "protos.py"), command, "--root", str(root)]
    return subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)


def git(root: Path, *words: str) -> None:
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", str(root), *author, *words], check=True, capture_output=True)


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A repository whose only commit has the protos of today."""
    shutil.copytree(
        ROOT / "protos" / "segrec" / "v1", tmp_path / "protos" / "segrec" / "v1", ignore=shutil.ignore_patterns("*.py*")
    )
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "released")
    return tmp_path


def test_a_removed_field_is_a_breaking_change_and_an_added_one_is_not(released: Path) -> None:
    git(released, "tag", "v1.0.0")
    path = released / "protos" / "segrec" / "v1" / "common.proto"
    text = path.read_text(encoding="utf-8")
    path.write_text(text + "\n// New.\nmessage New {\n  // New.\n  string text = 1;\n}\n", encoding="utf-8")
    added = protos("breaking", released)
    assert (added.returncode, added.stdout) == (0, "")
    lines = text.splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "string item_id = 1" not in line), encoding="utf-8")
    removed = protos("breaking", released)
    assert removed.returncode == 1
    assert "break callers of v1.0.0" in removed.stdout
    assert "item_id" in removed.stdout


def test_before_the_first_tag_the_comparison_says_that_it_compared_nothing(released: Path) -> None:
    result = protos("breaking", released)
    assert (result.returncode, "compared with nothing" in result.stdout) == (0, True)
