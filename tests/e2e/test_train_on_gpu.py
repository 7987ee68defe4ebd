"""What training does differently on a GPU, as far as a machine without one can show it."""

from pathlib import Path

import pytest
import torch

import training.train
from tests.support.training import prepared_run, weights_of
from training.config import Train
from training.encoder import Encoder, EncoderShape
from training.train import precision_on, train

SHAPE = EncoderShape(item_count=30, action_count=2, max_length=16, embedding_dim=16, layers=2, heads=2)


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


def test_bf16_trains_and_validates_in_float32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """CPUs compute bfloat16 as well; a score in it could not be written to the buffer of float32 scores."""
    settings = Train(embedding_dim=16, layers=1, max_length=16, epochs=4, learning_rate=0.01, batch_size=32)
    runs = [prepared_run(tmp_path / name, settings, users=100) for name in ("exact", "rounded")]
    exact = train(runs[0])
    monkeypatch.setattr(training.train, "precision_on", lambda device: "bf16-mixed")
    rounded = train(runs[1])
    assert (weights_of(runs[0])["norm.weight"] != weights_of(runs[1])["norm.weight"]).any()
    assert rounded.ndcg == pytest.approx(exact.ndcg, rel=0.1)


def test_precisions() -> None:
    assert precision_on("cpu") == "32-true"
