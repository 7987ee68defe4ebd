"""What training does differently on a GPU: as far as a machine without one can show it, and on a GPU where one is."""

import json
from pathlib import Path

import pytest
import torch

import training.fit.trainer
from tests.support.training import prepared_run, start_training, wait_for_checkpoint, weights_of
from training.config import TrainSettings
from training.fit.train import TrainResult, train
from training.fit.trainer import precision_on
from training.model.encoder import Encoder, EncoderShape
from training.runs import CURVES

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no usable NVIDIA GPU")

SHAPE = EncoderShape(item_count=30, action_count=2, max_length=16, embedding_dim=16, layers=2, heads=2)


def settings_on(device: str, feature_mse: float = 0.0) -> TrainSettings:
    return TrainSettings(
        embedding_dim=16,
        layers=1,
        max_length=16,
        epochs=6,
        learning_rate=0.01,
        batch_size=32,
        feature_mse=feature_mse,
        device=device,
    )


def inputs(users: int, length: int) -> dict[str, torch.Tensor]:
    return {
        "item_index": torch.randint(0, 31, (users, length)),
        "action_index": torch.ones(users, length, dtype=torch.int64),
        "value": torch.randn(users, length),
        "gap_index": torch.ones(users, length, dtype=torch.int64),
    }


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's compiler looks at its own tensors
def test_compiled_blocks_compute_the_same_at_any_size() -> None:
    torch.manual_seed(0)
    plain, compiled = Encoder(SHAPE), Encoder(SHAPE)
    compiled.load_state_dict(plain.state_dict())
    compiled.compile_blocks("aot_eager")
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for users, length in ((3, 8), (5, 12)):
        batch = inputs(users, length)
        torch.testing.assert_close(compiled.sequence(**batch), plain.sequence(**batch))
        for encoder in (plain, compiled):
            encoder.zero_grad()
            encoder.sequence(**batch).square().sum().backward()  # type: ignore[no-untyped-call]
        for mine, own in zip(compiled.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, own.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.nightly
def test_bf16_trains_and_validates_in_float32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """CPUs compute bfloat16 as well; a score in it could not be written to the buffer of float32 scores."""
    settings = settings_on("cpu")
    runs = [prepared_run(tmp_path / name, settings, users=100) for name in ("exact", "rounded")]
    exact = train(runs[0])
    monkeypatch.setattr(training.fit.trainer, "precision_on", lambda device: "bf16-mixed")
    rounded = train(runs[1])
    assert (weights_of(runs[0])["norm.weight"] != weights_of(runs[1])["norm.weight"]).any()
    assert rounded.ndcg == pytest.approx(exact.ndcg, rel=0.1)


def test_precisions() -> None:
    assert precision_on("cpu") == "32-true"


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("feature_mse", [0.0, 0.5])
def test_a_gpu_trains_what_a_cpu_trains(feature_mse: float, tmp_path: Path) -> None:
    found: dict[str, TrainResult] = {}
    for device in ("cpu", "cuda"):
        run = prepared_run(tmp_path / device, settings_on(device, feature_mse), users=200)
        found[device] = train(run)
        assert run.figures("train")["device"] == device
    curves = [json.loads((found[device].directory / CURVES).read_bytes()) for device in found]
    assert [row["loss"] for row in curves[0]] == pytest.approx([row["loss"] for row in curves[1]], rel=0.1)
    assert found["cuda"].ndcg == pytest.approx(found["cpu"].ndcg, rel=0.15)


@pytest.mark.gpu
@on_a_gpu
def test_a_training_on_a_gpu_goes_on_after_it_is_killed(tmp_path: Path) -> None:
    run = prepared_run(tmp_path, settings_on("cuda"), users=200)
    with start_training(run) as killed:
        wait_for_checkpoint(run, killed)
        killed.kill()
    assert train(run, resume=True).epochs == 6
    assert len(json.loads((run.path / "train" / CURVES).read_bytes())) == 6
