"""The README's ten lines on pushing a model, run as they stand there."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from segrec import SegrecClient

from tests.architecture.test_readme import README
from tests.e2e.test_whole_way import CONFIG
from tests.support.logs import planted_log
from tests.support.server import StartServer
from tests.support.waiting import wait_until

LINES = [
    shlex.split(line, comments=True)
    for line in README.split("## Pushing a model")[1].split("```sh\n")[1].split("```")[0].splitlines()
]
USERS = [f"u{number:05}" for number in range(2000)]
"""One per cent of so many is somebody, whatever the key that draws them."""
FORCE = ["--force", "rules of one line win on so small a log"]


@pytest.mark.timeout(300)
def test_the_ten_lines_do_what_they_say(start_server: StartServer, tmp_path: Path) -> None:
    assert len(LINES) == 10
    log, _ = planted_log(users=300, items=80, events_per_user=24)
    log[: len(log) // 2].write_csv(tmp_path / "events.csv")
    log.write_parquet(tmp_path / "new-log.parquet")
    (tmp_path / "config.toml").write_text(CONFIG)
    (tmp_path / "repository").mkdir()
    (tmp_path / "model_repository").symlink_to("repository")
    environment = dict(os.environ, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", COLUMNS="120")

    def run(words: list[str]) -> str:
        done = subprocess.run(
            words, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
        return done.stdout

    run(["segrec-train", "run", "--events", "events.csv", "--config", "config.toml", "--run", "first", *FORCE])
    server = start_server("--bootstrap-events", str(tmp_path / "runs" / "first" / "prepare" / "events.parquet"))
    server.wait_until_serving()
    environment |= {"SEGREC_ADDRESS": server.address, "SEGREC_MODEL_ADDRESS": server.model_address}
    with SegrecClient(server.address) as client:

        def answering() -> set[int]:
            return {row.result.info.release for row in client.stream_segment(USERS)}

        pin, push, compare, canary, look, promote, back, follow, audit, prune = LINES
        run(pin)
        run([*push, *FORCE])
        wait_until(lambda: "standby" in run(["segrec", "releases", "2"]))
        assert answering() == {1}
        run(compare)
        assert "<html" in (tmp_path / "diff.html").read_text(encoding="utf-8")
        run(canary)
        wait_until(lambda: "canary" in run(["segrec", "releases", "2"]))
        assert answering() == {1, 2}
        assert "canary" in run(look)
        run(promote)
        wait_until(lambda: answering() == {2})
        assert "Release 1 answers instead of release 2" in run(back)
        wait_until(lambda: answering() == {1})
        run(follow)
        wait_until(lambda: answering() == {2})
        told = run(audit)
        assert [told.count(what) for what in ("publish", "rollback")] == [2, 1]
        assert "baskets look odd" in told
        run(prune)
    assert sorted(path.name for path in (tmp_path / "repository" / "user_encoder").iterdir() if path.is_dir()) == [
        "1",
        "2",
    ]
