"""Evaluation beside baselines, the split by time, and comparison of runs, on planted data."""

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from server.core.figures import AS_SERVED, ENCODER, LEAVE_ONE_OUT, NEXT_VISIT, TIME_SPLIT, values_by_name
from server.core.preprocessing import Preprocessing
from server.core.release import Release
from server.core.repository.layout import read_preprocessing
from tests.support.logs import fashionable, planted_baskets, planted_items, planted_log
from training.config import Clean, Config, Missing, MissingColumns, SegmentSettings, SplitSettings, TrainSettings
from training.data.prepare import prepare
from training.derive.compress import ranks_on_test
from training.errors import ConfigError, RunError
from training.evaluation.baselines import item_knn_scorer
from training.evaluation.compare import compare_runs, comparison_table
from training.evaluation.evaluate import NEW_ITEMS, RECENT_POPULARITY, evaluate, protocols
from training.evaluation.results import RANKS, TREND, EvaluateResult, figures_by_user
from training.fit.train import train
from training.model.weights import WEIGHTS
from training.publish.active_gate import gate_targets
from training.runs import Run

pytestmark = pytest.mark.usefixtures("one_thread")

TRAIN = TrainSettings(
    embedding_dim=16, layers=1, max_length=16, epochs=4, dropout=0.1, learning_rate=0.01, batch_size=32
)
LAST_EVENTS = SplitSettings(method="leave_one_out")
BY_TIME = SplitSettings(method="time", test_share=0.2)


def prepared(directory: Path, events: pl.DataFrame, split: SplitSettings | None = None, seed: int = 0) -> Run:
    directory.mkdir(exist_ok=True)
    files = directory / "events.parquet", directory / "items.parquet"
    events.write_parquet(files[0])
    planted_items().write_parquet(files[1])
    run = Run.create(directory / "runs")
    settings = TRAIN.model_copy(update={"seed": seed})
    config = Config(
        train=settings, clean=Clean(exclude_seen=False), split=split or LAST_EVENTS, segment=SegmentSettings(k=4)
    )
    prepare(run, *files, None, config)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = prepared(tmp_path_factory.mktemp("planted"), planted_log(users=160)[0])
    train(made)
    evaluate(made)
    return made


def test_every_baseline_is_in_the_table_and_those_that_know_users_beat_popularity(run: Run) -> None:
    result = EvaluateResult.read(run.require("evaluate"))
    ndcg = {(one.protocol, one.method): one.figures["ndcg@10"] for one in result.results}
    methods = ["encoder", "popularity", "popularity, 7 days", "popularity, 4 segments", "item-kNN"]
    assert list(ndcg) == [(protocol, method) for protocol in (LEAVE_ONE_OUT, AS_SERVED) for method in methods]
    for method in ("encoder", "popularity, 4 segments", "item-kNN"):
        assert ndcg[AS_SERVED, method] > 1.5 * ndcg[AS_SERVED, "popularity"], method
    assert [one.row_count for one in result.tables()] == [5, 5, 5, 5]


def test_what_is_in_demand_has_a_row_where_it_helps(tmp_path: Path) -> None:
    run = prepared(tmp_path, fashionable(planted_log(users=160)[0]))
    train(run)
    evaluate(run)
    found = EvaluateResult.read(run.require("evaluate"))
    assert [note for note in found.notes if note.startswith(f"{AS_SERVED}: trend and popularity, lately: half-life")]
    ndcg = {one.method: one.figures["ndcg@10"] for one in found.results if one.protocol == AS_SERVED}
    assert ndcg[TREND] > max(ndcg[ENCODER], ndcg[RECENT_POPULARITY])
    assert f"{AS_SERVED}/{TREND}/ndcg@10" in values_by_name(run.quality("evaluate"))


@pytest.fixture(scope="module")
def baskets(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = prepared(tmp_path_factory.mktemp("baskets"), planted_baskets(users=80), SplitSettings())
    train(made, settings=TRAIN.model_copy(update={"epochs": 1, "learning_rate": 1e-9}))
    evaluate(made)
    return made


def test_a_log_of_baskets_is_evaluated_by_visit(baskets: Run) -> None:
    """What a user buys each week is most of a visit, so rules of own items beat an encoder that learned nothing."""
    found = EvaluateResult.read(baskets.require("evaluate"))
    assert {one.protocol for one in found.results} == {NEXT_VISIT}
    by_method = {one.method: one for one in found.results}
    assert list(by_method) == [
        ENCODER,
        "popularity",
        "popularity, 7 days",
        "own, most frequent",
        "own, fading",
        "TIFU-KNN",
        "item-kNN",
        "graph",
        "popularity, 4 segments",
    ]
    frequent = by_method["own, most frequent"]
    assert frequent.users == 80
    assert frequent.figures["recall@5"] > 0.6
    assert frequent.figures["ndcg@10"] > 1.5 * by_method["popularity"].figures["ndcg@10"]
    verdict = found.verdict(())
    assert verdict
    assert verdict.startswith("A simple rule, `")
    assert any(note.startswith("next visit: own, fading: half-life") for note in found.notes)
    assert [one.row_count for one in found.tables()] == [9, 9]
    ranks = pl.read_parquet(baskets.path / "evaluate" / RANKS)
    assert len(ranks) > 3 * 80
    encoder = figures_by_user(ranks)
    assert encoder["ndcg"].mean() == pytest.approx(by_method[ENCODER].figures["ndcg@10"], abs=1e-6)
    assert encoder["hr"].mean() == pytest.approx(by_method[ENCODER].figures["hr@10"])


def test_comparisons_of_encoders_have_one_item_of_each_last_visit(baskets: Run) -> None:
    assert len(ranks_on_test(baskets)) == 80
    prepared_at = baskets.require("prepare")
    release = cast(
        Release,
        SimpleNamespace(
            preprocessing=read_preprocessing(prepared_at),
            manifest=SimpleNamespace(item_count=len(pl.read_parquet(prepared_at / "items.parquet"))),
        ),
    )
    gate = gate_targets(prepared_at, release, 999)
    assert gate
    events = pl.read_parquet(prepared_at / "events.parquet")
    is_last = pl.col("timestamp") == pl.col("timestamp").max().over("user_id")
    assert gate.events.equals(
        events.filter(~is_last).with_columns(pl.col("user_id", "item_id", "action").cast(pl.String))
    )
    last = events.filter(is_last).group_by("user_id", maintain_order=True).agg(pl.col("item_id").cast(pl.String))
    places = [visit.index(target) for target, visit in zip(gate.targets, last["item_id"].to_list(), strict=True)]
    assert len(set(places)) > 1


def test_slices_part_the_users(run: Run) -> None:
    for result in EvaluateResult.read(run.require("evaluate")).results:
        *by_activity, new = result.slices
        assert sum(part.users for part in by_activity) == result.users
        mean = sum(part.users * part.ndcg for part in by_activity) / result.users
        assert mean == pytest.approx(result.figures["ndcg@10"])
        assert (new.name, new.users) == (NEW_ITEMS, 0)
        assert result.hr_interval[0] <= result.figures["hr@10"] <= result.hr_interval[1]


def cut(run: Run) -> int:
    moment: int = json.loads((run.path / "prepare" / "split.json").read_bytes())["test_from"]
    return moment


def test_a_split_by_time_learns_nothing_from_what_came_after(tmp_path: Path) -> None:
    """Afterwards everybody buys one item at another price; to the rest of the catalogue nothing happens any more."""
    events, _ = planted_log(users=60)
    events = events.with_columns(pl.col("timestamp") + pl.col("user_id").str.slice(1).cast(pl.Int64) * 400_000)
    honest = prepared(tmp_path / "a", events, BY_TIME)
    train(honest)
    result = evaluate(honest)
    moment = cut(honest)
    fixed = SplitSettings(method="time", test_from=datetime.fromtimestamp(moment / 1000, UTC), test_share=0.2)
    later = pl.col("timestamp") >= moment
    rush = {"item_id": "i00039", "value": 1e6, "action": "cart"}
    changed = events.with_columns(
        pl.when(later).then(pl.lit(new)).otherwise(name).alias(name) for name, new in rush.items()
    )
    other = prepared(tmp_path / "b", changed, fixed)
    train(other)
    for run in (honest, other):
        assert cut(run) == moment
    assert (honest.path / "prepare/preprocessing.json").read_bytes() == (
        other.path / "prepare/preprocessing.json"
    ).read_bytes()
    encoder, _, known = result.results[:3]
    assert encoder.protocol == TIME_SPLIT
    assert encoder.figures["ndcg@10"] > known.figures["ndcg@10"]
    ours, theirs = (load_file(run.path / "train" / WEIGHTS) for run in (honest, other))
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=0)


def test_the_users_of_a_split_by_time(tmp_path: Path) -> None:
    """Ann is asked about her first event of the period, Bob only comes in it, Cleo has left before, Dan has both."""
    hour = 3_600_000
    times = {"ann": [*range(12), 90, 91], "bob": [92, 93], "cleo": [*range(12)], "dan": [*range(12), 50, 95]}
    rows = [
        (user, f"i{place:05}", "view", 1.0, 1_700_000_000_000 + t * hour)
        for user, list_ in times.items()
        for place, t in enumerate(list_)
    ]
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "action", "value", "timestamp"], orient="row")
    split = SplitSettings(
        method="time", test_from=datetime.fromtimestamp(1_700_000_000 + 60 * 3600, UTC), test_share=0.1
    )
    run = prepared(tmp_path, events, split)
    train(run)
    result = evaluate(run)
    ranks = pl.read_parquet(run.path / "evaluate/ranks.parquet")
    assert ranks["user_id"].to_list() == ["ann", "dan"]
    assert "not evaluated: 1" in result.notes[0]


@pytest.mark.parametrize(
    ("moment", "message"),
    [(datetime(1999, 1, 1), "no event before or after"), (datetime(2030, 1, 1), "no event before or after")],
)
def test_a_moment_outside_the_log_is_refused(tmp_path: Path, moment: datetime, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepared(tmp_path, planted_log(users=20)[0], SplitSettings(method="time", test_from=moment))


def test_a_log_without_clock_has_no_split_by_time(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no clock"):
        prepared(tmp_path, planted_log(users=20)[0].drop("timestamp"), BY_TIME)


def beside(run: Run) -> Run:
    """A run on the same prepared data."""
    other = Run.create(run.path.parent)
    (other.path / "prepare").symlink_to(run.path / "prepare")
    record = run.record()
    stages = {"prepare": record["stages"]["prepare"]}
    (other.path / "run.json").write_text(json.dumps(record | {"id": other.path.name, "stages": stages}))
    return other


def test_runs_side_by_side(run: Run, tmp_path: Path) -> None:
    same, poor = (beside(run) for _ in range(2))
    for one, settings in ((same, TRAIN), (poor, TRAIN.model_copy(update={"epochs": 1, "learning_rate": 1e-9}))):
        train(one, settings=settings)
        evaluate(one)
    found = compare_runs([run, same, poor])
    by_run = {one.run: one for one in found if one.protocol == LEAVE_ONE_OUT}
    alike, worse = by_run[same.path.name].ndcg, by_run[poor.path.name].ndcg
    assert (alike.difference, alike.interval, alike.p) == (0.0, (0.0, 0.0), 1.0)
    assert worse.difference < 0
    assert worse.interval[1] < 0
    assert worse.p < 0.01
    assert np.isclose(worse.value - by_run[run.path.name].ndcg.value, worse.difference)
    assert comparison_table(found).row_count == 6
    elsewhere = prepared(tmp_path, planted_log(users=30)[0])
    with pytest.raises(RunError, match="evaluate"):
        compare_runs([run, elsewhere])
    train(elsewhere)
    evaluate(elsewhere)
    with pytest.raises(RunError, match="differ in their log"):
        compare_runs([run, elsewhere])
    with pytest.raises(RunError, match="at least two runs"):
        compare_runs([run, run])


def test_values_are_interpolated_within_their_period(tmp_path: Path) -> None:
    """Everyone's last price before the test period is missing; what people pay in it must not fill the gap."""
    split = SplitSettings(method="time", test_from=datetime.fromtimestamp(1_700_000_000 + 12 * 3600, UTC))
    config = Config(clean=Clean(missing=MissingColumns(value=Missing(method="interpolate"))), split=split)
    filled = []
    for price in (5.0, 500.0):
        events, _ = planted_log(users=20)
        hour = (pl.col("timestamp") - 1_700_000_000_000) // 3_600_000
        value = pl.when(hour < 11).then(1.0).when(hour >= 12).then(price)
        path = tmp_path / f"{price}.parquet"
        events.with_columns(value.alias("value")).write_parquet(path)
        run = Run.create(tmp_path / "runs")
        prepare(run, path, None, None, config)
        before = pl.read_parquet(run.path / "prepare/events.parquet").filter(hour < 12)
        filled.append(before["value"].to_list())
    assert filled[0] == filled[1]


def test_a_time_read_off_later_ones_does_not_go_with_a_split_by_time() -> None:
    missing = MissingColumns(timestamp=Missing(method="interpolate"))
    with pytest.raises(ValueError, match=r"split\.method time"):
        Config(clean=Clean(missing=missing), split=BY_TIME)


def test_items_like_nothing_of_a_history_follow_by_popularity(run: Run) -> None:
    prepared_at = run.require("prepare")
    preprocessing = Preprocessing.model_validate_json((prepared_at / "preprocessing.json").read_bytes())
    [protocol, _] = protocols(prepared_at, preprocessing, 41)
    scores = item_knn_scorer(protocol.log, protocol.held, preprocessing, 41)(np.arange(5)).numpy()
    assert (scores[:, 40] == -1).all()  # an item that nobody ever had
    assert ((scores > 0).sum(1) >= 10).all()
