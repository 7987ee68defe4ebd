"""The search for better settings: judged by validation, beside chance and rules, stopped and continued."""

from pathlib import Path

import optuna
import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.support.training import prepared_run
from training.cli.main import app
from training.config import Config, TrainSettings, load_config
from training.errors import ConfigError, RunError
from training.fit.train import train
from training.runs import Run
from training.tune import tune as tune_module
from training.tune.result import Candidate, TuneResult
from training.tune.rules import OWN_ITEMS, POPULAR, rule_figures
from training.tune.space import SPACES, Range, Space, read_space
from training.tune.tune import tune

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = TrainSettings(
    embedding_dim=8, layers=1, max_length=16, epochs=2, dropout=0.1, learning_rate=0.0001, batch_size=32
)
SPACE = Space(train={"learning_rate": Range(low=0.02, high=0.04)})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return prepared_run(tmp_path_factory.mktemp("tuned"), SETTINGS, users=80)


@pytest.fixture(scope="module")
def result(run: Run) -> TuneResult:
    return tune(run, SPACE, None, 2)


def test_a_rate_that_learns_beats_one_that_does_not(run: Run, result: TuneResult) -> None:
    assert result.best is not None
    assert result.trials == 2
    assert 0.02 <= result.best.values["learning_rate"] <= 0.04
    assert result.best.mean > result.default.mean
    assert (len(result.default.figures), len(result.best.figures)) == (3, 2)
    assert result.is_better
    assert {POPULAR, OWN_ITEMS} == result.rules.keys()
    assert "rule" in result.verdict


def test_the_best_settings_are_a_configuration(run: Run, result: TuneResult) -> None:
    assert result.best is not None
    config = load_config(run.path / "tune/best.toml")
    assert config.train == SETTINGS.model_copy(update=result.best.values)
    assert config.split == run.config().split


def test_its_figure_is_the_validation_of_a_training(run: Run, result: TuneResult) -> None:
    assert train(run).ndcg == result.default.figures[0]


def test_it_goes_on_where_it_ended(run: Run, result: TuneResult, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[TrainSettings] = []

    def counted(*args: object, settings: TrainSettings, **more: object) -> object:
        trained.append(settings)
        return train(*args, settings=settings, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(tune_module, "train", counted)
    assert tune(run, SPACE, None, 2) == result
    assert trained == []
    assert tune(run, SPACE, None, 3).trials == 3
    assert trained


def test_nothing_of_the_trials_is_left(run: Run, result: TuneResult) -> None:
    assert {path.name for path in (run.path / "tune").iterdir()} == {"best.toml", "trials.journal"}
    assert run.record()["stages"]["tune"]["figures"]["trials"] >= 2


def test_the_time_ends_it(run: Run) -> None:
    with pytest.raises(RunError, match="give more --minutes"):
        tune(run, Space(train={"layers": (1, 2)}), 1e-6, None, clock=lambda: -1e9)


def test_hopeless_trials_are_stopped(run: Run) -> None:
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.ThresholdPruner(lower=2.0))
    search = tune_module._Search(run, SETTINGS, study, float("inf"), lambda *_: None)
    search.try_one(SPACE)
    [trial] = study.trials
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert len(trial.intermediate_values) == 1


def test_rules_are_measured_on_the_validation_targets(run: Run) -> None:
    figures = rule_figures(run, 0)
    assert 0 < figures[POPULAR] < figures[OWN_ITEMS] < 1


@pytest.mark.parametrize(
    ("best", "is_better", "part"),
    [
        (Candidate({"layers": 3}, (0.31, 0.32)), True, "more than chance"),
        (Candidate({"layers": 3}, (0.21, 0.22)), False, "Keep the run's own settings"),
        (Candidate({"layers": 3}, ()), False, "nothing is proven"),
        (None, False, "No trial"),
    ],
)
def test_what_is_said(best: Candidate | None, is_better: bool, part: str) -> None:
    result = TuneResult.of(Config(), Candidate({}, (0.2, 0.21, 0.22)), best, 5, 1, {POPULAR: 0.1, OWN_ITEMS: 0.15})
    assert result.is_better == is_better
    assert part in result.verdict
    assert "`own items, most frequent first`, has 0.1500" in result.verdict
    console = Console(width=120)
    with console.capture() as captured:
        console.print(result.table())
    assert "rule: popularity" in captured.get()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[train]\nlayer = [1]", "`layer` cannot be searched; these can: max_length"),
        ("[train]\nseed = [1, 2]", "`seed` cannot be searched"),
        ("[train]\nlayers = [0, 1]", "`layers` cannot be 0"),
        ("[train]\ndropout = { low = 0.5, high = 0.2 }", "low must be below high"),
        ("[train]\ndropout = { low = 0.0, high = 0.2, log = true }", "must begin above 0"),
        ("[train]\ndropout = []", "no values"),
        ("", "train"),
    ],
)
def test_a_wrong_space_is_refused(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "space.toml").write_text(text)
    with pytest.raises(ConfigError, match=part):
        read_space(str(tmp_path / "space.toml"))
    assert read_space("small") == SPACES["small"]
    with pytest.raises(ConfigError, match="small, wide"):
        read_space("medium")


def test_the_command(run: Run, result: TuneResult, tmp_path: Path) -> None:
    space = tmp_path / "space.toml"
    space.write_text("[train]\nlearning_rate = { low = 0.02, high = 0.04 }\n")
    options = ["--run", run.path.name, "--runs", str(run.path.parent), "--space", str(space), "--trials", "2"]
    done = CliRunner().invoke(app, ["tune", *options], env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    assert "the run's own" in done.output
    assert "best.toml" in done.output
