"""`segrec-train tune`: trains with other settings of `[train]` within a budget, and keeps what validates best.

The figure is NDCG@10 on the validation targets of the run's own split; test targets are never read. The run's own
settings are trained with several seeds first: their spread says which differences mean nothing. The best trial is then
trained with those seeds again, apart from the one that the search chose it by.
"""

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import optuna
from lightning.pytorch.callbacks import Callback
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from training.config import TrainSettings
from training.errors import RunError
from training.fit.callbacks import METRIC
from training.fit.train import train
from training.runs import Progress, Run, no_progress
from training.tune.result import Candidate, TuneResult
from training.tune.rules import rule_figures
from training.tune.space import Space, with_values

SEEDS = 3
"""Seeds with which the run's own settings are trained."""

_JOURNAL = "trials.journal"
_TRIAL = "tune/trial"
_TRIALS_BEFORE_PRUNING = 4


class _OutOfTime(Exception):
    """The budget was spent inside a training."""


class _Watcher(Callback):
    """Ends a training when the budget is spent, and one that validates worse than most others did by then."""

    def __init__(self, deadline: float, trial: optuna.Trial | None) -> None:
        self._deadline = deadline
        self._trial = trial

    def on_train_batch_end(self, *_: Any) -> None:
        """Look at the time."""
        if time.monotonic() > self._deadline:
            raise _OutOfTime

    def on_train_epoch_end(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
        """Report the validation of this epoch."""
        if self._trial is None or METRIC not in trainer.callback_metrics:
            return
        self._trial.report(float(trainer.callback_metrics[METRIC]), trainer.current_epoch)
        if self._trial.should_prune():
            raise optuna.TrialPruned


@dataclass(frozen=True)
class _Search:
    """A search in the directory `tune` of a run; what is known of it lies in the journal there."""

    run: Run
    settings: TrainSettings
    study: optuna.Study
    deadline: float
    progress: Progress

    def figure(self, values: Mapping[str, Any], seed: int, trial: optuna.Trial | None = None) -> float:
        """Validation NDCG@10 of the run's settings with these values. Raises _OutOfTime and TrialPruned."""
        settings = with_values(self.settings, {**values, "seed": seed})
        if settings is None:
            raise optuna.TrialPruned
        shutil.rmtree(self.run.path / _TRIAL, ignore_errors=True)  # of a search that was cut off
        inner = self.run.inner(_TRIAL)
        try:
            result = train(inner, settings=settings, watchers=[_Watcher(self.deadline, trial)], progress=self.progress)
        finally:
            shutil.rmtree(inner.path)
        return result.ndcg

    def repeated(self, name: str, values: Mapping[str, Any], seeds: Sequence[int]) -> Candidate:
        """The figures of these values with each seed, as far as the budget goes; known ones are not trained again."""
        known: dict[str, float] = dict(self.study.user_attrs.get(name, {}))
        for seed in seeds:
            if str(seed) not in known:
                try:
                    known[str(seed)] = self.figure(values, seed)
                except _OutOfTime:
                    break
                self.study.set_user_attr(name, known)
        return Candidate(dict(values), tuple(known[str(seed)] for seed in seeds if str(seed) in known))

    def try_one(self, space: Space) -> None:
        """One trial. Raises _OutOfTime."""
        trial = self.study.ask()
        try:
            figure = self.figure(space.draw(trial), self.settings.seed, trial)
        except optuna.TrialPruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        except BaseException:
            self.study.tell(trial, state=TrialState.FAIL)
            raise
        else:
            self.study.tell(trial, figure)

    def count(self, *states: TrialState) -> int:
        """Trials in these states."""
        return len(self.study.get_trials(deepcopy=False, states=states))

    @property
    def tried(self) -> int:
        """Trials that came to an end by themselves."""
        return self.count(TrialState.COMPLETE, TrialState.PRUNED)


def tune(
    run: Run,
    space: Space,
    minutes: float | None,
    trials: int | None,
    progress: Progress = no_progress,
    clock: Callable[[], float] = time.monotonic,
) -> TuneResult:
    """Search the space until `minutes` are over or `trials` are done, those of earlier calls included.

    A search of the same space and settings goes on where it ended. A share of the time is kept for the seeds of the
    best trial. Raises RunError where no user can validate, or if the time did not suffice for one training.
    """
    settings = run.config().train
    started = clock()
    rules = rule_figures(run, settings.seed)
    seeds = [(settings.seed + more) % 2**32 for more in range(SEEDS)]
    with run.stage("tune") as stage:
        deadline = started + 60 * minutes if minutes else math.inf
        search = _Search(run, settings, _study(stage.directory, run, space), deadline, progress)
        default = search.repeated("default", {}, seeds)
        if not default.figures:
            raise RunError("The time did not suffice for one training with the run's settings; give more --minutes.")
        _search(search, space, trials, clock)
        best = None
        if search.count(TrialState.COMPLETE):
            number, values = search.study.best_trial.number, search.study.best_trial.params
            best = search.repeated(f"trial {number}", values, seeds[1:])
        result = TuneResult.of(run.config(), default, best, search.tried, search.count(TrialState.PRUNED), rules)
        result.write(stage.directory)
        stage.figures |= {"trials": result.trials, "default": default.mean, "best": best.mean if best else math.nan}
    return result


def _search(search: _Search, space: Space, trials: int | None, clock: Callable[[], float]) -> None:
    """Try until the trials are done, or the rest of the time is needed for the seeds of the best one."""
    longest = 0.0
    while trials is None or search.tried < trials:
        begun = clock()
        if begun + SEEDS * longest > search.deadline:
            return
        try:
            search.try_one(space)
        except _OutOfTime:
            return
        longest = max(longest, clock() - begun)


def _study(directory: Path, run: Run, space: Space) -> optuna.Study:
    """The study of this space and these settings in the run's journal, with the trials of earlier calls."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    asked = space.model_dump_json() + run.config().model_dump_json() + run.record()["stages"]["prepare"]["ended"]
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(directory / _JOURNAL))),
        study_name=hashlib.sha256(asked.encode()).hexdigest()[:16],
        sampler=optuna.samplers.TPESampler(seed=run.config().train.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_TRIALS_BEFORE_PRUNING, n_warmup_steps=1),
        direction="maximize",
        load_if_exists=True,
    )
