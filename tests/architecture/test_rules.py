"""What the folders promise, enforced."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.core import errors
from server.core.errors import SegrecError

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "sklearn", "cuml", "lightning", "training")


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "_pb2" not in path.name:
                yield path


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_starting_the_server_loads_no_torch() -> None:
    code = f"import sys, server.assembly, server.cli; sys.exit(','.join(set({HEAVY!r}) & set(sys.modules)) or 0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_no_test_sleeps() -> None:
    sleepers = [
        path.name
        for path in sources("tests")
        if not {"benchmarks", "simulation"} & set(path.parts)  # a load generator keeps a pace; simulated time is free
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "sleep"
    ]
    assert sleepers == []


def test_nothing_is_pickled() -> None:
    pickling = {
        (path.name, name)
        for path in sources("server", "training", "protos", "deploy")
        for name in imported(path)
        if name.split(".")[0] in ("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")
    }
    assert pickling == set()


def test_arrays_and_weights_are_loaded_without_pickle() -> None:
    """`np.load` refuses pickle and `torch.load` reads weights only, said at each call."""
    careless = []
    for path in sources("server", "training"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "torch.load"):
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if keywords.get("allow_pickle") != "False" and keywords.get("weights_only") != "True":
                    careless.append((path.name, node.lineno))
    assert careless == []


def test_the_two_triton_configurations_are_one() -> None:
    committed = ROOT / "model_repository/user_encoder/config.pbtxt"
    assert committed.read_bytes() == (ROOT / "server/core/repository/config.pbtxt").read_bytes()


def tree(kind: type[SegrecError]) -> Iterator[type[SegrecError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from tree(child)


@pytest.mark.parametrize("kind", list(tree(SegrecError)), ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_and_a_reason_and_is_drawn(kind: type[SegrecError]) -> None:
    import grpc

    assert kind.code in grpc.StatusCode.__members__
    assert kind.reason.isupper()
    assert kind.__module__ == errors.__name__
    assert errors.__doc__ is not None
    assert kind.__name__ in errors.__doc__
