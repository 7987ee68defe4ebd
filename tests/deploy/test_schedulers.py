"""The recipes of docs/BATCH.md run in the real Airflow and the real Dagster, each in an environment of its own."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tests.support.client_cli import segrec_environment
from tests.support.page_blocks import block_with
from tests.support.server import ServerProcess

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]
USERS = [f"scheduled-{n}" for n in range(300)]
DAGSTER_RUN = """
import dagster as dg
import segments_dagster as recipe

dg.Definitions.validate_loadable(recipe.defs)
result = dg.materialize([recipe.user_segments], partition_key="2026-03-01")
assert result.success
[check] = result.get_asset_check_evaluations()
assert check.passed
[materialization] = result.asset_materializations_for_node("user_segments")
print("read", materialization.metadata["read"].value)
"""


@pytest.fixture
def environment(running_server: ServerProcess, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "users.csv").write_text("user_id\n" + "\n".join(USERS), encoding="utf-8")
    return segrec_environment() | {
        "SEGREC_ADDRESS": running_server.address,
        "SEGMENTS_FOLDER": str(tmp_path),
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }


def install(folder: Path, *packages: str) -> Path:
    """An environment with these packages; returns its Python."""
    uv = str(Path(sys.executable).parent / "uv")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    python = folder / "bin" / "python"
    subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), *packages], check=True)
    return python


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Runs a command in the folder; returns what it printed."""
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_dagster_materializes_the_asset(tmp_path: Path, environment: dict[str, str]) -> None:
    python = install(tmp_path / "dagster", "dagster==1.13.29")
    (tmp_path / "segments_dagster.py").write_text(block_with("BATCH.md", "python", "segments_dagster.py"))
    (tmp_path / "run.py").write_text(DAGSTER_RUN)
    assert "read 300" in run([str(python), "run.py"], tmp_path, environment)
    assert pl.read_parquet(tmp_path / "segments-2026-03-01.parquet")["user_id"].to_list() == USERS


def test_airflow_runs_the_dag(tmp_path: Path, environment: dict[str, str]) -> None:
    python = install(tmp_path / "env", "apache-airflow-core==3.3.2", "apache-airflow-providers-standard")
    airflow = str(python.parent / "airflow")
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "segments_dag.py").write_text(block_with("BATCH.md", "python", "segments_dag.py"))
    run([airflow, "db", "migrate"], tmp_path, environment)
    run([airflow, "dags", "test", "segments"], tmp_path, environment)
    [written] = tmp_path.glob("segments-*.parquet")
    assert pl.read_parquet(written)["user_id"].to_list() == USERS
    assert len(list(tmp_path.glob("failed-*.csv"))) == 1
