"""`--k auto` and `segrec-train sweep` on planted logs, with an encoder that knows nothing but which items there are."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner, Result

from tests.e2e.test_training_cli import place_in
from tests.support.logs import write_planted
from tests.support.releases import write_mean_encoder
from training.cli.main import app
from training.config import Config
from training.data.prepare import prepare
from training.runs import Run
from training.segments.measures import MIN_HALVES_AGREEMENT
from training.segments.result import Segmentation
from training.segments.segment import segment
from training.segments.sweep import K_SWEEP, read_sweep, sweep_run

DIM = 64


def exported_run(
    directory: Path, groups: int, users: int = 240, noise: float = 0.2, events: int = 20, **settings: object
) -> Run:
    """A run of a planted log up to `export`. A user's vector is the mean of its items', which are drawn at random."""
    shape = {"users": users, "items": 10 * groups, "segments": groups, "events_per_user": events}
    paths = write_planted(directory, noise=noise, **shape)
    run = Run.create(directory / "runs", run_id="run")
    prepare(run, paths[0], paths[1], None, Config.model_validate({"segment": {"min_segment_size": 20} | settings}))
    with run.stage("train"):
        pass
    with run.stage("export") as export:
        shutil.copyfile(run.path / "prepare" / "preprocessing.json", export.directory / "preprocessing.json")
        rng = np.random.default_rng(0)
        item_count = pl.read_parquet(run.path / "prepare" / "items.parquet").height
        vectors = rng.normal(size=(item_count, DIM)).astype(np.float32)
        write_mean_encoder(export.directory / "model.onnx", vectors, rng)
        np.save(export.directory / "item_embeddings.npy", vectors)
    return run


def called(run: Run, command: str, *more: object) -> Result:
    words = (command, "--runs", run.path.parent, "--run", run.path.name, *more)
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("noise", [0.1, 0.4])
@pytest.mark.parametrize("groups", [3, 4, 5, 8])
def test_as_many_segments_as_were_planted_are_chosen(tmp_path: Path, groups: int, noise: float) -> None:
    found = sweep_run(exported_run(tmp_path, groups, noise=noise))
    assert found.chosen == groups, found.reason
    chosen = next(row for row in found.rows if row.k == groups)
    assert chosen.stability > 0.9
    assert chosen.lift - chosen.lift_error > 1.5
    assert chosen.halves > 0.5
    inertia = [row.inertia for row in found.rows]
    assert inertia == sorted(inertia, reverse=True)


def test_segment_with_auto_sweeps_and_says_why(tmp_path: Path) -> None:
    run = exported_run(tmp_path, 4)
    result = called(run, "segment", "--repository", tmp_path / "repository", "--k", "auto")
    assert result.exit_code == 0, result.output
    swept = read_sweep(run)
    assert swept
    assert swept.chosen == 4
    for told in ("How many segments", "4 ←", "4 segments, since their popular items"):
        assert told in result.output
    found = Segmentation.read(run.require("segment"))
    assert len(found.profiles) == 4
    assert swept.reason in found.notes
    assert run.figures("segment")["stability"] > 0.9


def test_a_sweep_alone_is_kept_until_the_encoder_changes(tmp_path: Path) -> None:
    run = exported_run(tmp_path, 4)
    result = called(run, "sweep", "--k-range", 3, 5)
    assert result.exit_code == 0, result.output
    assert "4 segments, since" in result.output
    swept = read_sweep(run)
    assert swept
    assert [row.k for row in swept.rows] == [3, 4, 5]
    segment(run, tmp_path / "repository", 3)
    assert read_sweep(run) == swept
    with run.stage("export"):
        pass
    assert read_sweep(run) is None


def test_without_auto_nothing_is_swept_but_doubt_is_told(tmp_path: Path) -> None:
    """Six events, of which five go anywhere: their halves say nothing of a segment."""
    run = exported_run(tmp_path, 4, noise=0.8, events=6)
    found = segment(run, tmp_path / "repository", 8)
    assert not (run.path / "segment" / K_SWEEP).exists()
    assert run.figures("segment")["halves_agree"] < MIN_HALVES_AGREEMENT
    assert any("Histories are too short" in note for note in found.notes)


def test_a_wrong_k_is_refused_in_a_sentence(tmp_path: Path) -> None:
    run = exported_run(tmp_path, 2, users=40)
    for words in (("segment", "--k", "many"), ("segment", "--k", "1"), ("sweep", "--k-range", "5", "2")):
        result = called(run, *words)
        assert result.exit_code == 2
        assert "from 2 on" in result.stderr
        assert "Traceback" not in result.output


@pytest.mark.nightly
def test_run_with_auto_goes_from_log_to_release(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    result = place.run("--run", "mine", "--k", "auto")
    assert result.exit_code == 0, result.output
    run = Run.open(place.runs, "mine")
    assert run.config().segment.k == "auto"
    swept = read_sweep(run)
    assert swept
    assert len(Segmentation.read(run.require("segment")).profiles) == swept.chosen
    assert "How many segments" in result.output
    assert "popularity, 6 segments" in result.output
    assert "complete already" in place.run("--run", "mine", "--k", "auto").output
