"""What docs/BATCH.md tells people to type: its shell blocks and its SQL run as they stand there."""

import re
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import yaml  # type: ignore[import-untyped]
from segrec.cli import exit_codes

from tests.support.client_cli import read, segrec_environment
from tests.support.fake_segrec import WAIT_SECONDS, FakeSegrec
from tests.support.page_blocks import DOCS, block_with

PAGE = "BATCH.md"


def bash(script: str) -> subprocess.CompletedProcess[str]:
    # The fake has no health service: a shell function answers for it, and all else is the real command.
    ready = 'segrec() { if [ "$1" = health ]; then return 0; fi; command segrec "$@"; }\n'
    command = ["bash", "-c", ready + script]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=WAIT_SECONDS * 2, check=False, env=segrec_environment()
    )


def test_the_first_block_writes_segments_and_can_be_repeated(fake: FakeSegrec) -> None:
    pl.DataFrame({"customer": ["ab", "cold", "slow"] + ["cd"] * 2000}).write_parquet("users.parquet")
    script = block_with(PAGE, "sh", "--user-column customer")
    for _ in range(2):
        result = bash(script)
        assert result.returncode == 0, result.stderr  # one of 2,003 is below 0.1 %
        assert len(read("segments.parquet")) == 2003
        assert [row["user_id"] for row in read("failed.csv")] == ["slow"]


def test_cron_writes_changes_from_the_second_night_on(fake: FakeSegrec) -> None:
    Path("users.csv").write_text("user_id\nab\ncold\n", encoding="utf-8")
    script = block_with(PAGE, "sh", "crontab")
    today = datetime.now().astimezone().date()
    assert bash(script).returncode == 0
    assert not list(Path().glob("changes*"))
    yesterday = pl.read_parquet(f"segments-{today}.parquet").with_columns(segment_id=7)
    yesterday.write_parquet(f"segments-{today - timedelta(days=1)}.parquet")
    result = bash(script)
    assert result.returncode == 0, result.stderr
    [changes] = Path().glob("changes*")
    assert [row["user_id"] for row in read(str(changes))] == ["ab", "cold"]


def test_a_pipe_feeds_polars(fake: FakeSegrec) -> None:
    Path("users.csv").write_text("user_id\nab\nabc\nbc\n", encoding="utf-8")
    result = bash(block_with(PAGE, "sh", "--format arrow"))
    assert result.returncode == 0, result.stderr
    assert re.search(r"│ 3 +┆ 2 +│", result.stdout), result.stdout


def test_the_model_of_dbt_keeps_good_rows_with_a_segment(fake: FakeSegrec) -> None:
    Path("users.csv").write_text("user_id\nab\ncold\nslow\nbad\ntorn\n", encoding="utf-8")
    bash("segrec stream --users users.csv --out segments.parquet")
    query = block_with(PAGE, "sql", "select").replace("{{ source('segrec', 'segments') }}", "segments")
    frame = pl.SQLContext(segments=pl.scan_parquet("segments.parquet")).execute(query, eager=True)
    assert frame["user_id"].to_list() == ["ab", "torn"]
    tests = yaml.safe_load(block_with(PAGE, "yaml", "models/segments.yml"))
    columns = {column["name"] for column in tests["models"][0]["columns"] + tests["sources"][0]["tables"][0]["columns"]}
    assert columns <= {"user_id", "degraded", *frame.columns}


def test_the_page_names_the_columns_and_exit_codes() -> None:
    page = (DOCS / PAGE).read_text(encoding="utf-8")
    for code in (exit_codes.ROWS_FAILED, exit_codes.ROWS_DEGRADED, exit_codes.DATA_LOSS, exit_codes.USAGE):
        assert f"\n| {code} |" in page
