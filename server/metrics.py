"""What Prometheus reads. No label holds a user id or anything else that a caller can invent."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from segrec.v1.segrec_service_pb2 import SegmentState

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.calls = Counter(
            "segrec_calls", "RPCs ended, by method and status code.", ["method", "code"], registry=self.registry
        )
        self.call_seconds = Histogram(
            "segrec_call_seconds",
            "Time from the handler's start to its end, streams whole.",
            ["method"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.stream_rows = Counter(
            "segrec_stream_rows", "Rows of streams, by outcome.", ["method", "outcome"], registry=self.registry
        )
        self.degraded = Counter("segrec_degraded", "Degraded answers, by reason.", ["reason"], registry=self.registry)
        self.segment_states = Counter(
            "segrec_segment_states",
            "Answers by the state of their segment: share them out for the share without a confident one.",
            ["state"],
            registry=self.registry,
        )
        self.events = Counter("segrec_events", "Recorded events, by outcome.", ["outcome"], registry=self.registry)
        self.active_release = Gauge(
            "segrec_active_release", "Number of the active release; 0 while there is none.", registry=self.registry
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
        self.cached_embeddings = Gauge("segrec_cached_embeddings", "Embeddings in memory.", registry=self.registry)

    def count_states(self, states: Sequence[SegmentState]) -> None:
        """Count answers by the state of their segment."""
        for state in set(states):
            name = SegmentState.Name(state).removeprefix("SEGMENT_STATE_")
            self.segment_states.labels(name).inc(states.count(state))
