"""Writes the segment stage's tables, arrays and golden inputs.

`result`, `migration`, `confidence` and `drift_reference` write the files of their own classes.
"""

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from server.core.features import batches
from server.core.next_visit import ITEM_STATISTICS
from server.core.preprocessing import Preprocessing
from server.core.release import GOLDEN_TOLERANCE, GROUP, RANKING, SEARCH_LISTS, SELLER, TREND, Golden, with_item_hashes
from server.core.segments import next_item_part
from training.model.drawn_histories import draw_histories
from training.model.onnx_inference import embed
from training.profiles.profiles import exemplars_of
from training.ranking.hybrid import HybridChoice
from training.ranking.next_visit import item_statistics
from training.ranking.segment_items import behaviour_of, popularity, segment_items
from training.ranking.trend import Demand
from training.ranking.variants import variant_groups
from training.segments.clusters import Segments
from training.segments.confidence import UserConfidence
from training.segments.drift_reference import write_reference
from training.segments.inputs import EmbeddedUsers, SegmentInputs
from training.segments.placement import assignment_table
from training.segments.search_lists import APPROXIMATE_FROM, search_lists, write_search_lists

GOLDEN_LENGTHS = (1, 10, 100)
"""Lengths of the golden histories, in events; one more has all events that the encoder reads."""

_USUAL_VALUE = 3.0
"""Bound of the golden values, after normalising; a rounding error of fp16 grows with the value."""


def write_users(
    directory: Path,
    inputs: SegmentInputs,
    users: EmbeddedUsers,
    segments: Segments,
    segment_ids: tuple[int, ...],
    confidence: UserConfidence,
) -> None:
    """Write embeddings, centroids, the segment of each user, the exemplars of each segment, and the drift reference."""
    np.save(directory / "user_embeddings.npy", users.embeddings)
    np.save(directory / "centroids.npy", segments.fit.centroids)
    calibration = confidence.calibration.confidence if confidence.calibration else None
    event_counts = np.minimum(users.log.features.lengths, inputs.preprocessing.max_length)
    placed = assignment_table(users.log.users, segment_ids, segments.placed, event_counts, calibration)
    placed.write_parquet(directory / "assignments.parquet")
    exemplars_of(segments.members, segment_ids, users.log.users).write_parquet(directory / "exemplars.parquet")
    write_reference(directory, users.item_dim, event_counts, inputs.settings.min_segment_size)


def write_items(
    directory: Path,
    inputs: SegmentInputs,
    users: EmbeddedUsers,
    clusters: NDArray[np.intp],
    segment_ids: tuple[int, ...],
    choice: HybridChoice,
) -> dict[str, float]:
    """Write the catalogue with the popularity of each item, and the items of each segment; `clusters` is (U,).

    Returns the figures of the search lists: their number, how many are visited, and the recall; empty for a catalogue
    that is small enough for an exact search, and 0 lists where no number of them finds enough.
    """
    log, preprocessing, settings = users.log, inputs.preprocessing, inputs.settings
    items = pl.read_parquet(inputs.prepared / "items.parquet")
    behaviour = behaviour_of(log, log.features.ends, preprocessing, len(items))
    global_scores = np.log(popularity(behaviour, choice.smoothing.half_life)).astype(np.float32)
    catalogue = items.select(
        "item_id",
        "title",
        "category",
        "event_count",
        pl.Series("popularity", global_scores),
        variant_groups(items).alias(GROUP),
        *(name for name in items.columns if name == SELLER),
    )
    (directory / RANKING).unlink(missing_ok=True)
    if choice.next_visit:
        statistics = item_statistics(log, log.features.ends, preprocessing, len(items))
        catalogue = catalogue.with_columns(pl.from_numpy(statistics, list(ITEM_STATISTICS)))
        (directory / RANKING).write_text(choice.next_visit.model_dump_json())
    if choice.trend:
        trend_scores = Demand(log, 0, preprocessing, len(items)).newest_scores(choice.trend)
        catalogue = catalogue.with_columns(pl.Series(TREND, trend_scores))
    with_item_hashes(catalogue).write_parquet(directory / "items.parquet")
    figures = _write_search_lists(directory, inputs, users, catalogue)
    minimums = settings.min_item_users, settings.min_segment_size
    best_items = segment_items(behaviour, clusters, segment_ids, choice.smoothing, *minimums)
    best_items.write_parquet(directory / "segment_items.parquet")
    return figures


def _write_search_lists(
    directory: Path, inputs: SegmentInputs, users: EmbeddedUsers, catalogue: pl.DataFrame
) -> dict[str, float]:
    """Write the lists by which a server searches a large catalogue; no file for one that is searched exactly."""
    (directory / SEARCH_LISTS).unlink(missing_ok=True)
    if len(catalogue) < APPROXIMATE_FROM:
        return {}
    items, queries = users.item_embeddings, next_item_part(users.embeddings, users.item_dim)
    if TREND in catalogue.columns:  # as `Release.search` does
        items = np.column_stack([items, catalogue[TREND].to_numpy()])
        queries = np.column_stack([queries, np.ones(len(queries), np.float32)])
    lists = search_lists(items, queries, inputs.settings.seed)
    if lists is None:
        return {"search_lists": 0}
    write_search_lists(directory / SEARCH_LISTS, lists)
    return {"search_lists": len(lists.centroids), "search_probes": lists.probes, "search_recall": lists.recall}


def write_golden(directory: Path, inputs: SegmentInputs, item_count: int) -> None:
    """Write drawn histories with their embeddings; a server checks a release with them."""
    tolerance = inputs.run.figures("export").get("golden_tolerance", GOLDEN_TOLERANCE)
    golden = golden_of(inputs.preprocessing, item_count, inputs.model, tolerance)
    (directory / "golden.json").write_text(golden.model_dump_json())


def golden_of(
    preprocessing: Preprocessing, item_count: int, model: Path, tolerance: float = GOLDEN_TOLERANCE
) -> Golden:
    """Drawn histories of up to four lengths, as one batch, with the embeddings of `model`; nothing is of the log."""
    max_length = preprocessing.max_length
    lengths = sorted({min(length, max_length) for length in (*GOLDEN_LENGTHS, max_length)})
    histories = draw_histories(lengths, preprocessing, item_count, _USUAL_VALUE)
    [(_, inputs)] = batches(histories, max_length)
    # `batches` sorts by length; `histories` is sorted already, so its rows are those of the embeddings.
    embeddings = embed(model, histories, max_length=max_length)
    columns = {name: array.tolist() for name, array in inputs.items()}
    return Golden(**columns, user_embedding=embeddings.tolist(), tolerance=tolerance)
