"""The Prometheus metrics of a server. No label holds a user id or another value that a caller can choose."""

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from segrec.v1.segrec_service_pb2 import SegmentState

from server.monitoring.plain_metrics import Count, PlainCounter, PlainHistogram
from server.monitoring.release_metrics import ReleaseCollector
from server.monitoring.release_stats import ReleaseStats

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """All metrics of one server, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.release_stats = ReleaseStats()
        self.registry.register(ReleaseCollector(self.release_stats))
        self.calls = PlainCounter(
            "segrec_calls", "RPCs ended, by method and status code.", ["method", "code"], registry=self.registry
        )
        self.call_seconds = PlainHistogram(
            "segrec_call_seconds",
            "Time from the start of a handler to its end; a stream counts once, as a whole.",
            "method",
            _SECONDS,
            registry=self.registry,
        )
        self.certificate_ends = Gauge(
            "segrec_certificate_end_timestamp_seconds",
            "When the server's certificate expires, in seconds since 1970; 0 without TLS.",
            registry=self.registry,
        )
        self.caller_calls = PlainCounter(
            "segrec_caller_calls",
            "Calls and messages of streams, by the caller's name in the access file and by outcome: ADMITTED, or the "
            "reason of the refusal. The name is empty for callers without valid credentials.",
            ["caller", "outcome"],
            registry=self.registry,
        )
        self.stream_rows = Counter(
            "segrec_stream_rows", "Rows of streams, by outcome.", ["method", "outcome"], registry=self.registry
        )
        self.degraded = Counter("segrec_degraded", "Degraded answers, by reason.", ["reason"], registry=self.registry)
        self.segment_states = PlainCounter(
            "segrec_segment_states",
            "Answers by the state of their segment; divide by their sum for the share of each state.",
            ["state"],
            registry=self.registry,
        )
        self._by_state: dict[SegmentState, Count] = {}
        self.store_seconds = PlainHistogram(
            "segrec_store_seconds",
            "Time of an operation of the history store, by operation; failed ones count too.",
            "operation",
            _SECONDS,
            registry=self.registry,
        )
        self.waiting_calls = Gauge(
            "segrec_waiting_calls", "Unary calls that wait for a micro-batch.", registry=self.registry
        )
        self.in_progress = Gauge(
            "segrec_in_progress", "Unary calls and streams in progress, by kind.", ["kind"], registry=self.registry
        )
        self.most_in_progress = Gauge(
            "segrec_most_in_progress",
            "Most unary calls and streams in progress, by kind; more are refused.",
            ["kind"],
            registry=self.registry,
        )
        self.waiting_writes = Gauge(
            "segrec_waiting_writes", "Writes that wait for the LMDB store.", registry=self.registry
        )
        self.write_batch_size = Histogram(
            "segrec_write_batch_size",
            "Writes that the LMDB store made durable together.",
            buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
            registry=self.registry,
        )
        self.events = Counter("segrec_events", "Recorded events, by outcome.", ["outcome"], registry=self.registry)
        self.active_release = Gauge(
            "segrec_active_release", "Number of the active release; 0 while there is none.", registry=self.registry
        )
        self.traffic_share = Gauge(
            "segrec_traffic_share",
            "Share of the users that a release answers, 0 to 1; a release without users has no series.",
            ["release"],
            registry=self.registry,
        )
        self.stable_replaced = Gauge(
            "segrec_stable_replaced",
            "1 while another release answers because the stable one of the traffic cannot be loaded.",
            registry=self.registry,
        )
        self.traffic_damaged = Gauge(
            "segrec_traffic_damaged",
            "1 while traffic.json cannot be read and an earlier traffic is in force.",
            registry=self.registry,
        )
        self.encoder_healthy = Gauge(
            "segrec_encoder_healthy", "1 while Triton reproduces the golden embeddings.", registry=self.registry
        )
        self.failed_releases = Gauge(
            "segrec_failed_releases", "Releases on disk that failed their checks.", registry=self.registry
        )
        self.triton_restarts = Gauge(
            "segrec_triton_restarts", "Restarts of the embedded Triton.", registry=self.registry
        )
        self.triton_aborts = Gauge(
            "segrec_triton_aborts",
            "Times that the embedded Triton ended itself (SIGABRT), as it does when a stub crashes during a load.",
            registry=self.registry,
        )
        self.cached_embeddings = Gauge("segrec_cached_embeddings", "Embeddings in memory.", registry=self.registry)
        self.shadow_dropped = Counter(
            "segrec_shadow_dropped",
            "Answers that were dropped from the shadow comparison for lack of time.",
            registry=self.registry,
        )
        self.guard_trips = Gauge(
            "segrec_guard_trips",
            "Canaries that the guard of this server took out since the start.",
            registry=self.registry,
        )
        self.guard_holding_out = Gauge(
            "segrec_guard_holding_out",
            "1 while the guard withholds the canary on this server alone, because the repository is not writable.",
            registry=self.registry,
        )

    def show_traffic(self, shares: Mapping[int, float]) -> None:
        """Set `traffic_share` from the share of each release that answers, by release number."""
        self.traffic_share.clear()
        for number, share in shares.items():
            self.traffic_share.labels(str(number)).set(share)

    def count_states(self, states: Sequence[SegmentState]) -> None:
        for state in set(states):
            self._of_state(state).inc(states.count(state))

    def _of_state(self, state: SegmentState) -> Count:
        counter = self._by_state.get(state)
        if counter is None:
            name = SegmentState.Name(state).removeprefix("SEGMENT_STATE_")
            counter = self._by_state[state] = self.segment_states.labels(name)
        return counter
