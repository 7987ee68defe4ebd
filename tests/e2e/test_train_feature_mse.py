"""Training with the feature loss: curves, exported weights, and resuming."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.logs import write_planted
from training.config import Clean, Config, TrainSettings
from training.data.prepare import prepare
from training.errors import RunError
from training.fit.checkpoints import CHECKPOINT
from training.fit.train import train
from training.model.weights import WEIGHTS, load_encoder
from training.runs import CURVES, Run

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = TrainSettings(
    feature_mse=0.5, embedding_dim=16, layers=1, max_length=16, epochs=3, dropout=0.1, learning_rate=0.01, batch_size=32
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A trained run."""
    directory = tmp_path_factory.mktemp("planted")
    events, items, _ = write_planted(directory, users=100)
    made = Run.create(directory / "runs")
    prepare(made, events, items, None, Config(train=SETTINGS, clean=Clean(exclude_seen=False)))
    train(made)
    return made


def beside(run: Run) -> Run:
    """Another run on the same prepared log, not trained yet."""
    made = Run.create(run.path.parent)
    (made.path / "prepare").symlink_to(run.path / "prepare")
    record: dict[str, Any] = run.record() | {"id": made.path.name}
    record["stages"] = {"prepare": record["stages"]["prepare"]}
    (made.path / "run.json").write_text(json.dumps(record))
    return made


def checkpointed(run: Run) -> dict[str, torch.Tensor]:
    """All weights of the last checkpoint, those that are not exported included."""
    state: dict[str, torch.Tensor] = torch.load(run.path / "train" / CHECKPOINT, weights_only=True)["state_dict"]
    return state


class Killed(Exception):
    """Stands for the process's end."""


def kill_at_the_end(what: str, done: int, total: int) -> None:
    if done == total - 1:
        raise Killed


def test_both_losses_fall_and_no_weight_is_added_to_the_export(run: Run) -> None:
    curves = json.loads((run.path / "train" / CURVES).read_bytes())
    for name in ("loss", "feature_mse"):
        assert curves[-1][name] < curves[0][name], name
    kept = load_file(run.path / "train" / WEIGHTS)
    assert kept.keys() == load_encoder(run.path / "train").state_dict().keys()
    state = checkpointed(run)
    assert not torch.equal(state["feature_mse.slow.item.weight"], state["encoder.item.weight"])
    assert not any("slow" in name or "head" in name for name in kept)


def test_resuming_ends_where_an_unbroken_training_does(run: Run) -> None:
    broken = beside(run)
    with pytest.raises(Killed):
        train(broken, progress=kill_at_the_end)
    midway = checkpointed(broken)
    train(broken, resume=True)
    ends = checkpointed(run), checkpointed(broken)
    assert ends[0].keys() == ends[1].keys()
    for name in ends[0]:
        torch.testing.assert_close(ends[1][name], ends[0][name], rtol=0, atol=0, msg=name)
    for name in ("feature_mse.slow.item.weight", "feature_mse.head.0.weight"):
        assert not torch.equal(midway[name], ends[0][name]), name


def test_another_weight_does_not_resume_it(run: Run) -> None:
    broken = beside(run)
    with pytest.raises(Killed):
        train(broken, progress=kill_at_the_end)
    changed = SETTINGS.model_copy(update={"feature_mse": 0.0})
    with pytest.raises(RunError, match="had another feature_mse"):
        train(broken, settings=changed, resume=True)


def test_a_training_with_categories_goes_on_as_it_was_and_not_without_them(run: Run) -> None:
    settings = SETTINGS.model_copy(update={"categories": True})
    whole, broken = beside(run), beside(run)
    train(whole, settings=settings)
    assert whole.record()["stages"]["train"]["figures"]["categories"] == 4
    with pytest.raises(Killed):
        train(broken, settings=settings, progress=kill_at_the_end)
    with pytest.raises(RunError, match="categories"):
        train(broken, settings=SETTINGS, resume=True)
    train(broken, settings=settings, resume=True)
    weights = [load_file(one.path / "train" / WEIGHTS) for one in (whole, broken)]
    assert weights[0].keys() == load_encoder(run.path / "train").state_dict().keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=0, msg=name)
