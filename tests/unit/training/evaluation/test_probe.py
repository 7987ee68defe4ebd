"""Probes and segment quality, on users whose right answer is known."""

from itertools import product

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from server.core.features import GAP_START, Features
from server.core.preprocessing import Action, Preprocessing
from server.core.segments import normalised
from training.data.sequences import EventLog, held_out
from training.evaluation.linear_probe import USERS_PER_CLASS, Label, probe, user_labels
from training.evaluation.user_vectors import LAST, MEAN, HandMadeVectors, ItemSvd, encoder_vectors
from training.kmeans.fit import fit_kmeans
from training.kmeans.settings import KMeansSettings
from training.model.encoder import Encoder, EncoderShape
from training.model.user_encoder import SegmentEmbedding, UserEncoder
from training.segments.quality import (
    SEEDS,
    ProbeVectors,
    Targets,
    neighbour_overlap,
    segment_hit_rate,
    segment_quality,
    segments_agree,
)

PREPROCESSING = Preprocessing(
    max_length=8,
    actions=(Action(name="view", weight=1.0), Action(name="buy", weight=1.0)),
    has_clock=True,
    exclude_seen=True,
)
SECOND, HOUR, DAY = 1_000, 3_600_000, 86_400_000


def log_of(*histories: list[int], step_ms: int = SECOND) -> EventLog:
    """One user for each list of item indexes, with a view every `step_ms`."""
    lengths = [len(items) for items in histories]
    count = sum(lengths)
    places = np.concatenate([np.arange(length) for length in lengths])
    features = Features(
        np.concatenate(histories).astype(np.int32),
        np.ones(count, np.int32),
        places.astype(np.float32),
        np.full(count, GAP_START, np.int32),
        np.cumsum([0, *lengths]).astype(np.int64),
        np.zeros(len(lengths), np.int32),
    )
    users = pl.Series([f"u{number}" for number in range(len(lengths))])
    return EventLog(users, features, places * step_ms, np.cumsum(lengths).astype(np.int64))


def whole(log: EventLog) -> EventLog:
    all_users = np.arange(len(log.users))
    return log.subset(np.ones(len(log.timestamp), np.bool_), all_users, PREPROCESSING)


def planted_vectors(users: int = 200, groups: int = 4, noise: float = 0.1, seed: int = 0) -> NDArray[np.float64]:
    """User u near corner u % groups."""
    rng = np.random.default_rng(seed)
    size = max(groups, 8)
    return normalised(np.eye(groups, size)[np.arange(users) % groups] + noise * rng.normal(size=(users, size)))


def test_encoder_vectors_do_not_depend_on_who_shares_the_batch() -> None:
    torch.manual_seed(0)
    plain = Encoder(EncoderShape(9, 2, 8, 16, layers=1, heads=2))
    places = torch.arange(10, dtype=torch.int32)[:, None]
    items = torch.cat([torch.zeros(1, 4), torch.randn(9, 4)])
    bag = SegmentEmbedding(torch.zeros(2, 16), places, items, torch.randn(36, 6), torch.randn(6))
    encoder = UserEncoder(plain, bag).eval()
    long, short = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3], [4, 5]
    together, alone = (
        encoder_vectors(encoder, whole(log_of(long, short))),
        encoder_vectors(encoder, whole(log_of(short))),
    )
    for kind in together:
        np.testing.assert_allclose(together[kind][1], alone[kind][0], atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(together[kind], axis=1), 1.0, atol=1e-6)
    one = encoder_vectors(encoder, whole(log_of([7])))
    np.testing.assert_allclose(one[LAST], one[MEAN], atol=1e-6)
    assert not np.allclose(together[LAST], together[MEAN], atol=1e-3)
    columns = {"item_index": [short], "action_index": [[1, 1]], "gap_index": [[GAP_START, GAP_START + 2]]}
    inputs = {name: torch.tensor(column) for name, column in columns.items()} | {"value": torch.tensor([[0.0, 1.0]])}
    with torch.inference_mode():
        np.testing.assert_allclose(together[LAST][1], normalised(plain(**inputs).numpy())[0], atol=1e-6)


def test_bags_of_items_put_users_of_the_same_items_together() -> None:
    log = log_of(*[[1, 2, 3, 9] if user % 2 else [4, 5, 6, 9] for user in range(12)])
    vectors = ItemSvd(whole(log), 9, seed=0)(whole(log))
    similarity = vectors @ vectors.T
    assert similarity[0, 2] == pytest.approx(1.0)
    assert similarity[0, 1] == pytest.approx(0.0, abs=1e-6)  # item 9 is everybody's and says nothing


def test_hand_made_vectors_hold_hours_and_categories() -> None:
    log = log_of([1, 1, 1, 1], [2, 2, 2, 2], [1, 1, 2, 2], step_ms=DAY)
    log = EventLog(log.users, log.features, log.timestamp + np.repeat([0, 0, HOUR], 4), log.train_ends)
    categories = pl.Series([["a"], ["b"]] + [[]] * 7, dtype=pl.List(pl.String))
    vectors = HandMadeVectors(whole(log), categories, PREPROCESSING)(whole(log))
    assert vectors[0] @ vectors[1] < 0.5
    everything = HandMadeVectors(whole(log), pl.Series([[]] * 9, dtype=pl.List(pl.String)), PREPROCESSING)(whole(log))
    same_days = [place for place in range(everything.shape[1]) if np.ptp(everything[:2, place]) < 1e-9]
    assert len(same_days) >= 24 + 7  # the first two users came at the same hours of the same days


def test_labels_note_the_values_that_they_leave_out() -> None:
    users = pl.Series("user_id", [f"u{number}" for number in range(100)])
    table = pl.DataFrame(
        {
            "user_id": users.reverse(),
            "half": ["x"] * 50 + ["y"] * 45 + [None] * 5,
            "rare": ["a"] * 40 + ["b"] * 41 + ["c"] * (USERS_PER_CLASS - 1),
            "age": [str(number) for number in range(100)],
            "name": [f"name {number}" for number in range(100)],
        }
    )
    labels, notes = user_labels(table, users)
    by_name = {label.name: label for label in labels}
    assert list(by_name) == ["half", "rare", "age"]
    assert len(by_name["half"].rows) == 95
    assert by_name["half"].classes[-1] == 0  # the last user is the table's first
    assert by_name["half"].majority == pytest.approx(50 / 95)
    assert np.bincount(by_name["rare"].classes).tolist() == [40, 41]
    assert np.bincount(by_name["age"].classes).tolist() == [25, 25, 25, 25]
    assert [note.split(":")[0] for note in notes] == ["rare", "age", "name"]
    assert "1 of 3 values left out, with 19 users" in notes[0]


def test_probes_predict_a_planted_label_and_no_random_label() -> None:
    users = pl.Series("user_id", [f"u{number}" for number in range(200)])
    coin = np.random.default_rng(1).integers(0, 2, 200)
    table = pl.DataFrame({"user_id": users, "group": np.arange(200) % 4, "coin": coin})
    (group, chance), _ = user_labels(table, users)
    vectors = planted_vectors()
    planted, random = probe(vectors, group, seed=0), probe(vectors, chance, seed=0)
    assert planted.auroc > 0.99
    assert planted.accuracy > 0.95
    assert group.majority == 0.25
    assert 0.35 < random.auroc < 0.65


def test_directions_keep_their_lengths() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 2, 200)
    vectors = rng.normal(scale=0.1, size=(200, 100))
    vectors[:, 0] = classes + rng.normal(scale=0.7, size=200)
    label = Label("class", np.arange(200), classes)
    auroc = probe(vectors, label, 0).auroc
    assert auroc > probe(vectors / vectors.std(0), label, 0).auroc + 0.03
    assert auroc == pytest.approx(probe(1000 * vectors + 5, label, 0).auroc, abs=1e-3)


def test_planted_segments_agree_and_random_ones_do_not() -> None:
    no_targets = Targets(log_of([1]), held_out(log_of([1]), 1), np.empty(0, np.intp), np.empty(0, np.intp), 9)
    all_users = np.ones(200, np.bool_)
    planted = [planted_vectors(seed=seed) for seed in range(3)]
    good = segment_quality(
        ProbeVectors(planted[0], (planted[1], planted[2]), all_users, np.empty((0, 8))), no_targets, 4
    )
    assert good.halves == good.halves_placed == good.seeds == 1.0
    assert good.smallest == good.largest == 0.25
    assert np.isnan(good.hr)
    noise = [normalised(np.random.default_rng(seed).normal(size=(200, 8))) for seed in range(3)]
    bad = segment_quality(ProbeVectors(noise[0], (noise[1], noise[2]), all_users, np.empty((0, 8))), no_targets, 4)
    assert abs(bad.halves) < 0.1
    assert abs(bad.halves_placed) < 0.1
    assert segments_agree(planted[0], planted[1], 4) == 1.0


def test_halves_are_compared_over_all_pairs_of_seeds_as_a_release_starts() -> None:
    """Points without clusters: each seed gives other segments, and so does another number of restarts."""
    halves = tuple(normalised(np.random.default_rng(seed).normal(size=(120, 6))) for seed in (1, 2))
    vectors = ProbeVectors(halves[0], (halves[0], halves[1]), np.ones(120, np.bool_), halves[0][:0])
    log = log_of([1, 2], [2, 3])
    no_targets = Targets(log, held_out(log, 1), np.empty(0, np.intp), np.empty(0, np.intp), 3)
    one, other = (
        [fit_kmeans(half, 7, settings=KMeansSettings(seed=seed)).labels for seed in range(SEEDS)] for half in halves
    )
    expected = np.mean([adjusted_rand_score(*pair) for pair in product(one, other)])
    assert segment_quality(vectors, no_targets, 7).halves == pytest.approx(expected)


def test_segment_popularity_hits_the_items_of_the_group() -> None:
    """Two groups of users with fifteen items each; a user has all items of the group but one, which is the target."""
    histories = []
    for user in range(30):
        items = [1 + user // 15 * 15 + place for place in range(15)]
        histories.append([item for item in items if item != items[user % 15]] + [items[user % 15]])
    log = log_of(*histories)
    held = held_out(log, 1)
    past = np.array([(row, item - 1) for row, items in enumerate(histories) for item in items[:-1]], np.intp)
    targets = Targets(log, held, past[:, 1], past[:, 0], 30)
    assert segment_hit_rate(targets, np.arange(30) // 15) == 1.0
    assert segment_hit_rate(targets, np.zeros(30, np.intp)) < 1.0  # the other group's items come between


def test_neighbours_agree_where_vectors_do() -> None:
    vectors = normalised(np.random.default_rng(0).normal(size=(300, 8)))
    turned = vectors @ np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
    other = normalised(np.random.default_rng(2).normal(size=(300, 8)))
    assert neighbour_overlap(vectors, turned, sample_size=100, seed=0) == 1.0
    assert neighbour_overlap(vectors, other, sample_size=300, seed=0) == pytest.approx(10 / 299, abs=0.02)
