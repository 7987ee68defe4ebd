"""The errors of the server, each with its gRPC status and a reason of `segrec.v1.ErrorReason`.

SegrecError
├── InvalidArgument      INVALID_ARGUMENT     a field of the request is invalid; `field` names it
├── NotFound             NOT_FOUND            something that the request names does not exist
├── Erased               FAILED_PRECONDITION  an event is from before its user was erased
├── NoRelease            UNAVAILABLE          no release is active yet
├── ShuttingDown         UNAVAILABLE          this server is stopping; another one, or the next, goes on
├── EncoderUnavailable   UNAVAILABLE          Triton did not answer; the pipeline falls back if it can
│   ├── EncoderAway      UNAVAILABLE          Triton answers nobody, whatever the release
│   └── ReleaseNotLoaded UNAVAILABLE          Triton answers, but does not have the release; the stable one answers
├── StoreUnavailable     UNAVAILABLE          the history store did not answer
├── Overloaded           RESOURCE_EXHAUSTED   too much work is waiting
│   └── QuotaExceeded    RESOURCE_EXHAUSTED   the caller does more than its quota allows
├── TooLate              DEADLINE_EXCEEDED    the caller's deadline passed before the work began
├── DamagedRelease       FAILED_PRECONDITION  a release directory fails its checks
├── ReleaseGone          FAILED_PRECONDITION  the release that a stream began with is no longer loaded
├── DamagedTraffic       FAILED_PRECONDITION  traffic.json cannot be read
├── DamagedSegmentNotes  FAILED_PRECONDITION  segments.toml cannot be read
├── DamagedRules         FAILED_PRECONDITION  the operators' rules cannot be read
├── RulesChanged         FAILED_PRECONDITION  somebody else has changed the operators' rules meanwhile
├── TrafficChanged       FAILED_PRECONDITION  the traffic is no longer the one that the caller has seen
├── TrafficLocked        UNAVAILABLE          another program holds the lock for changes of the traffic
├── NothingToRollBack    FAILED_PRECONDITION  there is no earlier release to roll back to
├── ReadOnlyRepository   FAILED_PRECONDITION  this server cannot write the model repository
├── NotAuthenticated     UNAUTHENTICATED      the caller shows no credentials
│   ├── WrongCredentials UNAUTHENTICATED      the server does not know the credentials
│   └── ExpiredCredentials UNAUTHENTICATED    the time of the credentials is over
├── NotAllowed           PERMISSION_DENIED    the caller lacks the role that the method needs
└── SetupError           FAILED_PRECONDITION  the process cannot start: one sentence with what to do
"""

from typing import ClassVar


class SegrecError(Exception):
    """Base of all errors. `str(error)` is one sentence for people: what is wrong, where, and how to solve it."""

    code: ClassVar[str] = "INTERNAL"
    reason: str = "INTERNAL"
    default_retry_seconds: ClassVar[float | None] = None

    def __init__(self, message: str, field: str = "", retry_seconds: float | None = None) -> None:
        super().__init__(message)
        self.field = field
        """Path of the invalid field of the request, such as `events[3].value`; empty for other errors."""
        self.retry_seconds = self.default_retry_seconds if retry_seconds is None else retry_seconds
        """How long a caller should wait before the same call is worth a try; None where waiting does not help."""


class InvalidArgument(SegrecError):
    """A field of the request is wrong."""

    code = "INVALID_ARGUMENT"

    def __init__(self, message: str, field: str = "", *, reason: str) -> None:
        super().__init__(message, field)
        self.reason = reason


class NotFound(SegrecError):
    """Something that the request names does not exist."""

    code = "NOT_FOUND"

    def __init__(self, message: str, field: str = "", *, reason: str) -> None:
        super().__init__(message, field)
        self.reason = reason


class Erased(SegrecError):
    """An event is from before its user was erased."""

    code = "FAILED_PRECONDITION"
    reason = "ERASED"


class NoRelease(SegrecError):
    """No release is active yet."""

    code = "UNAVAILABLE"
    reason = "NO_RELEASE"
    default_retry_seconds = 1.0


class ShuttingDown(SegrecError):
    """This server is stopping."""

    code = "UNAVAILABLE"
    reason = "SHUTTING_DOWN"
    default_retry_seconds = 1.0


class EncoderUnavailable(SegrecError):
    """The encoder could not answer in time."""

    code = "UNAVAILABLE"
    reason = "ENCODER_UNAVAILABLE"
    default_retry_seconds = 1.0


class EncoderAway(EncoderUnavailable):
    """Triton answers no call of any release: it is gone, hangs, or cannot be reached."""


class ReleaseNotLoaded(EncoderUnavailable):
    """Triton answers, but has not loaded the release, for example because Triton has restarted."""


class StoreUnavailable(SegrecError):
    """The history store could not answer."""

    code = "UNAVAILABLE"
    reason = "STORE_UNAVAILABLE"
    default_retry_seconds = 1.0


class Overloaded(SegrecError):
    """Too much work is waiting; try again after `retry_seconds`."""

    code = "RESOURCE_EXHAUSTED"
    reason = "OVERLOADED"
    default_retry_seconds = 1.0


class QuotaExceeded(Overloaded):
    """The caller does more than its quota allows; try again after `retry_seconds`."""

    reason = "QUOTA_EXCEEDED"


class TooLate(SegrecError):
    """The caller's deadline passed before the work began."""

    code = "DEADLINE_EXCEEDED"
    reason = "TOO_LATE"


class DamagedRelease(SegrecError):
    """A release directory fails its checks."""

    code = "FAILED_PRECONDITION"
    reason = "DAMAGED_RELEASE"


class ReleaseGone(SegrecError):
    """The release that a stream began with is no longer loaded."""

    code = "FAILED_PRECONDITION"
    reason = "RELEASE_GONE"


class DamagedTraffic(SegrecError):
    """`traffic.json` cannot be read."""

    code = "FAILED_PRECONDITION"
    reason = "DAMAGED_TRAFFIC"


class DamagedSegmentNotes(SegrecError):
    """`segments.toml` cannot be read."""

    code = "FAILED_PRECONDITION"
    reason = "DAMAGED_SEGMENT_NOTES"


class DamagedRules(SegrecError):
    """The operators' rules cannot be read."""

    code = "FAILED_PRECONDITION"
    reason = "DAMAGED_RULES"


class RulesChanged(SegrecError):
    """Somebody else has changed the rules meanwhile."""

    code = "FAILED_PRECONDITION"
    reason = "RULES_CHANGED"


class TrafficChanged(SegrecError):
    """The traffic is no longer the one that the caller has seen."""

    code = "FAILED_PRECONDITION"
    reason = "TRAFFIC_CHANGED"


class TrafficLocked(SegrecError):
    """Another program holds the lock for changes of the traffic."""

    code = "UNAVAILABLE"
    reason = "TRAFFIC_LOCKED"
    default_retry_seconds = 1.0


class NothingToRollBack(SegrecError):
    """There is no earlier release to roll back to."""

    code = "FAILED_PRECONDITION"
    reason = "NOTHING_TO_ROLL_BACK"


class ReadOnlyRepository(SegrecError):
    """This server cannot write the model repository."""

    code = "FAILED_PRECONDITION"
    reason = "READ_ONLY_REPOSITORY"


class NotAuthenticated(SegrecError):
    """The caller shows no credentials."""

    code = "UNAUTHENTICATED"
    reason = "NO_CREDENTIALS"


class WrongCredentials(NotAuthenticated):
    """The server does not know the credentials."""

    reason = "WRONG_CREDENTIALS"


class ExpiredCredentials(NotAuthenticated):
    """The time of the credentials is over."""

    reason = "EXPIRED_CREDENTIALS"


class NotAllowed(SegrecError):
    """The caller lacks the role that the method needs."""

    code = "PERMISSION_DENIED"
    reason = "NOT_ALLOWED"


class SetupError(SegrecError):
    """The process cannot start."""

    code = "FAILED_PRECONDITION"
    reason = "SETUP"
