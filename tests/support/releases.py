"""A tiny but whole release, made in a fraction of a second, for tests that need one without training.

Items fall into as many groups as there are segments: item number i (from 1) is of group (i - 1) % segments, and a
history within one group lands in that group's segment. Every embedding depends on number and seed, and labels and
titles name the number, so that a test can tell which release answered.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import polars as pl
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from server.core.features import GAP_COUNT, Inputs, batches, features_of
from server.core.figures import figures_of
from server.core.hash_index import HashIndex
from server.core.history import Event, History, history_of
from server.core.next_visit import FEATURES, ITEM_STATISTICS, NextVisitModel
from server.core.preprocessing import Action, Preprocessing, ValueNormaliser
from server.core.profiles import (
    ActionShare,
    Activity,
    Change,
    Flow,
    Migration,
    SegmentItem,
    SegmentProfile,
    SegmentRecord,
    Spend,
    Trait,
)
from server.core.release import FILES, MIGRATION, RANKING, Confidence, Golden, Manifest, with_item_hashes
from server.core.repository.layout import MODEL_NAME, OUTPUT
from server.core.repository.read import record_of
from server.core.segments import normalised

ACTIONS = {"view": 0.3, "cart": 0.6, "purchase": 1.0, "return": -1.0}
START_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
CUTOFF = datetime(2024, 1, 1, tzinfo=UTC)
CONFIDENCE = Confidence(margins=(0, 0.5, 1), stays=(0.25, 0.75, 1), min_confidence=0.5, min_history=3)
"""A history in the middle of two groups is in doubt, one of a single group is not."""
MIGRATION_OF_FOUR = Migration(
    previous_release=2,
    user_count=400,
    flows=(
        Flow(from_segment_id=1, to_segment_id=1, user_count=150, share=0.5),
        Flow(from_segment_id=1, to_segment_id=4, user_count=150, share=0.5),
        Flow(from_segment_id=2, to_segment_id=2, user_count=100, share=1.0),
        Flow(from_segment_id=0, to_segment_id=3, user_count=102, share=1.0),
    ),
    born_segment_ids=(3, 4),
    retired_segment_ids=(9,),
    splits=(Change(from_segment_ids=(1,), to_segment_ids=(1, 4)),),
)
"""Of a tiny release's four segments: 1 split, 3 is of new users, 9 is no more."""


def ranking_of(**weights: float) -> NextVisitModel:
    """A ranking of the next visit of one layer, which adds features with these weights."""
    column = [[weights.get(name, 0.0)] for name in FEATURES]
    return NextVisitModel(features=FEATURES, weights=([column],), biases=([[0.0]],))


def item_id(number: int) -> str:
    """Id of the item with this number, from 1."""
    return f"item-{number:03d}"


def group_history(group: int, length: int = 10, segments: int = 4, items: int = 50) -> History:
    """A history of hourly events on the items of one group (from 0), which lands in segment group + 1."""
    members = range(group + 1, items + 1, segments)
    actions = ("view", "view", "cart", "purchase")
    return history_of(
        Event(item_id(members[place % len(members)]), actions[place % 4], 1.0 + place % 3, START_MS + place * HOUR_MS)
        for place in range(length)
    )


def tiny_release(
    repository: Path,
    number: int = 1,
    seed: int = 0,
    items: int = 50,
    dim: int = 16,
    segments: int = 4,
    max_length: int = 32,
    confidence: Confidence | None = None,
    migration: Migration | None = None,
    ranking: NextVisitModel | None = None,
) -> Path:
    """Publish release `number` into the model repository, with its model's config.pbtxt; returns its directory.

    It is written elsewhere and renamed in, so that a running server never sees half of it. Without `confidence` and
    `migration` it is as releases were before there was either. With `ranking`, all `ITEM_STATISTICS` are 0.
    """
    directory = repository / ".staging-tiny" / f"tiny-{seed}-{number}" / str(number)
    directory.mkdir(parents=True)
    _copy_config(repository)
    rng = np.random.default_rng([seed, number])
    groups = np.linalg.qr(rng.normal(size=(dim, dim)))[0][:segments] * 2.0
    vectors = (groups[np.arange(items) % segments] + rng.normal(scale=0.2, size=(items, dim))).astype(np.float32)
    preprocessing = Preprocessing(
        max_length=max_length,
        actions=tuple(Action(name=name, weight=weight) for name, weight in ACTIONS.items()),
        value=ValueNormaliser(method="log", center=1.0, scale=0.5),
        has_clock=True,
        exclude_seen=False,
    )
    write_mean_encoder(directory / "model.onnx", vectors, rng)
    (directory / "preprocessing.json").write_text(preprocessing.model_dump_json())
    popularity = _write_items(directory, items, segments, number, ITEM_STATISTICS if ranking else ())
    np.save(directory / "item_embeddings.npy", vectors)
    np.save(directory / "centroids.npy", normalised(groups).astype(np.float32))
    profiles = "[" + ",".join(_profile(group, segments, number).model_dump_json() for group in range(segments)) + "]"
    (directory / "segments.json").write_text(profiles)
    _write_segment_items(directory, popularity, segments)
    if migration is not None:
        (directory / MIGRATION).write_text(migration.model_dump_json())
    if ranking is not None:
        (directory / RANKING).write_text(ranking.model_dump_json())
    more = [*([MIGRATION] if migration else []), *([RANKING] if ranking else [])]
    manifest = Manifest(
        release=number,
        created_time=datetime.now(UTC),
        data_cutoff_time=CUTOFF,
        parent_release=number - 1,
        embedding_dim=dim,
        max_length=max_length,
        item_count=items,
        segment_count=segments,
        hybrid_weight=0.5,
        figures=figures_of("as served", "popularity", {"ndcg@10": 0.1}),
        confidence=confidence,
        min_segment_size=100 if confidence else 0,
        files={name: record_of(directory / name) for name in (*FILES, *more)},
        golden=_golden(directory / "model.onnx", preprocessing, items, segments),
    )
    (directory / "manifest.json").write_text(manifest.model_dump_json())
    return directory.rename(repository / MODEL_NAME / str(number))


def encode_with_onnx(model: Path, inputs: Inputs) -> NDArray[np.float32]:
    """User embeddings (B, D) by ONNX Runtime in this process."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    embeddings: NDArray[np.float32] = session.run([OUTPUT], dict(inputs))[0]
    return embeddings


def write_mean_encoder(path: Path, item_vectors: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Write a model that averages over the history: item vector + small action, gap and value vectors.

    Padding adds nothing. `item_vectors` is (V, D); row r belongs to item index r + 1.
    """
    dim = item_vectors.shape[1]
    tables = {
        "item_table": np.vstack([np.zeros((1, dim)), item_vectors]),
        "action_table": np.vstack([np.zeros((1, dim)), rng.normal(scale=0.1, size=(len(ACTIONS), dim))]),
        "gap_table": np.vstack([np.zeros((1, dim)), rng.normal(scale=0.05, size=(GAP_COUNT - 1, dim))]),
        "value_row": rng.normal(scale=0.02, size=(1, 1, dim)),
        "one": np.ones(1),
    }
    weights = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in tables.items()]
    axes = {"last_axis": np.array([2]), "length_axis": np.array([1])}
    weights += [numpy_helper.from_array(array.astype(np.int64), name) for name, array in axes.items()]
    weights.append(numpy_helper.from_array(np.zeros(1, np.int32), "padding"))
    nodes = [
        helper.make_node("Gather", [f"{name}_table", f"{name}_index"], [f"{name}_rows"])
        for name in ("item", "action", "gap")
    ]
    nodes += [
        helper.make_node("Unsqueeze", ["value", "last_axis"], ["value_column"]),
        helper.make_node("Mul", ["value_column", "value_row"], ["value_rows"]),
        helper.make_node("Sum", ["item_rows", "action_rows", "gap_rows", "value_rows"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "length_axis"], ["total"], keepdims=0),
        helper.make_node("Greater", ["item_index", "padding"], ["valid"]),
        helper.make_node("Cast", ["valid"], ["valid_float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["valid_float", "length_axis"], ["event_count"], keepdims=1),
        helper.make_node("Max", ["event_count", "one"], ["divisor"]),
        helper.make_node("Div", ["total", "divisor"], [OUTPUT]),
    ]
    kinds = {"item_index": TensorProto.INT32, "action_index": TensorProto.INT32, "value": TensorProto.FLOAT}
    kinds["gap_index"] = TensorProto.INT32
    inputs = [helper.make_tensor_value_info(name, kind, ["batch", "length"]) for name, kind in kinds.items()]
    output = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", dim])
    graph = helper.make_graph(nodes, "mean_encoder", inputs, [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _copy_config(repository: Path) -> None:
    target = repository / MODEL_NAME / "config.pbtxt"
    source = Path(__file__).parents[2] / "model_repository" / MODEL_NAME / "config.pbtxt"
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        target.write_bytes(source.read_bytes())


def _write_items(
    directory: Path, items: int, segments: int, number: int, statistics: Sequence[str]
) -> NDArray[np.float64]:
    """Write the catalogue; popularity falls as 1 / rank, starting from the item whose number is the release's."""
    ranks = (np.arange(items) - (number - 1)) % items + 1
    popularity: NDArray[np.float64] = np.log(1 / ranks / (1 / ranks).sum())
    catalogue = pl.DataFrame(
        {
            "item_id": [item_id(i) for i in range(1, items + 1)],
            "title": [f"Item {i} of release {number}" for i in range(1, items + 1)],
            "group": pl.int_range(items, eager=True, dtype=pl.Int32),
            "category": [[f"category-{i % segments + 1}"] for i in range(items)],
            "event_count": np.round(1000 / ranks).astype(np.int64),
            "popularity": popularity.astype(np.float32),
            **{name: np.zeros(items, np.float32) for name in statistics},
        }
    )
    with_item_hashes(catalogue).write_parquet(directory / "items.parquet")
    return popularity


def _profile(group: int, segments: int, number: int) -> SegmentProfile:
    return SegmentProfile(
        segment_id=group + 1,
        label=f"Category {group + 1} (release {number})",
        user_count=100 + group,
        share=1 / segments,
        traits=(
            Trait(
                kind="category",
                name=f"category-{group + 1}",
                share=0.9,
                lift=float(segments),
                lift_low=segments / 2,
                user_count=90 + group,
            ),
        ),
        top_items=(
            SegmentItem(item_id=item_id(1), user_share=0.95, lift=1, lift_low=0.5),
            SegmentItem(item_id=item_id(group + 1), user_share=0.75, lift=segments / 2, lift_low=1.5),
        ),
        particular_items=(SegmentItem(item_id=item_id(group + 1), user_share=0.75, lift=segments / 2, lift_low=1.5),),
        mean_distance=0.2,
        silhouette=0.5,
        history=(SegmentRecord(release=number, user_count=100 + group, share=1 / segments),),
        description=f"Sentence {group + 1} of release {number}.",
        growth=0.25 if group else None,
        activity=Activity(mean_events=10, median_events=8, mean_active_days=4, mean_days_since_last=2.5),
        actions=(ActionShare(action="view", share=0.75, lift=1.5), ActionShare(action="cart", share=0.25, lift=0.5)),
        hours=(0.0,) * 8 + (1.0,) + (0.0,) * 15,
        weekdays=(0.25, 0.25, 0.5, 0, 0, 0, 0),
        spend=Spend(mean_value=2, mean_total=20, median_total=16) if group else None,
    )


def _write_segment_items(directory: Path, popularity: NDArray[np.float64], segments: int) -> None:
    """Each segment lists its own group's items, ten times as likely as elsewhere."""
    parts = []
    for group in range(segments):
        rows = np.arange(group, len(popularity), segments)
        rows = rows[np.argsort(-popularity[rows], kind="stable")]
        score = popularity[rows] - np.log(np.exp(popularity[rows]).sum())
        parts.append(
            pl.DataFrame(
                {
                    "segment_id": np.full(len(rows), group + 1, np.int64),
                    "item_index": (rows + 1).astype(np.int32),
                    "score": score.astype(np.float32),
                }
            )
        )
    pl.concat(parts).write_parquet(directory / "segment_items.parquet")


def _golden(model: Path, preprocessing: Preprocessing, items: int, segments: int) -> Golden:
    histories = [group_history(place % segments, length, segments, items) for place, length in enumerate((1, 3, 6, 8))]
    catalogue = HashIndex.of([item_id(number) for number in range(1, items + 1)])
    features = features_of(histories, catalogue, HashIndex.of(list(ACTIONS)), preprocessing)
    [(_, inputs)] = batches(features, preprocessing.max_length)
    embeddings = encode_with_onnx(model, inputs)
    return Golden(**{name: array.tolist() for name, array in inputs.items()}, user_embedding=embeddings.tolist())
