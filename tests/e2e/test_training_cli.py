"""`segrec-train` as people use it, in this process, on small planted logs."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_release
from tests.support.logs import write_planted
from training.cli.main import app
from training.config import Config
from training.errors import ConfigError
from training.pipeline import STAGES, with_overrides
from training.runs import Run

FORCE = ("--force", "rules win on so small a log")

QUICK = """
[train]
embedding_dim = 16
layers = 1
heads = 1
epochs = 1
max_length = 8
[segment]
k = 4
min_segment_size = 10
"""


@dataclass(frozen=True)
class Place:
    """A directory with a log, a quick configuration, and where runs and releases go."""

    path: Path
    events: Path
    items: Path
    config: Path

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def repository(self) -> Path:
        return self.path / "repository"

    def call(self, *words: object) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words])

    def run(self, *more: object) -> Result:
        files = ("--events", self.events, "--items", self.items, "--config", self.config, *FORCE)
        return self.call("run", *files, "--runs", self.runs, "--repository", self.repository, *more)

    def stage(self, name: str, *more: object) -> Result:
        return self.call(name, "--runs", self.runs, *more)

    def ended(self, run_id: str) -> dict[str, str]:
        stages = Run.open(self.runs, run_id).record()["stages"]
        return {name: entry["ended"] for name, entry in stages.items()}


def place_in(path: Path) -> Place:
    path.mkdir(exist_ok=True)
    events, items, _ = write_planted(path, users=60, items=40, segments=4)
    config = path / "quick.toml"
    config.write_text(QUICK)
    return Place(path, events, items, config)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return place_in(tmp_path)


def test_run_goes_from_log_to_release_and_can_be_repeated(place: Place) -> None:
    first = place.run("--run", "mine")
    assert first.exit_code == 0, first.output
    for told in (
        "events read",
        "all items ranked",
        "popularity",
        "NDCG@10",
        "popular items",
        "4 segments",
        "description",
        "segrec-serve",
    ):
        assert told in first.output
    release = read_release(place.repository / MODEL_NAME / "1")
    assert release.manifest.segment_count == 4
    ended = place.ended("mine")
    assert set(ended) == set(STAGES)

    second = place.run("--run", "mine")
    assert second.exit_code == 0, second.output
    assert "complete already" in second.output
    assert place.ended("mine") == ended

    third = place.run("--run", "mine", "--k", 3)
    assert third.exit_code == 0, third.output
    assert "3 segments" in third.output
    assert "Of 60 users known to release 1" in third.output
    assert "of users have no confident segment" in third.output
    redone = {name for name, when in place.ended("mine").items() if when != ended[name]}
    assert redone == {"segment", "publish"}
    assert read_release(place.repository / MODEL_NAME / "2").manifest.segment_count == 3


def test_stages_one_by_one(place: Place) -> None:
    made = place.stage("prepare", "--events", place.events, "--config", place.config, "--run", "mine")
    assert made.exit_code == 0, made.output
    assert "segrec-train train --run mine" in made.output
    early = place.stage("export", "--run", "mine")
    assert early.exit_code == 1
    assert "segrec-train train --run mine" in early.stderr
    for name in ("train", "evaluate", "export"):
        done = place.stage(name, "--run", "mine")
        assert done.exit_code == 0, done.output
    for name in ("segment", "publish", "segment", "publish"):
        forced = FORCE if name == "publish" else ()
        done = place.stage(name, "--run", "mine", "--repository", place.repository, *forced)
        assert done.exit_code == 0, done.output
    assert "Release 2" in done.output


def test_the_chinese_log_without_times_and_items_works_as_it_is(place: Place) -> None:
    rows = [
        f"用户{user},商品{(user + step) % 9},{('浏览', '购买', '搜索')[step % 3]},{step + user / 7:.2f}"
        for step in range(8)
        for user in range(30)
    ]
    place.events.write_text("\n".join(["用户ID,商品ID,行为类型,行为值", *rows]), encoding="utf-8")
    files = ("--events", place.events, "--config", place.config, "--runs", place.runs)
    done = place.call("run", *files, "--repository", place.repository, "--run", "cn", *FORCE)
    assert done.exit_code == 0, done.output
    release = read_release(place.repository / MODEL_NAME / "1")
    assert {action.name for action in release.preprocessing.actions} == {"浏览", "购买", "搜索"}
    assert not release.preprocessing.has_clock
    assert release.manifest.data_cutoff_time is None


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("run",), 2, "--events FILE, or --demo"),
        (("run", "--events", "none.csv"), 2, "There is no file none.csv"),
        (("train", "--run", "none"), 1, "no run `none`"),
        (("run", "--events", "EVENTS", "--config", "BAD"), 2, "unknown key `train.epoch` (did you mean `epochs`?)"),
        (("run", "--events", "BAD"), 2, "bad.toml"),
        (("run", "--events", "EVENTS", "--max-minutes", "-1"), 2, "train.max_minutes"),
    ],
)
def test_faults_are_one_sentence_and_a_code(place: Place, words: tuple[str, ...], code: int, told: str) -> None:
    bad = place.path / "bad.toml"
    bad.write_text("[train]\nepoch = 3\n")
    named = {"EVENTS": place.events, "BAD": bad}
    result = place.stage(words[0], *(named.get(word, word) for word in words[1:]))
    assert result.exit_code == code, result.output
    assert told in result.stderr
    assert "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) == 1


def test_histories_too_short_to_test_on_still_give_a_release(place: Place) -> None:
    lines = [f"u{user},i{(user + step) % 5},view" for user in range(30) for step in range(3)]
    place.events.write_text("\n".join(["user_id,item_id,action", *lines]))
    files = ("--events", place.events, "--config", place.config, "--runs", place.runs)
    done = place.call("run", *files, "--repository", place.repository)
    assert done.exit_code == 0, done.output
    assert "Quality was not measured" in done.output
    assert "3 segments instead of 4" in done.output
    assert read_release(place.repository / MODEL_NAME / "1").manifest.figures == ()


def failing(error: BaseException) -> object:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    return fail


def test_ctrl_c_says_how_to_go_on_and_the_run_does(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("training.pipeline.train", failing(KeyboardInterrupt()))
        stopped = place.run("--run", "mine")
    assert stopped.exit_code == 130
    assert "--run mine" in stopped.stderr
    before = place.ended("mine")
    again = place.run("--run", "mine")
    assert again.exit_code == 0, again.output
    assert place.ended("mine")["prepare"] == before["prepare"]


def test_what_was_not_foreseen_is_kept_in_the_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.pipeline.train", failing(ZeroDivisionError("by design")))
    result = place.run("--run", "mine")
    assert result.exit_code == 1
    assert "ZeroDivisionError: by design" in result.stderr
    assert "ZeroDivisionError" in (place.runs / "mine" / "error.log").read_text()
    assert "Traceback" not in result.output


def test_a_changed_log_starts_over(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.pipeline.train", failing(ZeroDivisionError()))
    place.run("--run", "mine")
    first = json.loads((place.runs / "mine" / "run.json").read_text())["stages"]["prepare"]["ended"]
    place.run("--run", "mine")
    assert place.ended("mine")["prepare"] == first
    with place.events.open("a") as file:
        file.write("u99999,i00001,view,1.0,1700000000000\n")
    place.run("--run", "mine")
    assert place.ended("mine")["prepare"] != first


def test_overrides_are_settings_like_any_other() -> None:
    config = with_overrides(Config(), k=5, max_minutes=2.0, seed=3)
    assert (config.segment.k, config.train.max_minutes, config.train.seed, config.segment.seed) == (5, 2.0, 3, 3)
    assert with_overrides(Config(), k=None, max_minutes=None, seed=None) == Config()
    with pytest.raises(ConfigError, match=r"segment\.k"):
        with_overrides(Config(), k=10**9, max_minutes=None, seed=None)
