"""Releases in MLflow's model registry: one version each, with the aliases `stable` and `canary` as traffic has them.

The repository keeps the address and the model's name in `mlflow.json`, so that a change of the traffic is followed
without a run. Changes that a server makes (SetTraffic, the guard) are followed at the next command that changes it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from server.core.frozen_model import FrozenModel
from server.core.repository.layout import MODEL_NAME
from server.core.repository.traffic import read_traffic
from training.repository import release_numbers
from training.runs import Run, write_atomically
from training.tracking import Tracking, mlflow_client

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LINK = "mlflow.json"
_MANIFEST = "manifest.json"
STABLE, CANARY = "stable", "canary"


class RegistryLink(FrozenModel):
    """Where the releases of a repository are registered."""

    uri: str | None
    model: str


def register_release(run: Run, repository: Path, number: int) -> str:
    """Register the release that the run was published as, if `[tracking]` asks for MLflow.

    Returns a sentence if that failed, else an empty text: the release serves in any case.
    """
    tracking = Tracking(run)
    if tracking.settings.to != "mlflow":
        return ""
    with tracking.forgiving():
        _register(tracking, repository, number)
    return tracking.problem or follow_traffic(repository)


def _register(tracking: Tracking, repository: Path, number: int) -> None:
    """Make the version of a release, once, and note in the repository where it is."""
    client, model = tracking.client, tracking.settings.experiment
    if not client.search_registered_models(f"name='{model}'"):
        client.create_registered_model(model)
    link = RegistryLink(uri=tracking.settings.uri, model=model)
    write_atomically(repository / _LINK, link.model_dump_json() + "\n")
    if number in _versions(client, model, repository):
        return
    manifest = repository / MODEL_NAME / str(number) / _MANIFEST
    client.log_artifact(tracking.mlflow_run, str(manifest), "release")
    source = f"{client.get_run(tracking.mlflow_run).info.artifact_uri}/release"
    tags = {"release": str(number), "repository": _name(repository), "run": tracking.run.path.name}
    client.create_model_version(model, source, tracking.mlflow_run, tags=tags)


def follow_traffic(repository: Path) -> str:
    """Give the aliases to the versions of the releases that the traffic names.

    Returns a sentence if that failed, else an empty text; nothing happens for a repository without registered releases.
    """
    path = repository / _LINK
    if not path.is_file():
        return ""
    try:
        link = RegistryLink.model_validate_json(path.read_bytes())
        traffic = read_traffic(repository)
        stable = traffic.stable or max(release_numbers(repository), default=0)
        _set_aliases(link, repository, {STABLE: stable, CANARY: traffic.canary})
    except Exception as error:  # the traffic is in force, whatever the registry says
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"The aliases of MLflow's registered model did not follow the traffic ({reason})."
    return ""


def _set_aliases(link: RegistryLink, repository: Path, wanted: dict[str, int]) -> None:
    client = mlflow_client(link.uri)
    versions = _versions(client, link.model, repository)
    held = client.get_registered_model(link.model).aliases
    for alias, number in wanted.items():
        if number in versions:
            client.set_registered_model_alias(link.model, alias, versions[number])
        elif alias in held:  # no release has it, or one that was never registered
            client.delete_registered_model_alias(link.model, alias)


def _versions(client: "MlflowClient", model: str, repository: Path) -> dict[int, str]:
    """The versions of a registered model by the numbers of this repository's releases."""
    found = client.search_model_versions(f"name='{model}'")
    ours = [version for version in found if version.tags.get("repository") == _name(repository)]
    return {int(version.tags["release"]): str(version.version) for version in ours}


def _name(repository: Path) -> str:
    return str(repository.resolve())
