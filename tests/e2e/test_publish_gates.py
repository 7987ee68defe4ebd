"""The gates of publishing: what is refused and why, what can be forced, and what the audit keeps."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from server.core.release import Golden
from server.core.repository.audit import read_audit
from server.core.repository.layout import OUTPUT
from server.core.repository.traffic import change_traffic
from tests.e2e.test_publish import finished_run
from training.cli.main import app
from training.config import PublishSettings
from training.errors import PublishError
from training.publish.publish import Push, publish
from training.repository import release_numbers
from training.runs import Run


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def worse(tmp_path: Path) -> Run:
    """A run whose item embeddings belong to other items, so that nothing is predicted."""
    run = finished_run(tmp_path, parent=1, run_id="worse")
    path = run.path / "export" / "item_embeddings.npy"
    np.save(path, np.roll(np.load(path), 1, axis=0))
    return run


def rewrite_model(run: Run, change: str) -> None:
    path = run.path / "export" / "model.onnx"
    model = onnx.load(str(path))
    for node in model.graph.node:
        node.output[:] = [f"sound_{OUTPUT}" if name == OUTPUT else name for name in node.output]
    if change == "operator":
        model.opset_import.append(helper.make_opsetid("com.example", 1))
        model.graph.node.append(helper.make_node("Steal", [f"sound_{OUTPUT}"], [OUTPUT], domain="com.example"))
    elif change == "infinite":  # for histories of more than eight events, which no golden input has
        limit = numpy_helper.from_array(np.array(8.5, np.float32), "limit")
        model.graph.initializer.append(limit)
        model.graph.node.append(helper.make_node("Sub", ["limit", "event_count"], ["room"]))
        model.graph.node.append(helper.make_node("Sqrt", ["room"], ["root"]))
        model.graph.node.append(helper.make_node("Sub", ["root", "root"], ["nothing"]))
        model.graph.node.append(helper.make_node("Add", [f"sound_{OUTPUT}", "nothing"], [OUTPUT]))
    else:  # mixes the histories of a batch
        model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "batch_axis"))
        model.graph.node.append(helper.make_node("ReduceMean", [f"sound_{OUTPUT}", "batch_axis"], ["mean"], keepdims=1))
        model.graph.node.append(helper.make_node("Sub", [f"sound_{OUTPUT}", "mean"], ["apart"]))
        model.graph.node.append(helper.make_node("Add", ["apart", "mean"], ["again"]))
        model.graph.node.append(helper.make_node("Add", ["again", "mean"], [OUTPUT]))
        _renew_golden(run, model)
    onnx.save(model, str(path))


def _renew_golden(run: Run, model: onnx.ModelProto) -> None:
    import onnxruntime

    path = run.path / "segment" / "golden.json"
    golden = Golden.model_validate_json(path.read_bytes())
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    embeddings = session.run([OUTPUT], golden.inputs())[0]
    path.write_text(golden.model_copy(update={"user_embedding": embeddings.tolist()}).model_dump_json())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("operator", "operator Steal of com.example, which Triton does not have"),
        ("infinite", "numbers that are not finite"),
        ("mixing", "mixes the histories of a batch"),
    ],
)
def test_an_unsound_model_stays_out(tmp_path: Path, repository: Path, change: str, said: str) -> None:
    run = finished_run(tmp_path)
    rewrite_model(run, change)
    with pytest.raises(PublishError, match=said):
        publish(run, repository, Push(forced="I want it"))
    assert release_numbers(repository) == []
    assert read_audit(repository) == []


def test_too_large_a_file_stays_out(tmp_path: Path, repository: Path) -> None:
    with pytest.raises(PublishError, match="max_model_bytes allows 1,000;"):
        publish(finished_run(tmp_path), repository, Push(settings=PublishSettings(max_model_bytes=1000)))


def test_a_worse_release_stays_out_unless_it_is_forced_with_a_reason(tmp_path: Path, repository: Path) -> None:
    publish(finished_run(tmp_path), repository, Push(who="ada"))
    run = worse(tmp_path)
    lower = r"NDCG@10 of the encoder alone is .* for release 1 on the same 24 users.*--force"
    with pytest.raises(PublishError, match=lower):
        publish(run, repository, Push(who="ada"))
    assert release_numbers(repository) == [1]
    assert publish(run, repository, Push(who="ada", forced="a test of the items")) == 2
    first, second = read_audit(repository)
    assert (first.who, first.what, first.release, first.reason) == ("ada", "publish", 1, "")
    assert (second.release, second.reason) == (2, "a test of the items")
    assert second.details["source"] == "run worse"
    assert second.details["measured"]["ndcg@10"] < second.details["measured"]["active_ndcg@10"]
    [forced] = second.details["forced"]
    assert forced.startswith("NDCG@10 of the encoder alone is")


def test_the_loss_that_is_allowed_is_a_setting(tmp_path: Path, repository: Path) -> None:
    publish(finished_run(tmp_path), repository)
    assert publish(worse(tmp_path), repository, Push(settings=PublishSettings(max_loss=1.0))) == 2


def test_it_is_compared_with_the_release_that_answers(tmp_path: Path, repository: Path) -> None:
    publish(finished_run(tmp_path), repository)
    publish(worse(tmp_path), repository, Push(forced="yes"))
    same = finished_run(tmp_path, parent=2, run_id="same")
    change_traffic(repository, lambda before: before.with_stable(1), "traffic", "ada")
    publish(same, repository)
    first, second, _, last = read_audit(repository)
    assert last.details["measured"]["active_ndcg@10"] == last.details["measured"]["ndcg@10"]
    assert last.details["measured"]["active_ndcg@10"] > second.details["measured"]["ndcg@10"]
    assert first.details["measured"] == {}


def test_another_catalogue_and_other_segments_stay_out(tmp_path: Path, repository: Path) -> None:
    publish(finished_run(tmp_path), repository)
    strict = PublishSettings(max_moved_share=0.0)
    moved = finished_run(tmp_path, parent=1, run_id="moved")
    path = moved.path / "segment" / "centroids.npy"
    np.save(path, np.roll(np.load(path), 1, axis=0))
    with pytest.raises(PublishError, match="are in another segment than in release 1"):
        publish(moved, repository, Push(settings=strict))


def test_the_command_shows_the_gates_and_what_comes_next(tmp_path: Path, repository: Path) -> None:
    finished_run(tmp_path)
    words = ["publish", "--run", "run", "--runs", str(tmp_path / "runs"), "--repository", str(repository)]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    assert "golden embeddings" in told.output
    assert "answers all users as soon as servers have loaded" in told.output
    change_traffic(repository, lambda before: before.with_stable(1), "traffic", "ada")
    again = CliRunner().invoke(app, [*words, "--by", "bob"])
    assert again.exit_code == 0, again.output
    assert "Release 1 still answers. See what release 2 would change" in again.output
    assert "segrec-train traffic 1=99 2=1" in again.output
    assert read_audit(repository)[-1].who == "bob"
    refused = CliRunner().invoke(app, [*words, "--force", " "])
    assert refused.exit_code == 2
    assert "--force needs a reason" in refused.output


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, repository: Path) -> None:
    run = finished_run(tmp_path)
    model = onnx.load(str(run.path / "export" / "model.onnx"))
    model.doc_string = "large " * 100_000
    onnx.save(model, str(run.path / "export" / "model.onnx"))
    words = ["publish", "--run", "run", "--runs", str(tmp_path / "runs"), "--repository", str(repository)]
    done = subprocess.run(
        [sys.executable, "-c", "from training.cli.main import main; main()", *words],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Cannot write release 1" in done.stderr
    assert "Traceback" not in done.stderr
    assert release_numbers(repository) == []
    assert not list(repository.glob(".staging/*"))


def test_of_two_pushes_at_once_one_wins_and_the_other_is_told(tmp_path: Path, repository: Path) -> None:
    finished_run(tmp_path)
    finished_run(tmp_path, run_id="other")
    code = "from training.cli.main import main; main()"
    places = ["--runs", str(tmp_path / "runs"), "--repository", str(repository)]
    pushes = [
        subprocess.Popen(
            [sys.executable, "-c", code, "publish", "--run", name, *places],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("run", "other")
    ]
    ends = [(push.communicate()[1], push.returncode) for push in pushes]
    told = [error for error, code in ends if code]
    assert len(told) <= 1
    assert release_numbers(repository) == ([1] if told else [1, 2])
    assert all("Somebody else is publishing" in error or "matched to" in error for error in told)
    assert json.loads((repository / ".ledger.json").read_text())["next_release"] == release_numbers(repository)[-1] + 1
