"""compose.yaml, without a container engine: its structure, pins, ports and settings."""

import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict

from server.access.callers import Callers
from server.access.roles import ROLES
from server.adapters.triton_access import TritonSecret
from server.settings import Settings
from tests.deploy.support import PORTS, TRITON_PORTS, check_pinned, check_triton, settings_fields
from tests.support.triton import ROOT

FILE = ROOT / "deploy" / "compose.yaml"


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Build(_Closed):
    context: str
    dockerfile: str


class Service(_Closed):
    """The keys of the Compose specification that the file uses; another one is taken for a slip."""

    image: str
    build: Build | None = None
    profiles: list[str] = []
    command: list[str] = []
    environment: dict[str, str] = {}
    ports: list[str] = []
    volumes: list[str] = []
    secrets: list[str] = []
    networks: dict[str, dict[str, list[str]]] = {}
    deploy: dict[str, Any] = {}
    depends_on: dict[str, dict[str, str]] = {}
    healthcheck: dict[str, Any] = {}
    user: str = ""
    read_only: bool = False
    tmpfs: list[str] = []
    cap_drop: list[str] = []
    security_opt: list[str] = []
    stop_grace_period: str = ""
    restart: str = "no"


class Compose(_Closed):
    name: str
    services: dict[str, Service]
    secrets: dict[str, dict[str, str]]
    volumes: dict[str, dict[str, str]]


def compose() -> Compose:
    document = yaml.safe_load(FILE.read_text())
    return Compose.model_validate({key: value for key, value in document.items() if not key.startswith("x-")})


def test_images_are_pinned_and_ours_can_be_built() -> None:
    for service in compose().services.values():
        check_pinned(service.image)
        if service.build is not None:
            assert (FILE.parent / service.build.context / service.build.dockerfile).is_file()
            assert (FILE.parent / service.build.context).resolve() == ROOT


def test_no_service_keeps_privileges() -> None:
    for name, service in compose().services.items():
        assert service.cap_drop == ["ALL"], name
        assert service.security_opt == ["no-new-privileges:true"], name


def test_every_setting_is_known() -> None:
    server = compose().services["server"]
    assert settings_fields(server.environment) <= set(Settings.model_fields)
    named = {key.lower(): value for key, value in server.environment.items()}
    settings = Settings.model_validate({key.removeprefix("segrec_"): value for key, value in named.items()})
    assert settings.triton == f"triton:{TRITON_PORTS['grpc']}"


def test_the_drain_ends_before_the_container_is_killed() -> None:
    server = compose().services["server"]
    drain = float(server.environment["SEGREC_DRAIN_SECONDS"])
    assert int(server.stop_grace_period.removesuffix("s")) >= drain + 10


def test_only_the_public_port_leaves_the_host_and_replicas_can_share_a_range() -> None:
    services = compose().services
    assert services["server"].ports == [f"127.0.0.1:${{PORTS:-{PORTS['address']}}}:{PORTS['address']}"]
    assert services["server"].deploy["replicas"] == "${SERVERS:-1}"
    assert not any(services[name].ports for name in ("valkey", "triton", "triton-gpu", "training"))


def test_either_triton_answers_to_the_same_name() -> None:
    services = compose().services
    for name, profile in (("triton", "cpu"), ("triton-gpu", "gpu")):
        triton = services[name]
        assert triton.profiles == [profile]
        assert triton.networks == {"default": {"aliases": ["triton"]}}
        assert "models:/models:ro" in triton.volumes
        check_triton(triton.image, triton.command[1:])
    [device] = services["triton-gpu"].deploy["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_an_answered_event_is_on_disk() -> None:
    command = compose().services["valkey"].command
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "always"
    assert options["--maxmemory-policy"] == "noeviction"


def test_what_is_mounted_and_waited_for_exists() -> None:
    whole = compose()
    for service in whole.services.values():
        assert set(service.depends_on) <= set(whole.services)
        for volume in service.volumes:
            source = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", volume).split(":")[0]
            if source.startswith("./"):
                assert source == "./data" or (FILE.parent / Path(source)).exists()
            else:
                assert source in whole.volumes


def test_the_secrets_that_are_made_are_those_that_are_asked_for(tmp_path: Path) -> None:
    command = ["sh", str(ROOT / "deploy" / "make_secrets.sh"), str(tmp_path / "secrets")]
    for _ in range(2):  # the second time changes nothing
        subprocess.run(command, check=True)
        made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
        assert {Path(secret["file"]).name for secret in compose().secrets.values()} <= made.keys()
    callers = Callers.read(tmp_path / "secrets" / "access.toml", lambda: 0.0)
    for name, roles in (("client", {"read", "record"}), ("operator", set(ROLES))):
        caller = callers.with_token(made[f"{name}.token"].strip())
        assert caller is not None
        assert (caller.name, caller.roles) == (name, roles)
        assert stat.S_IMODE((tmp_path / "secrets" / f"{name}.token").stat().st_mode) == 0o600
    assert TritonSecret(tmp_path / "secrets" / "triton_secret").metadata()
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700


def test_triton_and_server_share_a_secret_that_is_not_committed() -> None:
    whole = compose()
    for name in ("triton", "triton-gpu", "server"):
        assert "triton_secret" in whole.services[name].secrets
    assert whole.services["server"].environment["SEGREC_TRITON_SECRET_FILE"] == "/run/secrets/triton_secret"
    assert whole.services["server"].environment["SEGREC_ACCESS_FILE"] == "/run/secrets/access"
    assert "access" in whole.services["server"].secrets
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text().split()
    assert all(secret["file"].startswith("./secrets/") for secret in whole.secrets.values())
