"""The client against a real gRPC server: errors, retries, streams across lost connections, counts."""

import threading
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import grpc
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from segrec import AsyncModelClient, AsyncSegrecClient, Event, ModelClient, SegrecClient, Tls, UserEvent
from segrec.errors import DataLoss, InvalidArgument, NotFound, Overloaded, StreamStalled, Unavailable

from tests.support.fake_segrec import WAIT_SECONDS, FakeSegrec, StreamLost

USERS = [f"user-{n}" for n in range(1000)]


@pytest.fixture
def fake() -> Iterator[FakeSegrec]:
    with FakeSegrec() as server:
        yield server


@pytest.fixture
def client(fake: FakeSegrec) -> Iterator[SegrecClient]:
    with SegrecClient(fake.address, timeout_seconds=10) as connected:
        yield connected


def test_segment_and_recommend_return_the_messages(client: SegrecClient) -> None:
    assert client.segment("ab").assignment.segment_id == 3
    assert client.segment(events=[Event(item_id="i1", action="view")]).assignment.segment_id == 1
    response = client.recommend("ab", top_k=3, strategy="popular", exclude_item_ids=["i1"], release=4)
    assert [item.item_id for item in response.items] == ["i2", "i3", "i4"]
    assert response.info.release == 4


def test_errors_carry_the_servers_code_reason_and_field(client: SegrecClient) -> None:
    with pytest.raises(InvalidArgument, match="The user id is bad") as caught:
        client.segment("bad one")
    assert (caught.value.code, caught.value.field) == (grpc.StatusCode.INVALID_ARGUMENT, "user_id")
    with pytest.raises(NotFound, match="Release 9") as missing:
        client.recommend("ab", release=9)
    assert (missing.value.reason, missing.value.field) == ("RELEASE_NOT_LOADED", "release")


@pytest.mark.parametrize("arguments", [{}, {"user_id": "a", "events": []}, {"user_id": "\udce9"}])
def test_arguments_that_cannot_be_sent_are_named(client: SegrecClient, arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        client.segment(**arguments)  # type: ignore[arg-type]


def test_an_unknown_strategy_lists_the_known_ones(client: SegrecClient) -> None:
    with pytest.raises(InvalidArgument, match="hybrid, personal, segment or popular"):
        client.recommend("ab", strategy="best")


def test_unary_calls_are_repeated_while_the_server_is_unavailable(fake: FakeSegrec, client: SegrecClient) -> None:
    fake.script.unary_failures = 2
    assert client.segment("ab").assignment.segment_id == 3
    assert fake.script.unary_calls == 3


def test_a_refused_call_is_repeated_after_the_servers_delay(fake: FakeSegrec, client: SegrecClient) -> None:
    fake.script.unary_refusals = 2
    start = time.monotonic()
    assert client.segment("ab").assignment.segment_id == 3
    assert time.monotonic() - start >= 0.2
    assert fake.script.unary_calls == 3


def test_a_refused_call_is_not_repeated_beyond_its_deadline(fake: FakeSegrec) -> None:
    fake.script.unary_refusals = 100
    with SegrecClient(fake.address, timeout_seconds=0.5) as client:
        with pytest.raises(Overloaded) as failure:
            client.segment("ab")
        assert failure.value.retry_seconds == pytest.approx(0.1)
    assert 3 <= fake.script.unary_calls <= 5


async def test_asyncio_clients_repeat_refused_calls_too(fake: FakeSegrec) -> None:
    fake.script.unary_refusals = 2
    async with AsyncSegrecClient(fake.address) as client:
        assert (await client.segment("ab")).assignment.segment_id == 3
    assert fake.script.unary_calls == 3


def test_a_server_that_is_not_there_is_named(fake: FakeSegrec, client: SegrecClient) -> None:
    fake.stop()
    with pytest.raises(Unavailable, match=f"No server answers at {fake.address}"):
        client.segment("ab")
    with pytest.raises(Unavailable, match="segrec-serve"):
        list(client.stream_segment(["ab"]))


def test_a_stream_yields_each_id_once_in_order_and_adds_up(client: SegrecClient) -> None:
    users = [*USERS, "bad", "", "cold", "slow", "\udce9"]
    stream = client.stream_segment(iter(users), chunk_size=64)
    rows = list(stream)
    assert [row.user_id for row in rows] == [*users[:-1], "\\udce9"]
    assert [row.WhichOneof("outcome") for row in rows[-5:]] == ["status", "status", "result", "result", "status"]
    assert rows[-1].status.message == "The user id is not valid UTF-8"
    assert stream.summary is not None
    assert stream.summary.received_count == len(users) + 1  # the degraded row was asked twice
    assert stream.summary.failed_count == stream.counts.failed_count == 3
    counts = stream.counts
    assert (counts.received_count, counts.answered_count, counts.failed_count) == (1005, 1002, 3)
    assert counts.degraded_count == 1


def test_a_stream_recommends(client: SegrecClient) -> None:
    rows = list(client.stream_recommend(USERS[:10], chunk_size=3, top_k=2))
    assert [len(row.result.items) for row in rows] == [2] * 10


def test_a_stream_of_nothing_ends_well(client: SegrecClient) -> None:
    stream = client.stream_segment([])
    assert list(stream) == []
    assert stream.summary is not None


def test_a_release_that_is_not_there_ends_a_stream_at_once(client: SegrecClient) -> None:
    with pytest.raises(NotFound, match="Release 9"):
        list(client.stream_segment(USERS, release=9))


@pytest.mark.parametrize("lost_at", [1, 3, 7])
def test_a_stream_goes_on_after_a_lost_connection(fake: FakeSegrec, client: SegrecClient, lost_at: int) -> None:
    losses = iter([True])

    def lose_once(number: int) -> None:
        if number == lost_at and next(losses, False):
            raise StreamLost

    fake.script.before_answer = lose_once
    stream = client.stream_segment(USERS, chunk_size=100)
    assert [row.user_id for row in stream] == USERS
    assert stream.counts.answered_count == len(USERS)


def test_a_stream_goes_on_after_the_server_restarts(fake: FakeSegrec, client: SegrecClient) -> None:
    stream = client.stream_segment(USERS, chunk_size=10, max_in_flight=4)
    seen = []
    for number, row in enumerate(stream):
        seen.append(row.user_id)
        if number in (55, 555):
            fake.restart()
    assert seen == USERS
    assert stream.summary is not None


def test_memory_does_not_grow_with_the_stream(client: SegrecClient) -> None:
    process = psutil.Process()
    at_first, count = 0, 0
    for rows in client.stream_segment((f"user-{n}" for n in range(200_000)), chunk_size=1000).chunks():
        count += len(rows)
        if count == 50_000:
            at_first = process.memory_info().rss
    assert count == 200_000
    assert process.memory_info().rss - at_first < 16 * 1024 * 1024


def test_a_connection_can_be_encrypted_both_ways(tmp_path: Path) -> None:
    certificate, key = self_signed("127.0.0.1")
    (tmp_path / "certificate.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(key)
    credentials = grpc.ssl_server_credentials([(key, certificate)], certificate, require_client_auth=True)
    files = [str(tmp_path / name) for name in ("certificate.pem", "certificate.pem", "key.pem")]
    with FakeSegrec(credentials=credentials) as fake:
        with SegrecClient(fake.address, tls=Tls(*files), timeout_seconds=10) as client:
            assert client.segment("ab").assignment.segment_id == 3
        with SegrecClient(fake.address) as plain, pytest.raises(Unavailable):
            plain.segment("ab")


def self_signed(ip: str) -> tuple[bytes, bytes]:
    """A certificate for the address that signs itself, and its key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "segrec test")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(ip))]), critical=False)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    form, no_password = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return certificate, key.private_bytes(serialization.Encoding.PEM, form, no_password)


def test_half_a_client_certificate_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="give both or neither"):
        SegrecClient(tls=Tls(client_key="key.pem"))


def test_a_stream_takes_ids_only_as_far_ahead_as_allowed(client: SegrecClient) -> None:
    taken = 0

    def users() -> Iterator[str]:
        nonlocal taken
        for user_id in USERS:
            taken += 1
            yield user_id

    with client.stream_segment(users(), chunk_size=10, max_in_flight=2) as stream:
        next(iter(stream.chunks()))
        assert taken <= 30


def test_a_stalled_stream_fails_clearly(fake: FakeSegrec, client: SegrecClient) -> None:
    release = stall_at(fake, 3)
    stream = client.stream_segment(USERS, chunk_size=100, stall_seconds=0.3)
    chunks = stream.chunks()
    assert [row.user_id for _ in range(2) for row in next(chunks)] == USERS[:200]
    with pytest.raises(StreamStalled, match=r"sent no answer for 0\.3 s"):
        next(chunks)
    release.set()


def stall_at(fake: FakeSegrec, chunk_number: int) -> threading.Event:
    """Holds back the answer of a chunk and all after it until the event is set."""
    release = threading.Event()

    def hold(number: int) -> None:
        if number >= chunk_number:
            release.wait(WAIT_SECONDS)

    fake.script.before_answer = hold
    return release


def test_counts_that_differ_from_the_servers_are_an_error(fake: FakeSegrec, client: SegrecClient) -> None:
    fake.script.summary_error = 1
    with pytest.raises(DataLoss, match="1001 users"):
        list(client.stream_segment(USERS))


def test_a_missing_row_is_an_error(fake: FakeSegrec, client: SegrecClient) -> None:
    fake.script.skip_row = True
    with pytest.raises(DataLoss, match="not those of the requested users"):
        list(client.stream_segment(USERS))


def test_recording_again_stores_nothing_twice(fake: FakeSegrec, client: SegrecClient) -> None:
    events = [UserEvent(user_id=f"u{n}", event=Event(item_id="i", action="view")) for n in range(2000)]
    events.append(UserEvent(user_id="bad", event=Event(item_id="i", action="view")))
    first, second = client.record(events), client.record(events)
    assert (first.stored_count, first.duplicate_count, [r.index for r in first.refused]) == (2000, 0, [2000])
    assert (second.stored_count, second.duplicate_count) == (0, 2000)
    assert client.history("u7").total_size == 1
    assert client.erase("u7").erased_event_count == 1


def test_segments_and_releases(fake: FakeSegrec, client: SegrecClient) -> None:
    assert [segment.segment_id for segment in client.list_segments().segments] == [1, 2]
    assert client.get_segment(2).segment.user_count == 2000
    with ModelClient(fake.address) as models:
        assert [release.release for release in models.list_releases()] == [2, 1]
        with pytest.raises(NotFound):
            models.get_release(7)


async def test_the_async_client_does_the_same(fake: FakeSegrec) -> None:
    async with AsyncSegrecClient(fake.address, timeout_seconds=10) as client, AsyncModelClient(fake.address) as models:
        assert (await client.segment("ab")).assignment.segment_id == 3
        assert len((await client.recommend("ab", top_k=3)).items) == 3
        with pytest.raises(NotFound, match="no segment 7"):
            await client.get_segment(7)
        event = UserEvent(user_id="u", event=Event(item_id="i", action="view"))
        assert (await client.record([event])).stored_count == 1
        assert (await client.history("u")).total_size == 1
        assert (await client.erase("u")).erased_event_count == 1
        assert len((await client.list_segments()).segments) == 2
        assert len(await models.list_releases()) == 2
        assert (await models.get_release(1)).release == 1


async def test_an_async_stream_goes_on_after_a_lost_connection(fake: FakeSegrec) -> None:
    losses = iter([True])

    def lose_once(number: int) -> None:
        if number == 4 and next(losses, False):
            raise StreamLost

    fake.script.before_answer = lose_once
    async with AsyncSegrecClient(fake.address) as client:
        stream = client.stream_segment(USERS, chunk_size=50)
        assert [row.user_id async for row in stream] == USERS
        assert stream.summary is not None
        rows = [row async for row in client.stream_recommend(USERS[:5], top_k=1)]
        assert len(rows) == 5


async def test_a_stalled_async_stream_fails_clearly(fake: FakeSegrec) -> None:
    release = stall_at(fake, 2)
    async with AsyncSegrecClient(fake.address) as client:
        with pytest.raises(StreamStalled):
            [row async for row in client.stream_segment(USERS, chunk_size=100, stall_seconds=0.3)]
        release.set()


async def test_leaving_an_async_stream_early_ends_its_call(fake: FakeSegrec) -> None:
    async with AsyncSegrecClient(fake.address) as client, client.stream_segment(USERS, chunk_size=10) as stream:
        assert len(await anext(stream.chunks())) == 10


async def test_an_async_stream_takes_async_iterables(fake: FakeSegrec) -> None:
    async def users() -> AsyncIterator[str]:
        for user_id in USERS:
            yield user_id

    async with AsyncSegrecClient(fake.address) as client:
        assert [row.user_id async for row in client.stream_segment(users())] == USERS
