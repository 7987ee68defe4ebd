"""Publishing: what the repository holds afterwards, whatever happens on the way."""

import fcntl
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest

from server.core.figures import figures_of, values_by_name
from server.core.release import Golden, TrainedOn
from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_release
from tests.support.releases import START_MS, group_history, tiny_release
from training.config import Config, PrivacySettings
from training.data.prepare import prepare
from training.errors import PublishError, RunError, TrainingError
from training.publish import publish as publishing
from training.publish.publish import publish
from training.repository import newest_release, release_numbers
from training.runs import Run
from training.segments.result import Segmentation

ROOT = Path(__file__).parents[2]


def finished_run(
    tmp_path: Path, *, seed: int = 0, parent: int = 0, run_id: str = "run", config: Config | None = None
) -> Run:
    """A run whose stages up to `segment` are done, with the content of a tiny release."""
    source = tiny_release(tmp_path / f"source-{run_id}", 1, seed)
    release = read_release(source)
    run = Run.create(tmp_path / "runs", run_id=run_id)
    prepare(run, write_log(tmp_path / f"{run_id}.parquet"), None, None, config or Config())
    for name in ("train", "evaluate", "export", "segment"):
        with run.stage(name) as stage:
            if name == "evaluate":
                stage.quality += figures_of("as served", "encoder", {"ndcg@10": 0.25, "mrr@10": 0.5})
    for stage_name, names in publishing._SOURCES.items():
        for name in names:
            shutil.copyfile(source / name, run.path / stage_name / name)
    (run.path / "segment" / "golden.json").write_text(release.manifest.golden.model_dump_json())
    Segmentation(
        profiles=release.segments,
        parent_release=parent,
        born=(),
        retired=(),
        engine="sklearn",
        inertia=1.0,
        iterations=3,
        half_life=30.0,
        prior=100.0,
        hybrid_weight=0.75,
        data_cutoff_time=None,
        figures=figures_of("as served", "hybrid", {"ndcg@10": 0.5}),
    ).write(run.path / "segment")
    return run


def write_log(path: Path) -> Path:
    """What 24 users of a tiny release's four groups did."""
    events = [(number, event) for number in range(24) for event in group_history(number % 4).events()]
    columns = ("item_id", "action", "value", "timestamp")
    user_ids = [f"user-{number}" for number, _ in events]
    log = pl.DataFrame(
        {"user_id": user_ids} | {name: [getattr(event, name) for _, event in events] for name in columns}
    )
    log.write_parquet(path)
    return path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def test_a_release_is_whole_and_passes_the_servers_checks(tmp_path: Path, repository: Path) -> None:
    run = finished_run(tmp_path)
    assert publish(run, repository) == 1
    release = read_release(repository / MODEL_NAME / "1")
    assert release.manifest.hybrid_weight == 0.75
    kept = {"as served/encoder/ndcg@10": 0.25, "as served/hybrid/ndcg@10": 0.5}
    assert values_by_name(release.manifest.figures) == kept
    assert release.manifest.parent_release == 0
    assert [record.release for record in release.segments[0].history] == [1]
    assert run.figures("publish")["release"] == 1
    assert not list((repository / ".staging").iterdir())


def test_a_release_says_what_it_was_trained_on_and_when_it_must_be_forgotten(tmp_path: Path, repository: Path) -> None:
    publish(finished_run(tmp_path), repository)
    privacy = PrivacySettings(retention_days=3650)
    publish(finished_run(tmp_path, run_id="kept", parent=1, config=Config(privacy=privacy)), repository)
    plain, kept = (read_release(repository / MODEL_NAME / number).manifest for number in "12")
    first = datetime.fromtimestamp(START_MS / 1000, UTC)
    last = first + timedelta(hours=9)
    assert plain.trained_on == TrainedOn(
        first_event_time=first, last_event_time=last, user_count=24, event_count=240, files=("run.parquet",)
    )
    assert (plain.forget_after, kept.forget_after) == (None, last + timedelta(days=3650))
    assert str(tmp_path) not in (repository / MODEL_NAME / "1" / "manifest.json").read_text()


def test_triton_is_told_about_the_model_once(tmp_path: Path, repository: Path) -> None:
    config = repository / MODEL_NAME / "config.pbtxt"
    run = finished_run(tmp_path)
    publish(run, repository)
    assert config.read_bytes() == (ROOT / "model_repository" / MODEL_NAME / "config.pbtxt").read_bytes()
    config.write_text("# my own")
    publish(run, repository)
    assert config.read_text() == "# my own"


def test_numbers_count_up_and_histories_grow(tmp_path: Path, repository: Path) -> None:
    run = finished_run(tmp_path)
    assert [publish(run, repository) for _ in range(3)] == [1, 2, 3]
    release = read_release(repository / MODEL_NAME / "3")
    assert release.manifest.parent_release == 2
    assert [record.release for record in release.segments[0].history] == [3, 2, 1]


def test_the_number_of_a_pruned_release_is_not_used_again(tmp_path: Path, repository: Path) -> None:
    run = finished_run(tmp_path)
    publish(run, repository)
    publish(run, repository)
    shutil.rmtree(repository / MODEL_NAME / "2")
    assert publish(run, repository) == 3


@pytest.mark.parametrize("name", ["2.tmp", "02", "2" * 20, "２"])
def test_odd_directories_are_no_releases(tmp_path: Path, repository: Path, name: str) -> None:
    (repository / MODEL_NAME / name).mkdir(parents=True)
    assert release_numbers(repository) == []
    assert publish(finished_run(tmp_path), repository) == 1


def test_a_release_by_others_since_the_segments_were_matched_is_told(tmp_path: Path, repository: Path) -> None:
    first, second = finished_run(tmp_path), finished_run(tmp_path, seed=1, run_id="second")
    publish(first, repository)
    with pytest.raises(PublishError, match=r"newest release .* is 1, .* matched to no release; run `segrec-train"):
        publish(second, repository)
    assert release_numbers(repository) == [1]
    matched = Segmentation.read(second.path / "segment").model_copy(update={"parent_release": 1})
    matched.write(second.path / "segment")
    assert publish(second, repository) == 2


def test_only_one_publishes_at_a_time(tmp_path: Path, repository: Path) -> None:
    run = finished_run(tmp_path)
    repository.mkdir()
    with (repository / ".publish.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(PublishError, match="Somebody else is publishing"):
            publish(run, repository)
    assert publish(run, repository) == 1


def damage_golden(run: Run) -> None:
    path = run.path / "segment" / "golden.json"
    golden = Golden.model_validate_json(path.read_bytes())
    moved = [[number + 0.01 for number in row] for row in golden.user_embedding]
    path.write_text(golden.model_copy(update={"user_embedding": moved}).model_dump_json())


def damage_model(run: Run) -> None:
    (run.path / "export" / "model.onnx").write_bytes(b"not a model")


def damage_centroids(run: Run) -> None:
    np.save(run.path / "segment" / "centroids.npy", np.full((4, 16), np.nan, np.float32))


def damage_items(run: Run) -> None:
    embeddings = np.load(run.path / "export" / "item_embeddings.npy")
    np.save(run.path / "export" / "item_embeddings.npy", embeddings[:-1])


def external_weights(run: Run) -> None:
    path = run.path / "export" / "model.onnx"
    onnx.save(onnx.load(str(path)), str(path), save_as_external_data=True, location="weights", size_threshold=0)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (damage_golden, r"differ by 1\.0e-02 from the golden"),
        (damage_model, "model.onnx of the release does not run"),
        (damage_centroids, "finite float32"),
        (damage_items, "items.parquet rows is 50"),
        (external_weights, "keeps weights in another file"),
    ],
    ids=["golden", "model", "centroids", "items", "external"],
)
def test_a_faulty_release_stays_out(tmp_path: Path, repository: Path, damage: object, why: str) -> None:
    tiny_release(repository)
    run = finished_run(tmp_path, parent=1)
    assert callable(damage)
    damage(run)
    with pytest.raises(PublishError, match=why):
        publish(run, repository)
    assert release_numbers(repository) == [1]
    assert not list((repository / ".staging").iterdir())
    newest = newest_release(repository)
    assert newest is not None
    assert newest.number == 1


@pytest.mark.parametrize(
    "step", ["_assemble", "_make_durable", "check_release", "_move_in", "write_ledger", "sync_directory"]
)
def test_a_crash_at_any_step_leaves_whole_releases_and_the_next_publish_works(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A crash is one that runs no clean-up: what it left lies in the staging directory."""
    run = finished_run(tmp_path)
    publish(run, repository)

    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publishing, step, die)
        patch.setattr(shutil, "rmtree", lambda *arguments, **options: None)
        with pytest.raises(KeyboardInterrupt):
            publish(run, repository)
    assert list((repository / ".staging").iterdir())
    for number in release_numbers(repository):
        read_release(repository / MODEL_NAME / str(number))
    assert publish(run, repository) == max(release_numbers(repository))
    assert not list((repository / ".staging").iterdir())


def test_a_crash_after_the_numbers_were_used_up_wastes_one(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *arguments: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(PublishError, match=r"Cannot write release 1 .*: No space left on device"):
            publish(run, repository)
    assert release_numbers(repository) == []
    assert publish(run, repository) == 2


def test_a_damaged_ledger_is_told(tmp_path: Path, repository: Path) -> None:
    run = finished_run(tmp_path)
    publish(run, repository)
    (repository / ".ledger.json").write_text("{")
    with pytest.raises(PublishError, match=r"ledger\.json is damaged"):
        publish(run, repository)


def test_segment_ids_of_all_time_are_remembered(tmp_path: Path, repository: Path) -> None:
    publish(finished_run(tmp_path), repository)
    assert json.loads((repository / ".ledger.json").read_text()) == {"next_release": 2, "next_segment_id": 5}


def test_a_missing_stage_is_named(tmp_path: Path, repository: Path) -> None:
    run = Run.create(tmp_path / "runs", run_id="empty")
    with pytest.raises(RunError, match="segrec-train"):
        publish(run, repository)
    assert issubclass(RunError, TrainingError)
