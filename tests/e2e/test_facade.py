"""`training.facade` on a planted log: its answers are those of a server, from tables in memory and from files."""

import asyncio
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from segrec.v1.segrec_service_pb2 import ItemReason
from typer.testing import CliRunner, Result

import training.facade as segrec_train
from server.core.history import Event
from server.core.ranking.query import Query, Ranking
from server.core.release import Release
from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_release
from server.rpc.messages.conversion import ITEM_REASONS
from server.serving.batching import MicroBatcher
from server.serving.cache import EmbeddingCache
from server.serving.embedding import Embedder
from server.serving.pipeline import Pipeline
from tests.support.logs import planted_items, planted_log
from tests.support.memory_store import MemoryStore
from tests.support.onnx_encoder import OnnxEncoder
from training.cli.main import app
from training.errors import ConfigError, LogError, RunError
from training.facade import TrainedRun
from training.offline import recommend, users
from training.offline.recommend import REASONS
from training.runs import Run
from training.segments.result import Segmentation
from training.segments.segment import segment

pytestmark = pytest.mark.usefixtures("one_thread")

USERS, ITEMS = 60, 40
CONFIG = {
    "train": {"embedding_dim": 16, "layers": 1, "heads": 2, "epochs": 1, "max_length": 16},
    "segment": {"k": 4, "min_segment_size": 5},
}
EVENTS, _ = planted_log(users=USERS, items=ITEMS, segments=4, events_per_user=20)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    runs = tmp_path_factory.mktemp("facade") / "runs"
    return segrec_train.fit(EVENTS, CONFIG, planted_items(ITEMS), runs=runs, name="notebook")


@pytest.fixture(scope="module")
def repository(trained: TrainedRun) -> Path:
    """Release 1 is the run, after one epoch: a rule beats it."""
    found = trained.path.parent.parent / "repository"
    with pytest.warns(UserWarning, match="^Release 1 stands by.*`graph`, predicts better"):
        assert trained.publish(found) == 1
    return found


def served(repository: Path, release: Release, user_ids: list[str], query: Query) -> list[Ranking]:
    """What the pipeline of a server answers whose store has all events."""

    async def ask() -> list[Ranking]:
        store, encoder = MemoryStore(), OnnxEncoder(repository)
        encoder.loaded = (1,)
        for (user_id,), events in EVENTS.group_by("user_id"):
            rows = events.sort("timestamp").select("item_id", "action", "value", "timestamp").rows()
            await store.record(str(user_id), [Event(*row) for row in rows])
        with ThreadPoolExecutor(2) as executor:
            embedder = Embedder(encoder, executor)
            pipeline = Pipeline(store, EmbeddingCache(10), embedder, MicroBatcher(embedder, 8), executor)
            return await pipeline.recommend(release, query, await pipeline.answer_users(release, user_ids, 5.0))

    return asyncio.run(ask())


def test_recommendations_are_those_of_a_server(trained: TrainedRun, repository: Path) -> None:
    release = read_release(repository / MODEL_NAME / "1")
    ids = [*sorted(EVENTS["user_id"].unique())[::-1], "nobody"]
    expected = served(repository, release, ids, Query(top_k=7, exclude_seen=True))
    for events in (None, EVENTS):
        table = trained.recommend(ids, events, top_k=7, exclude_seen=True)
        assert table["user_id"].unique(maintain_order=True).to_list() == ids
        for (user_id,), rows in table.group_by("user_id", maintain_order=True):
            items = expected[ids.index(str(user_id))].items
            assert rows["rank"].to_list() == list(range(1, len(items) + 1))
            assert rows["item_id"].to_list() == [release.item_ids[item.row] for item in items]
            assert rows["title"].to_list() == [release.titles[item.row] for item in items]
            assert rows["reason"].to_list() == [REASONS[item.reason] for item in items]
            np.testing.assert_allclose(rows["score"], [item.score for item in items], atol=1e-4)


def test_reasons_are_the_words_of_the_api() -> None:
    names = {part: ItemReason.Name(reason) for part, reason in ITEM_REASONS.items()}
    assert names == {part: f"ITEM_REASON_{word.upper()}" for part, word in REASONS.items()}


def test_vectors_are_those_that_were_segmented(trained: TrainedRun) -> None:
    vectors = trained.embed()
    assert vectors["user_id"].to_list() == trained.members()["user_id"].to_list()
    expected = np.load(trained.path / "segment" / "user_embeddings.npy")
    np.testing.assert_array_equal(vectors["embedding"].to_numpy(), expected)
    again = trained.embed(EVENTS.filter(pl.col("user_id") < "u00010"))
    assert len(again) == 10
    np.testing.assert_allclose(again["embedding"].to_numpy(), expected[:10], atol=1e-5)


def call(trained: TrainedRun, command: str, *words: object) -> Result:
    run = ("--runs", trained.path.parent, "--run", trained.path.name)
    return CliRunner().invoke(app, [command, *map(str, (*run, *words))], env={"COLUMNS": "200"})


def test_commands_write_what_the_facade_answers(
    trained: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recommend, "USERS_PER_RANKING", 25)
    monkeypatch.setattr(users, "VECTORS_AT_ONCE", 25)
    written = call(trained, "embed", "--out", tmp_path / "vectors.parquet")
    assert written.exit_code == 0, written.output
    assert f"The vectors of {USERS} users" in written.output
    assert pl.read_parquet(tmp_path / "vectors.parquet").equals(trained.embed())
    written = call(trained, "recommend", "--out", tmp_path / "top.parquet", "--top-k", 3)
    assert written.exit_code == 0, written.output
    assert f"Up to 3 items for each of {USERS} users" in written.output
    monkeypatch.undo()
    assert pl.read_parquet(tmp_path / "top.parquet").equals(trained.recommend(top_k=3))
    assert {path.name for path in tmp_path.iterdir()} == {"vectors.parquet", "top.parquet"}


def test_commands_answer_for_the_users_of_another_log(trained: TrainedRun, tmp_path: Path) -> None:
    stranger = EVENTS.head(3).with_columns(user_id=pl.lit("stranger"), item_id=pl.lit("no-such-item"))
    first, second = (tmp_path / name for name in ("first.parquet", "second.csv"))
    EVENTS.filter(pl.col("user_id") < "u00010").write_parquet(first)
    stranger.write_csv(second)
    other = pl.concat([pl.read_parquet(first), stranger])
    written = call(trained, "embed", "--events", first, second, "--out", tmp_path / "vectors.parquet")
    assert written.exit_code == 0, written.output
    assert "The vectors of 10 users" in written.output
    assert "Left out: 1 users" in written.output
    assert f"{len(other):,}" in written.output  # the account of the log
    assert pl.read_parquet(tmp_path / "vectors.parquet").equals(trained.embed(other))
    written = call(trained, "recommend", "--top-k", 3, "--events", first, second, "--out", tmp_path / "top.parquet")
    assert written.exit_code == 0, written.output
    assert "Popular items: 1 users" in written.output
    top = pl.read_parquet(tmp_path / "top.parquet")
    assert top.equals(trained.recommend(events=other, top_k=3))
    assert set(top.filter(user_id="stranger")["reason"]) == {"popular"}
    refused = call(trained, "embed", "--events", tmp_path / "none.csv", "--out", tmp_path / "vectors.parquet")
    assert refused.exit_code == 2
    assert "none.csv" in refused.stderr


@pytest.mark.parametrize("command", ["embed", "recommend"])
def test_commands_refuse_other_files_and_runs(trained: TrainedRun, tmp_path: Path, command: str) -> None:
    refused = call(trained, command, "--out", tmp_path / "out.csv")
    assert (refused.exit_code, "out.parquet" in refused.stderr) == (2, True)
    refused = call(trained, command, "--out", tmp_path / "missing" / "out.parquet")
    assert (refused.exit_code, "there is no directory" in refused.stderr) == (2, True)
    early = Run.create(tmp_path / "runs", run_id="early")
    refused = call(TrainedRun(early), command, "--out", tmp_path / "out.parquet")
    assert (refused.exit_code, "segrec-train segment --run early" in refused.stderr) == (1, True)


def test_tables_say_what_the_run_found(trained: TrainedRun) -> None:
    segments, members, figures = trained.segments(), trained.members(), trained.evaluate()
    assert segments["user_count"].sum() == len(members) == USERS
    counts = dict(members["segment_id"].value_counts().iter_rows())
    assert dict(segments.select("segment_id", "user_count").iter_rows()) == counts
    assert {"popularity", "encoder", "hybrid"} <= set(figures["method"])
    assert figures["value"].is_between(0, 100).all()
    assert segrec_train.open_run(trained.path).members().equals(members)


def test_segment_ids_continue_those_of_the_repository(trained: TrainedRun, repository: Path, tmp_path: Path) -> None:
    later = segrec_train.open_run(shutil.copytree(trained.path, tmp_path / "runs" / "later"))
    copied = shutil.copytree(repository, tmp_path / "repository")
    segment(later.run, tmp_path / "none", 3)
    with pytest.warns(UserWarning, match="^Release 2 stands by"):
        assert later.publish(copied) == 2
    assert Segmentation.read(later.path / "segment").parent_release == 1
    ids = read_release(copied / MODEL_NAME / "2").segments
    assert later.segments()["segment_id"].to_list() == [one.segment_id for one in ids]


def test_filters_are_those_of_the_server(trained: TrainedRun) -> None:
    found = trained.recommend(["u00000"], strategy="popular", candidate_item_ids=["i00001", "i00002"])
    assert set(found["item_id"]) == {"i00001", "i00002"}
    assert trained.recommend(["u00000"], include_categories=["no such category"]).is_empty()
    assert len(trained.recommend(top_k=1)) == USERS


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"colour": "red"}, "There is no filter `colour`"),
        ({"strategy": "best"}, "strategy must be one of hybrid"),
        ({"user_ids": "u00000"}, "user_ids must be a list of texts"),
        ({"top_k": 0}, "top_k must be a whole number from 1 to 500, not 0"),
        ({"diversity": 2}, "diversity must be a number from 0 to 1"),
        ({"exclude_seen": 1}, "exclude_seen must be True or False"),
    ],
)
def test_a_wrong_argument_is_told_in_a_sentence(trained: TrainedRun, arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        trained.recommend(**arguments)  # type: ignore[arg-type]


def test_wrong_tables_name_the_column(tmp_path: Path) -> None:
    def refused(events: object, config: object = None) -> str:
        with pytest.raises((LogError, ConfigError)) as error:
            segrec_train.fit(events, config, runs=tmp_path / "runs")  # type: ignore[arg-type]
        return str(error.value)

    lacking = refused(EVENTS.drop("item_id"))
    assert "`events`" in lacking
    assert "item" in lacking
    assert "segrec-" not in lacking
    mixed = pd.DataFrame({"user_id": ["a", "b"], "item_id": ["x", {"y": 1}], "timestamp": [1, 2]})
    assert refused(mixed).startswith("The column `item_id` of `events` cannot be read")
    doubled = pd.DataFrame([["a", "b"]], columns=["user_id", "user_id"])
    assert "more than one column `user_id`" in refused(doubled)
    assert "not list" in refused([1, 2])
    assert "There is no file" in refused(tmp_path / "missing.csv")
    assert "did you mean `train`" in refused(EVENTS, {"trian": {}})
    with pytest.raises(RunError, match="There is no run"):
        segrec_train.open_run(tmp_path)


def test_pandas_is_read_as_polars_is(trained: TrainedRun) -> None:
    some = EVENTS.filter(pl.col("user_id") < "u00005")
    frame = pd.DataFrame(some.to_dict(as_series=False))
    assert trained.embed(frame).equals(trained.embed(some))


def test_a_preview_of_rules_says_whose_lists_change(trained: TrainedRun, tmp_path: Path) -> None:
    before = trained.recommend(top_k=5)
    first = before.filter(pl.col("rank") == 1)["item_id"].value_counts(sort=True)["item_id"][0]
    shown_to = before.filter(pl.col("item_id") == first)["user_id"].n_unique()
    (tmp_path / "rules.toml").write_text(f'[[rules]]\nrule_id = "gone"\nkind = "ban"\nitem_ids = ["{first}"]')
    options = ["--run", trained.path.name, "--runs", str(trained.path.parent), "--top-k", "5"]
    arguments = ["rules", "preview", str(tmp_path / "rules.toml"), *options, "--out", str(tmp_path / "changed.parquet")]
    result = CliRunner().invoke(app, [*arguments, "--repository", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert f"The lists of {shown_to} of {USERS} users" in " ".join(result.output.split())
    changed = pl.read_parquet(tmp_path / "changed.parquet")
    assert len(changed) == shown_to
    assert not changed["after"].explode().is_in([first]).any()
