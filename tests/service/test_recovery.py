"""Whatever is wrong with a pushed release, the old one answers, the fault is named once, and mending it is enough.

Callers ask without pause while each fault is made, seen and mended, against the real server with the real Triton.
"""

import re
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper
from segrec.v1 import model_service_pb2
from segrec.v1.model_service_pb2 import RELEASE_STATE_ACTIVE, RELEASE_STATE_FAILED, ListReleasesRequest

from server.core.release import Manifest
from server.core.repository.layout import MODEL_NAME, OUTPUT
from server.core.repository.read import record_of
from tests.e2e.test_kill_under_load import NO_CACHE, USERS, children, serving
from tests.support.load import Load
from tests.support.releases import tiny_release
from tests.support.server import ServerProcess, StartServer, Stubs
from tests.support.waiting import wait_until

ROUNDS_SEEN = 300
"""Answers to wait for while a fault stands: the repository is looked at many times meanwhile."""


def release_of(server: ServerProcess, number: int) -> model_service_pb2.Release | None:
    stubs = Stubs(server)
    try:
        listed = stubs.models.ListReleases(ListReleasesRequest()).releases
    finally:
        stubs.close()
    return next((release for release in listed if release.release == number), None)


def state_of(server: ServerProcess, number: int) -> int:
    release = release_of(server, number)
    return release.state if release else 0


def metric(server: ServerProcess, name: str) -> float:
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    [line] = [line for line in lines if line.startswith(f"{name} ")]
    return float(line.split()[1])


def rewrite_manifest(directory: Path) -> None:
    """Have the manifest tell of the files as they are now, so that only what is in them is wrong."""
    manifest = Manifest.model_validate_json((directory / "manifest.json").read_bytes())
    files = {name: record_of(directory / name) for name in manifest.files}
    (directory / "manifest.json").write_text(manifest.model_copy(update={"files": files}).model_dump_json())


def half_copied(directory: Path) -> None:
    (directory / "manifest.json").unlink()
    (directory / "item_embeddings.npy").unlink()


def wrong_hash(directory: Path) -> None:
    content = bytearray((directory / "centroids.npy").read_bytes())
    content[-1] ^= 1
    (directory / "centroids.npy").write_bytes(content)


def missing_centroids(directory: Path) -> None:
    (directory / "centroids.npy").unlink()


def wrong_shape(directory: Path) -> None:
    other = tiny_release(directory.parents[1] / "other", 2, dim=8)
    shutil.copy(other / "model.onnx", directory / "model.onnx")
    rewrite_manifest(directory)


def nan_outputs(directory: Path) -> None:
    model = onnx.load(str(directory / "model.onnx"))
    for node in model.graph.node:
        node.output[:] = [f"sound_{OUTPUT}" if name == OUTPUT else name for name in node.output]
    model.graph.initializer.append(numpy_helper.from_array(np.array(np.nan, np.float32), "nan"))
    model.graph.node.append(helper.make_node("Mul", [f"sound_{OUTPUT}", "nan"], [OUTPUT]))
    onnx.save(model, str(directory / "model.onnx"))
    rewrite_manifest(directory)


def no_model(directory: Path) -> None:
    (directory / "model.onnx").write_bytes(b"no model at all")
    rewrite_manifest(directory)


def external_data(directory: Path) -> None:
    """A model whose weights lie in a file that was not copied."""
    model = onnx.load(str(directory / "model.onnx"))
    [table] = [one for one in model.graph.initializer if one.name == "item_table"]
    table.ClearField("raw_data")
    table.data_location = TensorProto.EXTERNAL
    table.external_data.add(key="location", value="weights.bin")
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    rewrite_manifest(directory)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (half_copied, "no manifest.json: the copy is not complete"),
        (wrong_hash, "centroids.npy is not the file that was published"),
        (missing_centroids, "lacks centroids.npy: copy it again"),
        (wrong_shape, "golden inputs differ"),
        (nan_outputs, "not finite"),
        (no_model, "cannot be loaded"),
        (external_data, "cannot be loaded"),
    ],
)
def test_a_faulty_release_is_named_and_mended_while_the_old_one_answers(
    start_server: StartServer, tmp_path: Path, fault: Callable[[Path], None], said: str
) -> None:
    server = serving(start_server, tmp_path, *NO_CACHE)
    model = server.repository / MODEL_NAME
    sound = tiny_release(tmp_path / "sound", 2)
    faulty = Path(shutil.copytree(sound, tmp_path / "faulty" / MODEL_NAME / "2"))
    fault(faulty)
    with Load(server.address, USERS) as load:
        load.wait_for_answers(100)
        faulty.rename(model / "2")
        wait_until(lambda: state_of(server, 2) == RELEASE_STATE_FAILED)
        load.wait_for_answers(ROUNDS_SEEN)
        found = release_of(server, 2)
        assert found is not None
        assert said in found.failure
        assert state_of(server, 1) == RELEASE_STATE_ACTIVE
        assert metric(server, "segrec_failed_releases") == 1
        assert metric(server, "segrec_active_release") == 1
        assert sum("release 2" in line and "ERROR" in line for line in server.lines) == 1
        for path in sound.iterdir():
            shutil.copy(path, model / "2" / f".{path.name}")
            (model / "2" / f".{path.name}").rename(model / "2" / path.name)
        wait_until(lambda: state_of(server, 2) == RELEASE_STATE_ACTIVE, timeout=60)
        load.wait_for_answers(100)
        assert metric(server, "segrec_failed_releases") == 0
    assert set(load.seen.counts()) == {"OK"}
    assert not server.has_said("Triton ended")


@pytest.mark.parametrize("name", ["2.tmp", "02", "1" * 20])
def test_a_directory_with_a_strange_name_is_named_and_harms_nothing(
    start_server: StartServer, tmp_path: Path, name: str
) -> None:
    """Triton itself reads `2.tmp` as version 2, and ends on a name of 20 digits."""
    server = serving(start_server, tmp_path, *NO_CACHE)
    model = server.repository / MODEL_NAME
    strange = tiny_release(tmp_path / "strange", 5)
    sound = tiny_release(tmp_path / "sound", 2)
    with Load(server.address, USERS) as load:
        load.wait_for_answers(100)
        strange.rename(model / name)
        wait_until(lambda: server.has_said(name))
        sound.rename(model / "2")
        load.wait_for_answers(ROUNDS_SEEN)
        assert state_of(server, 5) == 0
        (model / name).rename(tmp_path / "away")
        wait_until(lambda: state_of(server, 2) == RELEASE_STATE_ACTIVE, timeout=60)
        load.wait_for_answers(100)
    assert set(load.seen.counts()) == {"OK"}
    assert sum(name in line and "ignored" in line for line in server.lines) == 1
    assert not server.has_said("Triton ended")


@pytest.mark.parametrize("victim", ["tritonserver", "triton_python_b"])
def test_triton_killed_in_the_middle_of_a_swap_is_loaded_with_both(
    start_server: StartServer, tmp_path: Path, victim: str
) -> None:
    """The restarted Triton has an empty memory; calls meanwhile are answered, degraded at worst."""
    server = serving(start_server, tmp_path, *NO_CACHE)
    sound = tiny_release(tmp_path / "sound", 2)
    with Load(server.address, USERS) as load:
        load.wait_for_answers(100)
        sound.rename(server.repository / MODEL_NAME / "2")
        wait_until(lambda: state_of(server, 2) != 0)
        family = psutil.Process(server.process.pid).children(recursive=True)
        next(process for process in family if process.name().startswith(victim)).kill()
        wait_until(lambda: state_of(server, 2) == RELEASE_STATE_ACTIVE, timeout=60)
        load.wait_for_answers(500, timeout=60)
    assert set(load.seen.counts()) <= {"OK", "DEGRADED"}
    assert load.seen.outcomes[-1][1] == "OK"


def test_an_active_release_that_a_restarted_triton_cannot_load_is_replaced_until_it_is_mended(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = serving(start_server, tmp_path, *NO_CACHE)
    tiny_release(server.repository, 2)
    wait_until(lambda: state_of(server, 2) == RELEASE_STATE_ACTIVE)
    model = server.repository / MODEL_NAME / "2" / "model.onnx"
    sound = model.read_bytes()
    with Load(server.address, USERS) as load:
        load.wait_for_answers(100)
        model.write_bytes(b"damaged")
        children(server, "tritonserver")[0].kill()
        wait_until(lambda: state_of(server, 1) == RELEASE_STATE_ACTIVE, timeout=30)
        load.wait_for_answers(300)
        failed = release_of(server, 2)
        assert failed is not None
        assert failed.state == RELEASE_STATE_FAILED
        # Triton's reason, or that of the next try, which reads the files again.
        assert re.search("release 2 cannot be loaded|model.onnx is not the file that was published", failed.failure)
        model.write_bytes(sound)
        wait_until(lambda: state_of(server, 2) == RELEASE_STATE_ACTIVE, timeout=60)
        load.wait_for_answers(100)
    assert set(load.seen.counts()) <= {"OK", "DEGRADED"}


def test_a_server_killed_in_the_middle_of_a_swap_answers_from_the_new_release_when_it_is_back(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = serving(start_server, tmp_path, *NO_CACHE)
    tiny_release(tmp_path / "sound", 2).rename(server.repository / MODEL_NAME / "2")
    wait_until(lambda: state_of(server, 2) != 0)
    server.process.kill()
    server.process.wait()
    again = start_server(*NO_CACHE)
    again.wait_until_serving()
    wait_until(lambda: state_of(again, 2) == RELEASE_STATE_ACTIVE)
    with Load(again.address, USERS) as load:
        load.wait_for_answers(100)
    assert set(load.seen.counts()) == {"OK"}
