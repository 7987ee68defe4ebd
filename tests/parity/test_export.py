"""ONNX Runtime computes what torch computes."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from server.core.features import Features
from server.core.preprocessing import Action, Preprocessing
from server.core.repository.layout import OUTPUT
from training.errors import RunError
from training.model import export as export_module
from training.model import onnx_inference, weights
from training.model.encoder import Encoder, EncoderShape
from training.model.export import TOLERANCE, ExportResult, compare_with_torch, export, random_inputs, torch_embeddings
from training.model.onnx_inference import embed, open_session
from training.model.user_encoder import SegmentEmbedding, UserEncoder
from training.runs import Run

SHAPE = EncoderShape(item_count=50, action_count=3, max_length=20, embedding_dim=16, layers=2, heads=2)
BAG_HISTORY = 48
"""Its blocks read the newest 20 events, its bag so many."""


@pytest.fixture(scope="module")
def encoder() -> UserEncoder:
    torch.manual_seed(0)
    made = Encoder(SHAPE, dropout=0.2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    places = torch.arange(SHAPE.item_count + 1, dtype=torch.int32)[:, None] % 40
    items = torch.randn(40, 8)
    items[0] = 0.0
    forecast = torch.randn(2 * SHAPE.embedding_dim + 8, 6), torch.randn(6)
    weights, history = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([BAG_HISTORY], dtype=torch.int32)
    parts = SegmentEmbedding(torch.randn(2, SHAPE.embedding_dim), places, items, *forecast, weights, history)
    return UserEncoder(made, parts).eval()


@pytest.fixture(scope="module")
def result(encoder: UserEncoder, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """The export of a run that ends with this encoder."""
    run = Run.create(tmp_path_factory.mktemp("runs"))
    with run.stage("prepare") as stage:
        preprocessing = Preprocessing(
            max_length=SHAPE.max_length, actions=(Action(name="buy", weight=1),), has_clock=True, exclude_seen=True
        )
        (stage.directory / "preprocessing.json").write_text(preprocessing.model_dump_json())
    with run.stage("train") as stage:
        (stage.directory / weights.SHAPE).write_text(json.dumps(asdict(SHAPE)))
        save_file(encoder.encoder.state_dict(), stage.directory / weights.WEIGHTS)
        assert encoder.segments
        encoder.segments.write(stage.directory)
    return export(run)


@pytest.fixture(scope="module")
def model(result: ExportResult) -> Path:
    return result.directory / "model.onnx"


def test_export_writes_what_a_release_takes_from_it(encoder: UserEncoder, result: ExportResult) -> None:
    assert result.difference <= TOLERANCE
    assert result.microseconds_per_user > 0
    names = {path.name for path in result.directory.iterdir()}
    assert names == {"model.onnx", "item_embeddings.npy", "preprocessing.json"}
    items = np.load(result.directory / "item_embeddings.npy", allow_pickle=False)
    assert items.dtype == np.float32
    np.testing.assert_array_equal(items, encoder.item_embeddings().detach().numpy())
    preprocessing = Preprocessing.model_validate_json((result.directory / "preprocessing.json").read_bytes())
    assert preprocessing.max_length == BAG_HISTORY


def test_the_model_has_the_inputs_and_the_output_of_a_release(model: Path) -> None:
    graph = onnx.load(model).graph
    assert [entry.name for entry in graph.input] == ["item_index", "action_index", "value", "gap_index"]
    assert [entry.name for entry in graph.output] == [OUTPUT]
    for entry in graph.input:
        assert all(axis.dim_param for axis in entry.type.tensor_type.shape.dim)


def test_every_batch_size_and_length_agrees_with_torch(encoder: UserEncoder, model: Path) -> None:
    assert compare_with_torch(encoder, model) <= TOLERANCE


def test_padding_does_not_matter(encoder: UserEncoder, model: Path) -> None:
    session = open_session(model)
    inputs = {name: array[:1] for name, array in random_inputs(encoder, 2, 6, seed=3).items()}
    alone = session.run([OUTPUT], inputs)[0]
    for length in (20, BAG_HISTORY):
        padded = {name: np.pad(array, ((0, 0), (length - 6, 0))) for name, array in inputs.items()}
        np.testing.assert_allclose(session.run([OUTPUT], padded)[0], alone, rtol=0, atol=1e-6)


def test_another_model_is_refused(encoder: UserEncoder, model: Path) -> None:
    torch.manual_seed(1)
    with pytest.raises(RunError, match="differs from torch"):
        compare_with_torch(UserEncoder(Encoder(SHAPE), encoder.segments).eval(), model)


def test_a_difference_is_judged_beside_the_size_of_the_numbers(
    encoder: UserEncoder, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings a thousand times as large differ a thousand times as much."""
    scaled = onnx.load(model)
    [last] = [node for node in scaled.graph.node if OUTPUT in node.output]
    last.output[list(last.output).index(OUTPUT)] = "unscaled"
    scaled.graph.node.append(onnx.helper.make_node("Mul", ["unscaled", "scale"], [OUTPUT]))
    scaled.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1000, np.float32), "scale"))
    onnx.save(scaled, tmp_path / "model.onnx")
    monkeypatch.setattr(export_module, "torch_embeddings", lambda *inputs: 1000 * torch_embeddings(*inputs))
    assert compare_with_torch(encoder, tmp_path / "model.onnx") > TOLERANCE


def test_embed_gives_each_history_its_own_embedding(encoder: UserEncoder, model: Path) -> None:
    """Also histories longer than the encoder reads, and none at all."""
    rng = np.random.default_rng(0)
    lengths = np.array([3, 0, 60, 1, 30, *rng.integers(1, 40, 60)])
    total = int(lengths.sum())
    features = Features(
        rng.integers(1, SHAPE.item_count + 1, total, np.int32),
        rng.integers(1, SHAPE.action_count + 1, total, np.int32),
        rng.normal(size=total).astype(np.float32),
        rng.integers(2, 33, total, np.int32),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.zeros(len(lengths), np.int32),
    )
    told: list[tuple[int, int]] = []
    embeddings = embed(model, features, BAG_HISTORY, lambda _, done, parts: told.append((done, parts)))
    assert not embeddings[1].any()
    for row in (0, 2, 3, 4, 20):
        end, length = features.offsets[row + 1], min(int(lengths[row]), BAG_HISTORY)
        inputs = {
            name: getattr(features, name)[None, end - length : end].copy()
            for name in ("item_index", "action_index", "value", "gap_index")
        }
        inputs["gap_index"][0, 0] = 1
        np.testing.assert_allclose(embeddings[row], torch_embeddings(encoder, inputs)[0], rtol=0, atol=TOLERANCE)
    assert told[-1] == (len(lengths), len(lengths))
    assert len(told) > 1


def test_a_block_of_histories_gives_the_same_bits_alone(
    encoder: UserEncoder, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(0, 40, 50)
    total = int(lengths.sum())
    features = Features(
        rng.integers(1, SHAPE.item_count + 1, total, np.int32),
        rng.integers(1, SHAPE.action_count + 1, total, np.int32),
        rng.normal(size=total).astype(np.float32),
        rng.integers(2, 33, total, np.int32),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.zeros(len(lengths), np.int32),
    )
    monkeypatch.setattr(onnx_inference, "BLOCK_USERS", 16)
    told = [0]
    whole = embed(model, features, BAG_HISTORY, lambda _, done, total: told.append(done))
    assert 0 < np.diff(told).max() <= 16
    for start in range(0, 50, 16):
        block = features.slices(features.starts[start : start + 16], features.ends[start : start + 16])
        np.testing.assert_array_equal(embed(model, block, BAG_HISTORY), whole[start : start + 16])
