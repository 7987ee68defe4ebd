"""Compression and fusion on planted data: what is made is a run like any other, down to its release."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner, Result

from server.core.features import GAP_START, batches
from server.core.figures import values_by_name
from server.core.preprocessing import Preprocessing
from server.core.release import GOLDEN_TOLERANCE, Release
from server.core.repository.layout import MODEL_NAME, OUTPUT
from server.core.repository.read import read_release
from server.core.segments import next_item_part
from tests.support.logs import write_planted
from training.cli.main import app
from training.config import Clean, Config, SplitSettings, TrainSettings
from training.data.prepare import prepare
from training.data.sequences import held_out, read_sequences
from training.derive.compress import WAYS, CompressResult, EncoderFigures, compress
from training.derive.fuse import FuseResult, fuse
from training.errors import ConfigError, RunError
from training.evaluation.evaluate import evaluate
from training.fit.train import train
from training.model.encoder import Encoder
from training.model.export import MODEL, export
from training.model.onnx_inference import open_session
from training.model.weights import load_encoder
from training.publish.publish import publish
from training.runs import Run
from training.segments.segment import segment

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.nightly]

LAST_EVENTS = SplitSettings(method="leave_one_out")

SETTINGS = TrainSettings(
    embedding_dim=32, layers=1, max_length=16, epochs=3, dropout=0.1, learning_rate=0.01, batch_size=32
)


def trained(directory: Path, name: str, seed: int, **shape: int) -> Run:
    directory.mkdir(exist_ok=True)
    events, items, _ = write_planted(directory, **{"users": 120, "items": 200, **shape})
    run = Run.create(directory.parent / "runs", run_id=name)
    settings = SETTINGS.model_copy(update={"seed": seed})
    prepare(run, events, items, None, Config(train=settings, clean=Clean(exclude_seen=False), split=LAST_EVENTS))
    train(run)
    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compress")


@pytest.fixture(scope="module")
def members(place: Path) -> list[Run]:
    """Two runs on the same data, of different seeds."""
    return [trained(place / "log", name, seed) for seed, name in enumerate(("first", "second"))]


@pytest.fixture(scope="module")
def compressed(members: list[Run]) -> CompressResult:
    export(members[0])
    return compress(members[0])


@pytest.fixture(scope="module")
def fused(members: list[Run]) -> FuseResult:
    made = fuse(members)
    export(made.run)
    return made


def rows(result: CompressResult) -> dict[str, EncoderFigures]:
    return {row.way: row for row in result.rows}


def run_of(members: list[Run], row: EncoderFigures) -> Run:
    return Run.open(members[0].path.parent, row.run)


def released(run: Run, repository: Path) -> Release:
    segment(run, repository)
    return read_release(repository / MODEL_NAME / str(publish(run, repository)))


def test_every_way_is_smaller_and_the_table_says_what_it_gains(compressed: CompressResult) -> None:
    found = rows(compressed)
    assert tuple(found) == ("original", *WAYS)
    for way in WAYS:
        assert found[way].model_bytes < found["original"].model_bytes, way
        assert "× smaller" in found[way].verdict
        assert ("faster on this processor" in found[way].verdict) or ("× faster" in found[way].verdict)
        assert found[way].ndcg.low <= found[way].ndcg.difference <= found[way].ndcg.high
    assert found["int8"].model_bytes < found["fp16"].model_bytes
    assert found["student"].item_bytes == pytest.approx(found["original"].item_bytes / 2, rel=0.05)
    assert found["student"].microseconds < found["original"].microseconds
    on_disk = json.loads((compressed.directory / "metrics.json").read_bytes())
    assert [row["way"] for row in on_disk] == list(found)


def test_less_precision_costs_next_to_no_quality(compressed: CompressResult) -> None:
    for way in ("int8", "fp16"):
        assert abs(rows(compressed)[way].ndcg.difference) < 0.01, way


def test_the_same_evaluation_measures_all(compressed: CompressResult, members: list[Run]) -> None:
    for row in compressed.rows[1:]:
        figures = values_by_name(run_of(members, row).quality("evaluate"))
        assert figures["as served/encoder/ndcg@10"] == pytest.approx(row.ndcg.value, abs=1e-6), row.way
        assert figures["as served/encoder/hr@10"] == pytest.approx(row.hr.value, abs=1e-6), row.way


@pytest.mark.parametrize("way", WAYS)
def test_every_way_ends_as_a_release(way: str, compressed: CompressResult, members: list[Run], tmp_path: Path) -> None:
    run = run_of(members, rows(compressed)[way])
    assert run.record()["parents"] == ["first"]
    assert run.made_by == way
    release = released(run, tmp_path / "repository")
    assert release.item_embeddings.shape == (200, 16 if way == "student" else 32)
    assert values_by_name(release.manifest.figures)["as served/encoder/ndcg@10"] > 0
    assert (release.manifest.golden.tolerance > GOLDEN_TOLERANCE) == (way == "fp16")


@pytest.mark.parametrize("way", ["int8", "fp16"])
def test_an_embedding_does_not_depend_on_its_neighbours_or_padding(
    way: str, compressed: CompressResult, members: list[Run]
) -> None:
    """Which int8 sums with scales taken from the batch would break."""
    run = run_of(members, rows(compressed)[way])
    session = open_session(run.require("export") / MODEL)
    tolerance = {"int8": 1e-5, "fp16": 5e-3}[way]
    for whole in histories(run)[:2]:
        inputs = {name: array[:, -10:].copy() for name, array in whole.items()}
        inputs["gap_index"][:, 0] = inputs["gap_index"][:, 0].clip(max=GAP_START)  # as of any window's first event
        together = session.run([OUTPUT], inputs)[0]
        for row in range(0, len(together), 5):
            alone = {name: np.pad(array[row : row + 1], ((0, 0), (3, 0))) for name, array in inputs.items()}
            np.testing.assert_allclose(session.run([OUTPUT], alone)[0][0], together[row], rtol=0, atol=tolerance)


def test_int8_and_fp16_keep_inputs_output_and_few_floats(compressed: CompressResult, members: list[Run]) -> None:
    whole = onnx.load(str(members[0].require("export") / MODEL)).graph
    for way, kind in (("int8", onnx.TensorProto.INT8), ("fp16", onnx.TensorProto.FLOAT16)):
        graph = onnx.load(str(run_of(members, rows(compressed)[way]).require("export") / MODEL)).graph
        for entries in ("input", "output"):
            types = [[entry.type.tensor_type.elem_type for entry in getattr(g, entries)] for g in (whole, graph)]
            assert types[0] == types[1]
        tables = [tensor for tensor in graph.initializer if list(tensor.dims) == [201, 32]]
        assert [tensor.data_type for tensor in tables] == [kind]


def test_half_of_the_feed_forward_units_are_gone(compressed: CompressResult, members: list[Run]) -> None:
    narrow = load_encoder(run_of(members, rows(compressed)["pruned"]).require("train"))
    whole = load_encoder(members[0].require("train"))
    widths = [encoder.state_dict()["blocks.0.forward_out.weight"].shape[1] for encoder in (narrow, whole)]
    assert widths[0] * 2 == widths[1]


def histories(run: Run) -> list[dict[str, np.ndarray]]:
    prepared = run.require("prepare")
    preprocessing = Preprocessing.model_validate_json((prepared / "preprocessing.json").read_bytes())
    log = read_sequences(prepared, preprocessing)
    held = held_out(log, 1)
    features = log.histories(held.rows, held.ends, preprocessing.max_length)
    return [inputs for _, inputs in batches(features, preprocessing.max_length)]


def test_fused_scores_are_the_average_of_members_scores(fused: FuseResult, members: list[Run]) -> None:
    """Of those divided by their spread, from the one ONNX file, up to one factor for all."""
    exported = fused.run.require("export")
    session = open_session(exported / MODEL)
    items = np.load(exported / "item_embeddings.npy", allow_pickle=False)
    encoders = [load_encoder(run.require("train")) for run in members]
    spreads: list[list[np.ndarray]] = [[], []]
    all_inputs = histories(fused.run)
    for inputs in all_inputs:
        for place, encoder in enumerate(encoders):
            spreads[place].append(member_scores(encoder, inputs).std(1, ddof=1))
    for inputs in all_inputs:
        found = next_item_part(session.run([OUTPUT], inputs)[0], items.shape[1]) @ items.T
        parts = zip(fused.members, encoders, strict=True)
        expected = sum(
            member.user_factor * member.item_factor * member_scores(encoder, inputs) for member, encoder in parts
        )
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    # The factors make members equal: weight × spread × factor is the same share for each.
    sizes = [
        member.user_factor * member.item_factor * float(np.concatenate(spread).mean()) / member.weight
        for member, spread in zip(fused.members, spreads, strict=True)
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)  # spreads were taken on validation, these are of the test


def member_scores(encoder: Encoder, inputs: dict[str, np.ndarray]) -> np.ndarray:
    with torch.inference_mode():
        users = encoder(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        scores: np.ndarray = (users @ encoder.item_embeddings().T).numpy()
    return scores


def test_a_fused_run_is_evaluated_and_published_like_any_other(
    fused: FuseResult, members: list[Run], tmp_path: Path
) -> None:
    assert fused.run.record()["parents"] == ["first", "second"]
    result = evaluate(fused.run)
    assert {entry.method for entry in result.results} >= {"encoder", "popularity"}
    assert fused.fused >= min(fused.alone)
    release = released(fused.run, tmp_path / "repository")
    assert release.manifest.embedding_dim == 64
    assert release.centroids.shape[1] == len(release.manifest.golden.user_embedding[0]) - 64
    assert fused.table().row_count == 4
    assert members[0].made_by is None


def test_a_fused_run_can_be_compressed_again(fused: FuseResult) -> None:
    found = rows(compress(fused.run, ("int8",)))
    assert found["int8"].model_bytes < found["original"].model_bytes
    with pytest.raises(RunError, match="prune its members"):
        compress(fused.run, ("pruned",))


def test_runs_on_other_data_are_refused(members: list[Run], place: Path) -> None:
    other = trained(place / "other", "other", 0, users=60)
    with pytest.raises(RunError, match=r"first and .*other differ in their log; .*same prepared data"):
        fuse([members[0], other])
    for wrong in (members[:1], [members[0], members[0]]):
        with pytest.raises(RunError, match="2 to 8 different runs"):
            fuse(wrong)
    assert not list(place.glob("runs/*-other-fused"))


def test_what_cannot_be_made_is_said(compressed: CompressResult, members: list[Run]) -> None:
    with pytest.raises(ConfigError, match="not `int4`"):
        compress(members[0], ("int8", "int4"))
    lowered = run_of(members, rows(compressed)["int8"])
    with pytest.raises(RunError, match="int8 already"):
        compress(lowered)
    with pytest.raises(RunError, match="fuse the run it was made from"):
        fuse([members[1], lowered])
    with pytest.raises(RunError, match="train cannot be repeated"):
        train(lowered)
    with pytest.raises(RunError, match="whole histories only"):
        load_encoder(lowered.require("train")).sequence(*(torch.ones(1, 2, dtype=torch.int32),) * 4)


def test_the_commands_say_the_same(compressed: CompressResult, members: list[Run]) -> None:
    def call(*words: str) -> Result:
        return CliRunner().invoke(app, [*words, "--runs", str(members[0].path.parent)])

    unknown = call("compress", "first", "--only", "int4")
    assert (unknown.exit_code, unknown.stderr.count("\n")) == (2, 1)
    assert "int8, fp16, pruned, student" in unknown.stderr
    alone = call("fuse", "first")
    assert alone.exit_code == 1
    assert "2 to 8 different runs" in alone.stderr
    made = call("compress", "first", "--only", "int8")
    assert made.exit_code == 0, made.output
    for told in ("µs per user", "to the original", "first-int8", "× smaller", "segrec-train publish"):
        assert told in made.output
    fused = call("fuse", "first", "second")
    assert fused.exit_code == 0, fused.output
    assert "equal weights" in fused.output
    assert "segrec-train evaluate --run" in fused.output
