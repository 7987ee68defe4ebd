"""The commands that `publish` names act on the repository that it published to."""

from pathlib import Path

import pytest

from server.core.repository.traffic import change_traffic
from tests.support.releases import tiny_release
from training.cli.options import REPOSITORY
from training.cli.traffic_tables import after_publishing


def test_the_next_commands_name_another_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for repository in (Path("my models"), REPOSITORY):
        tiny_release(repository, 1)
        tiny_release(repository, 2)
        option = " --repository 'my models'" if repository != REPOSITORY else ""
        assert f"`segrec-train rollback{option}` undoes that." in after_publishing(repository, 1)
        change_traffic(repository, lambda before: before.with_stable(1), "traffic", "ada")
        assert after_publishing(repository, 2).endswith(
            f"\n  segrec-train diff 1 2{option}\n  segrec-train traffic 1=99 2=1{option}"
        )
