"""Items of the user's history in explanations: for callers who gave the events, or who may read stored ones."""

from typing import NamedTuple

from segrec.v1.common_pb2 import (
    WARNING_REASON_HISTORY_NOT_ALLOWED,
    Warning,  # noqa: A004 - the name is that of the API
)
from segrec.v1.segrec_service_pb2 import RecommendRequest

from server.access.control import current_caller
from server.access.roles import ROLES_OF_METHOD
from server.core.errors import EncoderUnavailable
from server.core.ranking.contributions import reads_history
from server.core.ranking.query import Ranking
from server.core.release import Release
from server.monitoring.metrics import Metrics
from server.serving.answer import Answer, Degraded
from server.serving.pipeline import Pipeline

_READS_HISTORIES = ROLES_OF_METHOD["segrec.v1.EventService/ListEvents"]
_NOT_ALLOWED = Warning(reason=WARNING_REASON_HISTORY_NOT_ALLOWED, field="options.explain", value="true")


class Explained(NamedTuple):
    """An answer and its ranking, and what the caller has to know of the explanations."""

    answer: Answer
    ranking: Ranking
    warnings: tuple[Warning, ...] = ()


async def explained(
    pipeline: Pipeline,
    metrics: Metrics,
    request: RecommendRequest,
    made: tuple[Release, Answer, Ranking],
    seconds: float,
) -> Explained:
    """What was `made` for a request, with the items of the history; degraded when the encoder does not answer."""
    release, answer, ranking = made
    if request.HasField("user_id") and current_caller().roles.isdisjoint(_READS_HISTORIES):
        return Explained(answer, ranking, (_NOT_ALLOWED,) if reads_history(ranking.strategy) else ())
    try:
        return Explained(answer, await pipeline.explain(release, ranking, answer, seconds))
    except EncoderUnavailable:
        metrics.degraded.labels(Degraded.NOT_EXPLAINED.name).inc()
        return Explained(answer._replace(degraded=Degraded.NOT_EXPLAINED), ranking)
