"""Profiles of the segment stage and of the release: what they tell, of whom they do not, and names from a model."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_release
from tests.e2e.test_segment import GROUPS, USERS, assignments, exported_run, repository
from tests.unit.training.profiles.test_llm_names import chat, serving
from training.publish.publish import publish
from training.runs import Run
from training.segments.segment import segment

__all__ = ["repository"]


def with_a_secret(run: Run, buyers: int) -> Run:
    """The run, whose first users of the first planted group bought little but one item, which nobody else has."""
    path = run.path / "prepare" / "events.parquet"
    events = pl.read_parquet(path)
    secret = f"i{36:05}"
    users = [f"u{number * GROUPS:05}" for number in range(buyers)]
    turned = pl.col("user_id").is_in(users) & (pl.int_range(pl.len()).over("user_id") < 15)
    others = pl.when(pl.col("item_id") == secret).then(pl.lit(f"i{32:05}")).otherwise("item_id")
    events.with_columns(pl.when(turned).then(pl.lit(secret)).otherwise(others).alias("item_id")).write_parquet(path)
    items = pl.read_parquet(run.path / "prepare" / "items.parquet")
    is_secret = pl.col("item_id") == secret
    told = pl.when(is_secret).then(pl.lit(["Secrets"])).otherwise("category").alias("category")
    items.with_columns(pl.when(is_secret).then(pl.lit("Secret")).otherwise("title").alias("title"), told).write_parquet(
        run.path / "prepare" / "items.parquet"
    )
    return run


@pytest.mark.parametrize(("buyers", "told"), [(4, False), (12, True)])
def test_an_item_of_too_few_users_is_nowhere_in_what_segments_tell(
    tmp_path: Path, repository: Path, buyers: int, told: bool
) -> None:
    run, secret = with_a_secret(exported_run(tmp_path), buyers), f"i{36:05}"
    segment(run, repository)
    directory = repository / MODEL_NAME / str(publish(run, repository))
    text = (directory / "segments.json").read_text()
    assert ("Secret" in text) == (secret in text) == told
    release = read_release(directory)
    index = release.vocabulary[secret]
    lists = list(release.segment_items.values())
    log_lifts = [own.score - release.popularity[own.item_index - 1] for own in lists]
    secret_lifts = [float(lifts[own.item_index == index][0]) for lifts, own in zip(log_lifts, lists, strict=True)]
    assert (max(secret_lifts) > 0) == told
    assert told or secret_lifts == pytest.approx([float(lifts.min()) for lifts in log_lifts], abs=1e-5)


def test_profiles_go_from_the_log_into_the_release(tmp_path: Path, repository: Path) -> None:
    run = exported_run(tmp_path)
    found = segment(run, repository)
    release = read_release(repository / MODEL_NAME / str(publish(run, repository)))
    assert [one.model_copy(update={"history": ()}) for one in release.segments] == list(found.profiles)
    assert len({one.description for one in release.segments}) == GROUPS
    for one in release.segments:
        group = one.label.split(" · ")[0]
        assert f"of their events are {group}, " in one.description
        assert one.activity is not None
        assert one.activity.mean_events == 20
        assert [action.action for action in one.actions] == ["view", "purchase", "cart"]
        assert sum(one.hours) == pytest.approx(1)
        assert sum(one.weekdays) == pytest.approx(1)
        assert one.spend is not None
        assert all(trait.lift_low > 1 and trait.user_count >= 5 for trait in one.traits)
        assert {item.item_id for item in one.particular_items} <= {item.item_id for item in one.top_items}
        assert all(item.lift > item.lift_low > 1 for item in one.particular_items)
    figures = run.figures("segment")
    assert figures["particular_items_overlap_largest"] == 0 < figures["top_items_overlap_mean"]
    assert found.overlap_figures.items() <= figures.items()


def test_no_user_is_named_in_what_is_published_and_exemplars_stay_in_the_run(tmp_path: Path, repository: Path) -> None:
    run = exported_run(tmp_path)
    segment(run, repository)
    directory = repository / MODEL_NAME / str(publish(run, repository))
    users = assignments(run)["user_id"].to_list()
    for path in directory.iterdir():
        content = path.read_bytes()
        text = pl.read_parquet(path).write_json().encode() if path.suffix == ".parquet" else content
        assert not [user for user in users if user.encode() in content + text], path.name
    exemplars = pl.read_parquet(run.path / "segment" / "exemplars.parquet")
    assert len(exemplars) == GROUPS * 2 * 10
    placed = assignments(run)
    nearest = placed.sort("distance", "user_id").group_by("segment_id", maintain_order=True).head(10)
    mine = exemplars.filter(pl.col("kind") == "nearest")
    assert set(mine["user_id"]) == set(nearest["user_id"])
    assert np.isin(exemplars["distance"].to_numpy(), placed["distance"].to_numpy()).all()


def test_of_a_log_that_is_too_small_nothing_is_told(tmp_path: Path, repository: Path) -> None:
    run = exported_run(tmp_path, users=12, min_segment_size=50)
    [only] = segment(run, repository).profiles
    assert (only.user_count, only.traits, only.hours) == (0, (), ())
    release = read_release(repository / MODEL_NAME / str(publish(run, repository)))
    items = release.segment_items[only.segment_id]
    assert items.score == pytest.approx(release.popularity[items.item_index - 1])
    assert (only.top_items, only.particular_items) == ((), ())


def test_a_model_names_the_segments_and_is_told_of_no_user(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_NAMING_KEY", "sk-secret-key")
    names = json.dumps({str(number): f"Name {number}" for number in range(1, GROUPS)})
    with serving(chat(names)) as model:
        naming = {"url": model.url, "model": "m", "api_key_variable": "TEST_NAMING_KEY"}
        run = exported_run(tmp_path, naming=naming)
        found = segment(run, repository)
    assert [one.label for one in found.profiles][:3] == ["Name 1", "Name 2", "Name 3"]
    assert found.profiles[3].label.startswith("group ")
    assert "Segment 4 keeps its label: the model gave it no name." in found.notes
    sent = json.dumps(model.requests)
    assert len(model.requests) == 1
    assert not [user for user in assignments(run)["user_id"] if user in sent]
    assert len(assignments(run)) == USERS
    for path in (run.path / "run.json", *(run.path / "segment").glob("*.json")):
        assert "sk-secret-key" not in path.read_text()
