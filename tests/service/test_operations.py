"""The server as those who run it see it: starting, health, metrics, TLS, releases, falling back, stopping."""

import datetime
import signal
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import polars as pl
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from segrec.errors import error_of_call, error_of_status
from segrec.v1 import event_service_pb2, model_service_pb2, segrec_service_pb2
from segrec.v1.common_pb2 import (
    DEGRADED_REASON_ENCODER_UNAVAILABLE,
    DEGRADED_REASON_STALE_EMBEDDING,
    DEGRADED_REASON_STORE_UNAVAILABLE,
)
from segrec.v1.segrec_service_pb2_grpc import SegrecServiceStub

from server.core.repository.layout import EVENTS_MARK, WITH_CLOCK
from server.rpc.messages.conversion import event_message
from tests.support.redis_server import RedisServer
from tests.support.releases import group_history, tiny_release
from tests.support.server import ServerProcess, StartServer, Stubs
from tests.support.stream_messages import segment_messages
from tests.support.waiting import wait_until

SEGMENT = segrec_service_pb2.SegmentRequest


def record(stubs: Stubs, user_id: str, group: int) -> None:
    events = [
        event_service_pb2.UserEvent(user_id=user_id, event=event_message(event))
        for event in group_history(group).events()
    ]
    stubs.events.RecordEvents(event_service_pb2.RecordEventsRequest(events=events))


def health(channel: grpc.Channel, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return int(stub.Check(health_pb2.HealthCheckRequest(service=service)).status)


def triton_processes(server: ServerProcess) -> list[psutil.Process]:
    family = psutil.Process(server.process.pid).children(recursive=True)
    return [process for process in family if process.name() == "tritonserver"]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; a zombie only waits for its parent."""
    _, running = psutil.wait_procs(processes, timeout=0)
    return [process for process in running if process.status() != psutil.STATUS_ZOMBIE]


def test_without_a_release_it_starts_and_serves_as_soon_as_one_is_published(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server()
    server.wait_until_said("waiting for a release")
    stubs = Stubs(server)
    names = ["", "segrec.v1.SegrecService", "segrec.v1.EventService"]
    assert [health(stubs.channel, name) for name in names] == [health_pb2.HealthCheckResponse.NOT_SERVING] * 3
    with pytest.raises(grpc.RpcError, match="no release is active") as caught:
        stubs.segrec.Segment(SEGMENT(user_id="u"))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    record(stubs, "early", 2)
    tiny_release(tmp_path / "repository", 1)
    server.wait_until_serving()
    assert [health(stubs.channel, name) for name in names] == [health_pb2.HealthCheckResponse.SERVING] * 3
    assert stubs.segrec.Segment(SEGMENT(user_id="early")).assignment.segment_id == 3
    stubs.close()


def test_a_pushed_release_takes_over_and_the_old_one_can_be_pinned(start_server: StartServer, tmp_path: Path) -> None:
    tiny_release(tmp_path / "repository", 1)
    server = start_server()
    server.wait_until_serving()
    stubs = Stubs(server)
    record(stubs, "u", 1)
    broken = tiny_release(tmp_path / "elsewhere", 3)
    (broken / "model.onnx").write_bytes(b"no model")
    broken.rename(tmp_path / "repository" / "user_encoder" / "3")
    tiny_release(tmp_path / "repository", 2)
    wait_until(lambda: stubs.segrec.Segment(SEGMENT(user_id="u")).info.release == 2)
    assert stubs.segrec.Segment(SEGMENT(user_id="u", release=1)).info.release == 1
    listed = stubs.models.ListReleases(model_service_pb2.ListReleasesRequest()).releases
    assert [release.release for release in listed] == [3, 2, 1]
    states = [model_service_pb2.ReleaseState.Name(release.state) for release in listed]
    assert states == ["RELEASE_STATE_FAILED", "RELEASE_STATE_ACTIVE", "RELEASE_STATE_STANDBY"]
    assert "model.onnx is not the file that was published" in listed[0].failure
    assert (listed[1].item_count, listed[1].segment_count, listed[1].parent_release) == (50, 4, 1)
    assert stubs.models.GetRelease(model_service_pb2.GetReleaseRequest(release=2)).release == listed[1]
    with pytest.raises(grpc.RpcError, match="there is no release 9"):
        stubs.models.GetRelease(model_service_pb2.GetReleaseRequest(release=9))
    stubs.close()


def test_without_triton_it_answers_from_the_cache_or_with_popular_items(
    start_server: StartServer, tmp_path: Path
) -> None:
    tiny_release(tmp_path / "repository", 1)
    server = start_server("--encode-timeout-seconds", "1.0")
    server.wait_until_serving()
    stubs = Stubs(server)
    for user_id in ("cached", "stale", "cold"):
        record(stubs, user_id, 1)
    for user_id in ("cached", "stale"):
        stubs.segrec.Segment(SEGMENT(user_id=user_id))
    record(stubs, "stale", 2)
    [triton] = triton_processes(server)
    triton.suspend()
    cached = stubs.segrec.Segment(SEGMENT(user_id="cached"), timeout=5)
    assert (cached.assignment.segment_id, cached.info.degraded) == (2, False)
    stale = stubs.segrec.Segment(SEGMENT(user_id="stale"), timeout=5)
    assert stale.assignment.segment_id == 2
    assert (stale.info.degraded, stale.info.degraded_reason) == (True, DEGRADED_REASON_STALE_EMBEDDING)
    cold = stubs.segrec.Recommend(segrec_service_pb2.RecommendRequest(user_id="cold"), timeout=5)
    assert cold.info.degraded_reason == DEGRADED_REASON_ENCODER_UNAVAILABLE
    assert {item.reason for item in cold.items} == {segrec_service_pb2.ITEM_REASON_POPULAR}
    assert cold.assignment.state == segrec_service_pb2.SEGMENT_STATE_UNAVAILABLE
    users = ["cached", "stale", "cold"]
    rows, last = stubs.segrec.StreamSegment(segment_messages(users), timeout=60)
    assert [row.result.info.degraded for row in rows.chunk.rows] == [False] * 3, "a stream waits for the restart"
    assert (last.summary.answered_count, last.summary.degraded_count) == (3, 0)
    wait_until(lambda: not stubs.segrec.Segment(SEGMENT(user_id="cold")).info.degraded, timeout=60)
    stubs.close()


def test_a_killed_triton_is_started_again_while_the_server_answers(start_server: StartServer, tmp_path: Path) -> None:
    tiny_release(tmp_path / "repository", 1)
    server = start_server()
    server.wait_until_serving()
    stubs = Stubs(server)
    record(stubs, "u", 3)
    [triton] = triton_processes(server)
    triton.kill()
    stubs.segrec.Segment(SEGMENT(user_id="u"), timeout=5)  # with or without Triton, an answer
    wait_until(lambda: stubs.segrec.Segment(SEGMENT(user_id="u")).assignment.segment_id == 4, timeout=60)
    assert [process.pid for process in triton_processes(server)] != [triton.pid]
    stubs.close()


def test_sigterm_answers_what_was_accepted_and_leaves_no_process(start_server: StartServer, tmp_path: Path) -> None:
    tiny_release(tmp_path / "repository", 1)
    server = start_server()
    server.wait_until_serving()
    stubs = Stubs(server)
    users = [f"drain-{n}" for n in range(200)]
    for user_id in users[:4]:
        record(stubs, user_id, 0)
    family = psutil.Process(server.process.pid).children(recursive=True)
    ended = threading.Event()

    def requests() -> Iterator[segrec_service_pb2.StreamSegmentRequest]:
        yield from segment_messages(users)
        ended.wait(60)

    answers = stubs.segrec.StreamSegment(requests())
    assert len(next(answers).chunk.rows) == 200
    server.process.send_signal(signal.SIGTERM)
    with pytest.raises(grpc.RpcError) as failure:
        next(answers)
    assert error_of_call(failure.value, server.address).reason == "SHUTTING_DOWN"
    ended.set()
    assert server.process.wait(timeout=60) == 0
    assert server.has_said("stopped")
    assert alive(family) == []
    stubs.close()


def test_a_killed_server_leaves_no_process_and_loses_no_acknowledged_event(
    start_server: StartServer, tmp_path: Path
) -> None:
    tiny_release(tmp_path / "repository", 1)
    server = start_server()
    server.wait_until_serving()
    stubs = Stubs(server)
    for n in range(20):
        record(stubs, f"kept-{n}", n % 4)
    family = psutil.Process(server.process.pid).children(recursive=True)
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not alive(family))
    stubs.close()
    again = start_server()
    again.wait_until_serving()
    stubs = Stubs(again)
    for n in range(20):
        history = stubs.events.ListEvents(event_service_pb2.ListEventsRequest(user_id=f"kept-{n}"))
        assert history.total_size == 10
        assert stubs.segrec.Segment(SEGMENT(user_id=f"kept-{n}")).assignment.segment_id == n % 4 + 1
    stubs.close()


def test_histories_are_filled_from_the_training_log_on_the_first_start(
    start_server: StartServer, tmp_path: Path
) -> None:
    tiny_release(tmp_path / "repository", 1)
    history = group_history(2)
    pl.DataFrame(
        {
            "user_id": ["from the log"] * len(history),
            "item_id": list(history.item_ids),
            "action": list(history.actions),
            "value": history.values,
            "timestamp": history.timestamps,
        }
    ).write_parquet(tmp_path / "events.parquet", metadata={EVENTS_MARK: WITH_CLOCK})
    for expected in ("histories of 1 users were loaded", None):
        server = start_server("--bootstrap-events", str(tmp_path / "events.parquet"))
        server.wait_until_serving()
        stubs = Stubs(server)
        assert stubs.segrec.Segment(SEGMENT(user_id="from the log")).assignment.segment_id == 3
        assert server.has_said("histories of") is bool(expected)
        stubs.close()
        assert server.terminate() == 0


def test_histories_may_live_in_redis_and_a_lost_one_is_said(start_server: StartServer, tmp_path: Path) -> None:
    tiny_release(tmp_path / "repository", 1)
    redis = RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    redis.start()
    try:
        server = start_server("--store", redis.url)
        server.wait_until_serving()
        stubs = Stubs(server)
        record(stubs, "u", 2)
        assert stubs.segrec.Segment(SEGMENT(user_id="u")).assignment.segment_id == 3
    finally:
        redis.kill()
    without = stubs.segrec.Recommend(segrec_service_pb2.RecommendRequest(user_id="u"), timeout=30)
    assert without.info.degraded_reason == DEGRADED_REASON_STORE_UNAVAILABLE
    assert {item.reason for item in without.items} == {segrec_service_pb2.ITEM_REASON_POPULAR}
    with pytest.raises(grpc.RpcError) as caught:
        stubs.events.ListEvents(event_service_pb2.ListEventsRequest(user_id="u"), timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    refused = stubs.events.RecordEvents(
        event_service_pb2.RecordEventsRequest(
            events=[event_service_pb2.UserEvent(user_id="u", event=event_message(group_history(1, 1).events()[0]))]
        ),
        timeout=30,
    ).refused
    assert [(entry.index, error_of_status(entry.status).reason) for entry in refused] == [(0, "STORE_UNAVAILABLE")]
    stubs.close()


def test_metrics_count_calls_by_method_and_code_and_name_no_user(running_server: ServerProcess, stubs: Stubs) -> None:
    record(stubs, "measured-user", 0)
    stubs.segrec.Segment(SEGMENT(user_id="measured-user"))
    with pytest.raises(grpc.RpcError):
        stubs.segrec.Segment(SEGMENT(user_id=""))
    list(stubs.segrec.StreamSegment(segment_messages(["measured-user", ""])))
    with urllib.request.urlopen(f"http://{running_server.metrics_address}/metrics", timeout=10) as response:
        text = response.read().decode()
    for line in (
        'segrec_calls_total{code="OK",method="Segment"}',
        'segrec_calls_total{code="INVALID_ARGUMENT",method="Segment"}',
        'segrec_calls_total{code="OK",method="StreamSegment"}',
        'segrec_stream_rows_total{method="StreamSegment",outcome="failed"}',
        'segrec_segment_states_total{state="ASSIGNED"}',
        "segrec_active_release 3.0",
        "segrec_encoder_healthy 1.0",
    ):
        assert line in text
    assert "measured-user" not in text
    assert not running_server.has_said("measured-user")


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--triton-environment", "/nowhere"), 1, "segrec-triton install"),
        (("--bootstrap-events", "/nowhere.parquet"), 1, "does not exist"),
        (("--store", "http://:hunter2@host"), 1, "a store of the kind 'http' is not known"),
        (("--keep-releases", "0"), 2, "keep"),
        (("--no-such-flag", "1"), 2, "no-such-flag"),
        (("--tls-key", "/nowhere"), 2, "go together"),
        (("--config", "/nowhere.toml"), 2, "does not exist"),
    ],
)
def test_what_is_wrong_at_the_start_is_said_in_one_sentence(
    start_server: StartServer, flags: tuple[str, ...], code: int, message: str
) -> None:
    server = start_server(*flags)
    assert server.process.wait(timeout=60) == code
    wait_until(lambda: server.has_said("error"))
    assert message in server.output
    assert "Traceback" not in server.output
    assert "hunter2" not in server.output


def test_a_port_in_use_is_said_in_one_sentence(start_server: StartServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for flag in ("--address", "--model-address", "--metrics-address"):
            server = start_server(flag, address)
            assert server.process.wait(timeout=60) == 1
            wait_until(lambda server=server: server.has_said("error: cannot"))  # type: ignore[misc]
            assert address in server.output
            assert "Traceback" not in server.output


def test_a_configuration_file_is_read_and_flags_go_before_it(start_server: StartServer, tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text("keep_releases = 0\nencode_timeout_seconds = 1.5\n")
    wrong = start_server("--config", "serve.toml")
    assert wrong.process.wait(timeout=60) == 2
    right = start_server("--config", "serve.toml", "--keep-releases", "1")
    right.wait_until_said("waiting for a release")
    (tmp_path / "serve.toml").write_text("surprise = 1\n")
    unknown = start_server("--config", "serve.toml")
    assert unknown.process.wait(timeout=60) == 2
    wait_until(lambda: unknown.has_said("surprise"))


def certificate(directory: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "cert.pem").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "key.pem").write_bytes(key.private_bytes(*form))
    return directory / "cert.pem", directory / "key.pem"


def test_mutual_tls_lets_in_only_who_has_a_certificate(start_server: StartServer, tmp_path: Path) -> None:
    tiny_release(tmp_path / "repository", 1)
    cert, key = certificate(tmp_path)
    server = start_server("--tls-certificate", str(cert), "--tls-key", str(key), "--tls-client-ca", str(cert))
    server.wait_until_serving()
    target = server.address.replace("127.0.0.1", "localhost")
    known = grpc.ssl_channel_credentials(cert.read_bytes(), key.read_bytes(), cert.read_bytes())
    with grpc.secure_channel(target, known) as channel:
        assert SegrecServiceStub(channel).Segment(SEGMENT(user_id="u"), timeout=10).info.release == 1
    for credentials in (grpc.ssl_channel_credentials(cert.read_bytes()), None):
        secure = grpc.secure_channel(target, credentials) if credentials else grpc.insecure_channel(target)
        with secure as channel, pytest.raises(grpc.RpcError) as caught:
            SegrecServiceStub(channel).Segment(SEGMENT(user_id="u"), timeout=5)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def test_histories_shorter_than_the_encoder_reads_are_warned_of(start_server: StartServer, tmp_path: Path) -> None:
    tiny_release(tmp_path / "repository", 1)
    server = start_server("--history-limit", "8")
    server.wait_until_said("release 1 reads 32 events per user, but the store keeps only the newest 8")


def test_two_servers_may_share_one_triton(
    start_server: StartServer, tmp_path: Path, running_server: ServerProcess
) -> None:
    """A server that uses a Triton which runs already starts none, and answers the same."""
    repository = running_server.repository
    other = start_server("--repository", str(repository), triton=running_server.triton_address)
    other.wait_until_serving()
    stubs = Stubs(other)
    record(stubs, "u", 1)
    assert stubs.segrec.Segment(SEGMENT(user_id="u")).assignment.segment_id == 2
    assert triton_processes(other) == []
    stubs.close()
    assert other.terminate() == 0
