"""When a checkpoint inside an epoch is due."""

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from training.fit.checkpoints import CheckpointInsideEpoch


@pytest.mark.parametrize(("should_stop", "saved"), [(False, [1, 3]), (True, [])])
def test_only_between_two_steps_of_an_epoch(
    should_stop: bool, saved: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[int] = []
    monkeypatch.setattr(ModelCheckpoint, "on_train_batch_end", lambda *args: reached.append(args[-1]))
    callback = CheckpointInsideEpoch(tmp_path, train_time_interval=timedelta(0))
    # Six batches make three steps.
    trainer: Any = SimpleNamespace(accumulate_grad_batches=2, num_training_batches=6, should_stop=should_stop)
    for batch in range(6):
        callback.on_train_batch_end(trainer, None, None, None, batch)  # type: ignore[arg-type]
    assert reached == saved
