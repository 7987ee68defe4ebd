"""`segrec traffic` and `segrec-train traffic`: what people type has the same effect, the same sentences and errors."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
from segrec import errors
from segrec.cli import main as client_command
from segrec.requests import traffic_request
from segrec.v1 import model_service_pb2 as pb
from typer.testing import CliRunner

from server.core.errors import InvalidArgument
from server.core.repository.traffic import Guard, Traffic, change_traffic, read_traffic
from server.rpc.messages.traffic_messages import record_message, traffic_of
from tests.support.releases import tiny_release
from training.cli.main import app

NEWEST_ON_DISK = 3
Call = Callable[[Sequence[str]], tuple[int, str]]
"""Runs the command with these arguments; returns its exit code and all its output on one line."""


class RepositoryModels:
    """A `ModelClient` whose server is a model repository of releases 1 to 3."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def overview(self) -> pb.ListReleasesResponse:
        active = pb.Release(release=NEWEST_ON_DISK, state=pb.ReleaseState.RELEASE_STATE_ACTIVE)
        return pb.ListReleasesResponse(releases=[active], traffic=record_message(read_traffic(self._repository)))

    def set_traffic(self, stable: int, *, reason: str, changed_by: str, **fields: Any) -> pb.TrafficRecord:
        canary, share, shadow, guard = (fields[name] for name in ("canary", "canary_share", "shadow", "guard"))
        try:
            wanted = traffic_of(traffic_request(stable, canary, share, shadow, guard, changed_by, reason).traffic)
        except InvalidArgument as error:
            raise errors.InvalidArgument(str(error)) from error

        def change(before: Traffic) -> Traffic:
            return before.replaced_by(wanted, NEWEST_ON_DISK)

        return record_message(change_traffic(self._repository, change, "traffic", changed_by, reason))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for number in (1, 2, 3):
        tiny_release(tmp_path, number)
    return tmp_path


@pytest.fixture(params=["segrec", "segrec-train"])
def call(
    request: pytest.FixtureRequest,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Call:
    def client(arguments: Sequence[str]) -> tuple[int, str]:
        code = client_command.main(["traffic", *arguments])
        return code, " ".join("".join(capsys.readouterr()).split())

    def training(arguments: Sequence[str]) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["traffic", *arguments, "--repository", str(repository)])
        return result.exit_code, " ".join(result.output.split())

    monkeypatch.setattr(client_command, "ModelClient", lambda *_, **__: RepositoryModels(repository))
    return client if request.param == "segrec" else training


GUARD = Guard(max_error_share=0.01, max_p99_seconds=0.05)
GUARDED = "--guard errors=0.01,p99=50ms"


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (["2=100"], Traffic(stable=2)),
        (["newest=100"], Traffic()),
        (["3=95 2=5"], Traffic(stable=3, canary=2, canary_share=0.05)),
        (["2=5"], Traffic(stable=3, canary=2, canary_share=0.05)),
        (["2=5%"], Traffic(stable=3, canary=2, canary_share=0.05)),
        (["3=95% 2=5%"], Traffic(stable=3, canary=2, canary_share=0.05)),
        (["1=33.3333333 2=66.6666666"], Traffic(stable=2, canary=1, canary_share=0.333333333)),
        (["2=100", "2=5 3=95"], Traffic(stable=2, canary=3, canary_share=0.95)),
        (["2=100", "2=50 3=50"], Traffic(stable=2, canary=3, canary_share=0.5)),
        (["1=50 2=50"], Traffic(stable=1, canary=2, canary_share=0.5)),
        (["3=100", "2=95 3=5"], Traffic(stable=2, canary=3, canary_share=0.05)),
        (["3=100", "2=99.5 3=0.5"], Traffic(stable=2, canary=3, canary_share=0.005)),
        (["3=95 2=5", "2=60 3=40"], Traffic(stable=3, canary=2, canary_share=0.6)),
        (["--shadow 1"], Traffic(stable=3, shadow=1)),
        (["--shadow none"], Traffic()),
        (["--guard none"], Traffic()),
        (["3=95 2=5 --shadow 1", "2=100"], Traffic(stable=2, shadow=1)),
        (["3=95 2=5 --shadow 1", "newest=100"], Traffic()),
        (["3=95 2=5 --shadow 1", "1=5"], Traffic(stable=3, canary=1, canary_share=0.05)),
        ([f"2=5 {GUARDED}"], Traffic(stable=3, canary=2, canary_share=0.05, guard=GUARD)),
        ([f"2=5 {GUARDED}", "2=10"], Traffic(stable=3, canary=2, canary_share=0.1, guard=GUARD)),
        ([f"2=5 {GUARDED}", "1=10"], Traffic(stable=3, canary=1, canary_share=0.1)),
        ([f"2=5 {GUARDED}", "--guard none"], Traffic(stable=3, canary=2, canary_share=0.05)),
    ],
    ids=lambda value: " then ".join(value) if isinstance(value, list) else "",
)
def test_a_change_has_the_same_effect(call: Call, repository: Path, steps: list[str], expected: Traffic) -> None:
    for step in steps:
        code, output = call(step.split())
        assert code == 0, output
    fields = {"stable", "canary", "canary_share", "shadow", "guard"}
    assert read_traffic(repository).model_dump(include=fields) == expected.model_dump(include=fields)


@pytest.mark.parametrize(
    ("before", "change", "problem"),
    [
        ("2=100", "3", "`3` is not a share: write RELEASE=PERCENT, such as 8=5, or newest=100"),
        ("2=100", "0=100", "`0=100` is not a share"),
        ("2=100", "08=5", "`08=5` is not a share"),
        ("2=100", "8=101", "`8=101` is not a share"),
        ("2=100", "2=50 2=50", "`2=50` gives release 2 a second share"),
        ("2=100", "2=50 3=40", "The shares sum to 90, and must sum to 100"),
        ("2=100", "2=50 3=49.99999", "The shares sum to 99.99999, and must sum to 100"),
        ("2=100", "1=30 2=30 3=40", "Give one release 100, or two releases by number"),
        ("2=100", "newest=95 3=5", "Give one release 100, or two releases by number"),
        ("2=100", "newest=5", "`newest` takes all users"),
        ("2=100", "2=5", "Name the release that answers the other 95 %: 2=5 OTHER=95"),
        ("2=100", "3=99.5", "a canary gets at most 99 % of the users"),
        ("2=100", "--shadow x", "--shadow takes the number of a release or `none`, not `x`"),
        ("2=100", "--shadow 0", "--shadow takes the number of a release or `none`, not `0`"),
        ("2=100", "--shadow 2", "release 2 answers already: it cannot be the shadow as well"),
        ("2=100", "newest=100 --shadow 1", "beside a canary or a shadow, the stable release must be named"),
        ("2=100", "--guard errors=0.01", "a guard watches a canary, and there is none"),
        ("2=100", "3=5 --guard speed=3", "--guard does not know `speed=3`"),
        ("2=100", "3=5 --guard errors=2", "--guard cannot use `errors=2`: errors takes a share from 0 to 1"),
        ("2=100", "3=5 --guard errors=1%", "--guard cannot use `errors=1%`"),
        ("2=100", "3=5 --guard window=30", "--guard needs one bound at least"),
    ],
)
def test_an_error_is_the_same_and_changes_nothing(
    call: Call, repository: Path, before: str, change: str, problem: str
) -> None:
    call(before.split())
    in_force = read_traffic(repository)
    code, output = call(change.split())
    assert (code, problem in output) == (2, True), output
    assert read_traffic(repository) == in_force


def test_the_traffic_in_force_is_shown_in_the_same_sentences(call: Call) -> None:
    assert "The newest good release answers everyone; the next published release" in call([])[1]
    call(["2=100", "--by", "ada", "--reason", "first"])
    _, output = call([])
    assert "Release 2 answers everyone; a newly published release stands by until it gets a share." in output
    assert "Stable before, the latest first: 3. Set by ada at " in output
    assert output.endswith(" UTC, because: first")
    _, output = call(["3=5", "--shadow", "1", "--guard", "errors=0.01,degraded=0.07,p99=50ms", "--by", "[red]"])
    assert "Release 3 answers 5 % of the users, release 2 answers the others. Release 1 is the shadow" in output
    assert (
        "The guard takes release 3 out above 1 % errors or 7 % degraded answers or a p99 of 50 ms over 30 s of 100 "
        "answers or more."
    ) in output
    assert "Set by [red] at" in output


def test_a_change_from_newest_to_newest_remembers_no_release(call: Call, repository: Path) -> None:
    call(["newest=100"])
    assert read_traffic(repository).previous == ()
    call(["2=100"])
    assert read_traffic(repository).previous == (NEWEST_ON_DISK,)
