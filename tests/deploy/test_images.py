"""The images: linted, pinned, without root, made from the lock file, and with a health check that works."""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from importlib.metadata import distribution
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from server.settings import Settings
from tests.deploy.support import PORTS, settings_fields
from tests.support.triton import ROOT

IMAGES = sorted((ROOT / "deploy" / "images").glob("*.Dockerfile"))
SERVER = ROOT / "deploy" / "images" / "server.Dockerfile"
HEAVY = {"torch", "lightning", "scikit-learn", "onnx", "onnxruntime", "cuml-cu12", "pandas", "nvidia-pytriton"}


def closure(extra: str) -> set[str]:
    """Names of all packages that an extra of the platform brings, as the installed packages name their dependencies."""
    seen: set[str] = set()
    open_ends: list[tuple[str, frozenset[str]]] = [("segrec-platform", frozenset({extra}))]
    done: set[tuple[str, frozenset[str]]] = set()
    while open_ends:
        name, extras = open_ends.pop()
        if (name, extras) in done:
            continue
        done.add((name, extras))
        seen.add(name)
        for text in distribution(name).requires or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": one}) for one in ("", *extras)):
                open_ends.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return seen - {"segrec", "segrec-platform"}


def pins(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9._-]+==[^ ]+", line) for line in lines), "every line is one exact pin"
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def instructions(path: Path, keyword: str) -> list[str]:
    text = path.read_text().replace("\\\n", " ")
    return [line.partition(" ")[2].strip() for line in text.splitlines() if line.startswith(f"{keyword} ")]


def environment(path: Path) -> dict[str, str]:
    return dict(pair.split("=", 1) for line in instructions(path, "ENV") for pair in line.split())


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.stem)
class TestImage:
    def test_hadolint_finds_nothing(self, image: Path) -> None:
        hadolint = Path(sys.executable).with_name("hadolint")
        result = subprocess.run(
            [hadolint, "--no-color", image], capture_output=True, text=True, timeout=60, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert "hadolint ignore" not in image.read_text()

    def test_the_base_is_pinned_to_a_patch_release(self, image: Path) -> None:
        [base] = [line for line in instructions(image, "ARG") if line.startswith("PYTHON_IMAGE=")]
        assert re.fullmatch(r"PYTHON_IMAGE=python:3\.11\.\d+-slim-\w+", base)
        assert {line.split()[0] for line in instructions(image, "FROM")} == {"${PYTHON_IMAGE}"}

    def test_it_has_stages_and_runs_without_root(self, image: Path) -> None:
        assert len(instructions(image, "FROM")) == 2
        assert instructions(image, "USER") == ["10001:10001"]
        assert "--uid 10001 --gid 10001" in image.read_text()

    def test_what_it_copies_exists_and_reaches_the_build(self, image: Path) -> None:
        ignored = (ROOT / ".dockerignore").read_text()
        for line in instructions(image, "COPY"):
            if line.startswith("--from"):
                continue
            for source in line.split()[:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}\n" in ignored or f"!{source.split('/')[0]}/\n" in ignored

    def test_packages_come_from_a_lock_file(self, image: Path) -> None:
        for line in instructions(image, "RUN"):
            for command in re.findall(r"pip install [^&]*", line):
                assert re.search(
                    r"--constraint requirements\.lock|requirements-gpu\.lock|--no-deps .* \./protos \.$", command
                )


def test_the_servers_image_is_light_and_wholly_pinned() -> None:
    packages = closure("server")
    assert "tritonclient" in packages
    assert not packages & HEAVY
    assert packages <= set(pins(ROOT / "requirements.lock"))


def test_the_training_image_is_wholly_pinned() -> None:
    packages = closure("training")
    assert "torch" in packages
    vendors = {name for name in packages if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
    assert packages - vendors <= set(pins(ROOT / "requirements.lock"))


def test_the_gpu_lock_file_follows_the_other() -> None:
    common, gpu = pins(ROOT / "requirements.lock"), pins(ROOT / "deploy" / "images" / "requirements-gpu.lock")
    assert {"torch", "cuml-cu13"} <= set(gpu)
    assert closure("training") <= set(gpu)
    differing = {name for name in set(common) & set(gpu) if common[name] != gpu[name]}
    assert differing == {"pandas"}, "make requirements-gpu.lock anew, as its first lines say"


def test_the_servers_image_sets_known_settings_and_the_usual_ports() -> None:
    variables = environment(SERVER)
    assert settings_fields(variables) <= set(Settings.model_fields)
    assert [variables[f"SEGREC_{name.upper()}"] for name in PORTS] == [f"0.0.0.0:{port}" for port in PORTS.values()]
    assert instructions(SERVER, "EXPOSE") == [" ".join(map(str, PORTS.values()))]
    assert f"127.0.0.1:{PORTS['address']}" in SERVER.read_text().partition("HEALTHCHECK")[2]


@pytest.fixture
async def servicer() -> AsyncIterator[tuple[health.aio.HealthServicer, str]]:
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(None)


async def _exit_code(*arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(ROOT / "deploy" / "images" / "health.py"), *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode().strip()


@pytest.mark.parametrize(("status", "ready"), [("SERVING", 0), ("NOT_SERVING", 1)])
async def test_health(servicer: tuple[health.aio.HealthServicer, str], status: str, ready: int) -> None:
    service, address = servicer
    await service.set("", health_pb2.HealthCheckResponse.ServingStatus.Value(status))
    assert await _exit_code(address) == (ready, status)
    assert await _exit_code("--alive", address) == (0, status)


async def test_health_of_a_server_that_is_not_there(unused_tcp_port: int) -> None:
    code, output = await _exit_code("--alive", f"127.0.0.1:{unused_tcp_port}")
    assert code == 1
    assert "does not answer: UNAVAILABLE" in output
