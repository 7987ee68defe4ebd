"""Training on planted data: better than popularity within seconds, the same from one seed, and resumable."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from server.core.figures import AS_SERVED, LEAVE_ONE_OUT, values_by_name
from server.core.repository.layout import read_preprocessing
from tests.support.logs import sorted_baskets, write_planted
from training.config import Clean, Config, SplitSettings, TrainSettings, VisitSettings
from training.data.prepare import prepare
from training.data.sequences import read_sequences
from training.errors import ConfigError, RunError
from training.evaluation.evaluate import evaluate
from training.evaluation.results import EvaluateResult
from training.fit.checkpoints import CHECKPOINT
from training.fit.defaults import FEW_EVENTS_DROPOUT, choose_device
from training.fit.train import train
from training.model import loss
from training.model.loss import SAMPLED_NEGATIVES
from training.model.torch_inference import embed_histories
from training.model.weights import WEIGHTS, load_encoder
from training.runs import CURVES, Run

pytestmark = pytest.mark.usefixtures("one_thread")

LAST_EVENTS = SplitSettings(method="leave_one_out")

SETTINGS = TrainSettings(
    embedding_dim=16, layers=1, max_length=16, epochs=6, dropout=0.1, learning_rate=0.01, batch_size=32
)


def prepared(directory: Path, **shape: int) -> Run:
    events, items, _ = write_planted(directory, **shape)
    run = Run.create(directory / "runs")
    prepare(run, events, items, None, Config(train=SETTINGS, clean=Clean(exclude_seen=False), split=LAST_EVENTS))
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = prepared(tmp_path_factory.mktemp("planted"), users=200)
    train(made)
    return made


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.path / "train" / WEIGHTS)


def test_it_beats_popularity_in_both_protocols(run: Run) -> None:
    result = evaluate(run)
    ndcg = {(entry.protocol, entry.method): entry.figures["ndcg@10"] for entry in result.results}
    for protocol in (LEAVE_ONE_OUT, AS_SERVED):
        assert ndcg[protocol, "encoder"] > 1.5 * ndcg[protocol, "popularity"], protocol
    assert run.figures("train")["stopped"] == "epochs"
    assert EvaluateResult.read(run.path / "evaluate") == result
    assert values_by_name(run.quality("evaluate"))["as served/encoder/ndcg@10"] == pytest.approx(
        ndcg[AS_SERVED, "encoder"], abs=1e-6
    )


def test_curves_and_the_best_epoch_are_kept(run: Run) -> None:
    curves = json.loads((run.path / "train" / CURVES).read_bytes())
    assert curves[-1]["loss"] < curves[0]["loss"]
    assert (
        max(point["ndcg@10"] for point in curves) == values_by_name(run.quality("train"))["validation/encoder/ndcg@10"]
    )


class Killed(Exception):
    """Stands for the process's end."""


def test_a_resumed_training_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 3, "patience": 9})
    whole = prepared(tmp_path, users=60)
    train(whole, settings=settings)
    broken = Run.create(tmp_path / "runs")
    (broken.path / "prepare").symlink_to(whole.path / "prepare")
    record: dict[str, Any] = whole.record() | {"id": broken.path.name}
    del record["stages"]["train"]
    (broken.path / "run.json").write_text(json.dumps(record))

    def kill(what: str, done: int, total: int) -> None:
        if done == total - 1:
            raise Killed

    with pytest.raises(Killed):
        train(broken, settings=settings, progress=kill)
    torch.load(broken.path / "train" / CHECKPOINT, weights_only=True)
    assert broken.record()["stages"]["train"]["state"] == "failed"
    result = train(broken, settings=settings, resume=True)
    assert result.epochs == 3
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(broken)[name], tensor, rtol=0, atol=0)
    assert len(json.loads((broken.path / "train" / CURVES).read_bytes())) == 3
    with pytest.raises(RunError, match="another shape"):
        train(broken, settings=settings.model_copy(update={"embedding_dim": 8}), resume=True)


def test_time_and_patience_bound_it(tmp_path: Path) -> None:
    run = prepared(tmp_path, users=30)
    steps: list[str] = []

    def note(what: str, done: int, total: int) -> None:
        if what.startswith("epoch"):
            steps.append(what)

    train(run, settings=SETTINGS.model_copy(update={"max_minutes": 1e-6}), progress=note)
    assert len(steps) == 1
    assert "seconds" in steps[0]  # the bar counts what ends training
    assert (run.path / "train" / WEIGHTS).is_file()
    frozen = SETTINGS.model_copy(update={"learning_rate": 1e-12, "patience": 1, "epochs": 50})
    assert train(run, settings=frozen).epochs < 50


@pytest.mark.parametrize(("asked", "taken"), [(None, SAMPLED_NEGATIVES), (0, 0), (7, 7)])
def test_negatives_of_a_large_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int | None, taken: int
) -> None:
    monkeypatch.setattr(loss, "FULL_SOFTMAX_ITEMS", 10)
    run = prepared(tmp_path, users=30)
    train(run, settings=TrainSettings.model_validate(SETTINGS.model_dump() | {"epochs": 1, "negatives": asked}))
    assert run.figures("train")["negatives"] == taken


def test_users_too_few_to_validate_still_train(tmp_path: Path) -> None:
    run = prepared(tmp_path, users=40, events_per_user=4)
    result = train(run, settings=SETTINGS.model_copy(update={"epochs": 2, "dropout": None}))
    assert np.isnan(result.ndcg)
    assert run.figures("train")["dropout"] == FEW_EVENTS_DROPOUT
    assert (run.path / "train" / WEIGHTS).is_file()
    with pytest.raises(RunError, match="five events"):
        evaluate(run)


def test_devices() -> None:
    assert choose_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="auto, cpu or cuda"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        assert choose_device("auto") == "cpu"
        with pytest.raises(ConfigError, match="no usable NVIDIA GPU"):
            choose_device("cuda")


def share_of_next_ids(directory: Path, settings: Config) -> float:
    """How often the id after that of a history's last event, the third, is among the encoder's best four of 40."""
    events = directory / "events.parquet"
    sorted_baskets().write_parquet(events)
    run = Run.create(directory / "runs")
    prepare(run, events, None, None, settings)
    train(run)
    log = read_sequences(run.path / "prepare", preprocessing := read_preprocessing(run.path / "prepare"))
    rows, last = np.arange(len(log.users)), log.features.starts + 2
    history = log.histories(rows, last + 1, preprocessing.max_length)
    encoder = load_encoder(run.path / "train")
    with torch.inference_mode():
        scores = (embed_histories(encoder, history, encoder.shape) @ encoder.item_embeddings().T).numpy()
    ids = pl.read_parquet(run.path / "prepare" / "items.parquet")["item_id"].cast(pl.String).to_numpy()
    best = ids[np.argsort(-scores, axis=1)[:, :4]]
    following = [f"i{int(item[1:]) + 1:05}" for item in ids[log.features.item_index[last] - 1]]
    return float((best == np.array(following)[:, None]).any(axis=1).mean())


def test_rows_sorted_inside_baskets_teach_nothing(tmp_path: Path) -> None:
    """An encoder that learns the order of rows puts the next id first; one that does not has it there by chance."""
    settings = Config(train=SETTINGS, clean=Clean(exclude_seen=False))
    by_row = settings.model_copy(update={"split": LAST_EVENTS, "visits": VisitSettings(ordered=True)})
    (tmp_path / "rows").mkdir()
    (tmp_path / "visits").mkdir()
    assert share_of_next_ids(tmp_path / "rows", by_row) > 0.8
    assert share_of_next_ids(tmp_path / "visits", settings) < 0.3
