"""Every service is found by reflection, and every RPC can be called with grpcurl alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server import ServerProcess

GRPCURL = Path(sys.executable).with_name("grpcurl")
EVENT = {"item_id": "item-002", "action": "view", "timestamp": "2024-01-01T00:00:00Z"}
CALLS: list[tuple[str, object, str]] = [
    ("SegrecService/Segment", {"events": {"events": [EVENT]}}, "SEGMENT_STATE_ASSIGNED"),
    ("SegrecService/Recommend", {"user_id": "curl", "options": {"top_k": 2}}, "item-0"),
    (
        "SegrecService/StreamSegment",
        [{"config": {}}, {"chunk": {"chunk_id": 7, "user_ids": ["curl"]}}],
        '"chunk_id": "7"',
    ),
    (
        "SegrecService/StreamRecommend",
        [{"config": {}}, {"chunk": {"chunk_id": 8, "user_ids": ["curl"]}}],
        '"chunk_id": "8"',
    ),
    ("SegrecService/ListSegments", {}, '"segment_id": 4'),
    ("SegrecService/GetSegment", {"segment_id": 2}, '"segment_id": 2'),
    ("CatalogueService/ListItems", {"category": "category-2", "page_size": 2}, '"next_page_token"'),
    ("CatalogueService/GetItem", {"item_id": "item-002"}, "category-2"),
    ("CatalogueService/SimilarItems", {"item_id": "item-002", "top_k": 1}, "similarity"),
    ("CatalogueService/ListCategories", {}, "category-4"),
    ("CatalogueService/ListActions", {}, '"weight"'),
    ("EventService/RecordEvents", {"events": [{"user_id": "curl", "event": EVENT}]}, "_count"),
    ("EventService/ListEvents", {"user_id": "curl"}, "item-002"),
    ("EventService/EraseUser", {"user_id": "curl"}, "erased_event_count"),
    ("ModelService/ListReleases", {}, "RELEASE_STATE_ACTIVE"),
    ("ModelService/GetRelease", {"release": 3}, '"embedding_dim": 16'),
    ("ModelService/SetTraffic", {"traffic": {}, "changed_by": "curl"}, '"changed_by": "curl"'),
]
REFUSED: list[tuple[str, object, str]] = [
    ("ModelService/Rollback", {}, "release 3 has no earlier release to roll back to")
]


def grpcurl(address: str, *words: str) -> str:
    at = words.index("-d") + 2 if "-d" in words else 0
    command = [str(GRPCURL), "-plaintext", *words[:at], address, *words[at:]]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_reflection_lists_the_services(running_server: ServerProcess) -> None:
    public = grpcurl(running_server.address, "list").split()
    assert {"segrec.v1.SegrecService", "segrec.v1.EventService", "grpc.health.v1.Health"} <= set(public)
    assert "segrec.v1.ModelService" not in public
    assert "segrec.v1.ModelService" in grpcurl(running_server.model_address, "list").split()


def test_the_list_of_calls_below_names_every_rpc(running_server: ServerProcess) -> None:
    addresses = {"SegrecService": running_server.address, "EventService": running_server.address}
    addresses["CatalogueService"] = running_server.address
    addresses["ModelService"] = running_server.model_address
    found = {
        method
        for service, address in addresses.items()
        for method in grpcurl(address, "list", f"segrec.v1.{service}").split()
    }
    assert found == {"segrec.v1." + name.replace("/", ".") for name, _, _ in CALLS + REFUSED}


@pytest.mark.parametrize(("method", "request_", "expected"), CALLS, ids=[name for name, _, _ in CALLS])
def test_every_rpc_answers(running_server: ServerProcess, method: str, request_: object, expected: str) -> None:
    address = running_server.model_address if method.startswith("Model") else running_server.address
    record = json.dumps({"events": [{"user_id": "curl", "event": EVENT}]})
    grpcurl(running_server.address, "-d", record, "segrec.v1.EventService/RecordEvents")
    messages = request_ if isinstance(request_, list) else [request_]
    data = " ".join(map(json.dumps, messages))
    assert expected in grpcurl(address, "-d", data, f"segrec.v1.{method}")


@pytest.mark.parametrize(("method", "request_", "problem"), REFUSED, ids=[name for name, _, _ in REFUSED])
def test_every_other_rpc_says_why_not(
    running_server: ServerProcess, method: str, request_: object, problem: str
) -> None:
    with pytest.raises(AssertionError, match=problem):
        grpcurl(running_server.model_address, "-d", json.dumps(request_), f"segrec.v1.{method}")
