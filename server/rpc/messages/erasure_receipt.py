"""What an erasure leaves in places that the history store does not reach."""

from collections.abc import Iterable

from segrec.v1 import event_service_pb2 as pb

from server.core.release import Manifest


def remainders(store_note: str, manifests: Iterable[Manifest]) -> list[pb.Remainder]:
    """The places, those of the store first. `manifests` are of the loaded releases, in the order of their numbers."""
    return [
        pb.Remainder(place=pb.REMAINDER_PLACE_STORE_FILES, description=store_note),
        pb.Remainder(
            place=pb.REMAINDER_PLACE_CACHES,
            description="other servers on this store drop the user's embeddings when they are asked for the user, when "
            "memory is needed, or at their end; they do not answer with them",
        ),
        *map(_release, manifests),
        pb.Remainder(
            place=pb.REMAINDER_PLACE_RUNS,
            description="runs of the training and the logs given to it; `segrec-train forget` takes the user out of "
            "runs",
        ),
        pb.Remainder(
            place=pb.REMAINDER_PLACE_BACKUPS,
            description="backups of the history store, until they are deleted; after restoring one, erase the user "
            "again",
        ),
    ]


def _release(manifest: Manifest) -> pb.Remainder:
    trained_on, description = manifest.trained_on, "was trained on a log that may have had the user"
    if trained_on is not None and trained_on.last_event_time is not None:
        description += f", with events up to {trained_on.last_event_time:%Y-%m-%d %H:%M} UTC"
    remainder = pb.Remainder(
        place=pb.REMAINDER_PLACE_RELEASE,
        release=manifest.release,
        description=f"release {manifest.release} {description}; it holds weights and figures of groups, no user id and "
        "no history",
    )
    if manifest.forget_after is not None:
        remainder.expire_time.FromDatetime(manifest.forget_after)
    return remainder
