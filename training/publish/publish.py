"""The last stage: publishes a run as a release in the model repository, completely or not at all.

The release is assembled in a staging directory, read back with the server's code, judged by the gates, made durable,
noted in the audit, and renamed into place. A failure before the rename does not change the repository's releases.
"""

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from segrec.traffic import user_at_host

from server.core.figures import Figure
from server.core.profiles import Migration, SegmentProfile, SegmentRecord
from server.core.release import RANKING, SEARCH_LISTS, FileRecord, Golden, Manifest, Release
from server.core.repository.audit import AuditEntry, append_audit
from server.core.repository.layout import MODEL_NAME, ensure_repository, read_preprocessing
from server.core.repository.read import read_release, record_of
from server.core.repository.signature import sign_manifest
from training.config import PublishSettings
from training.data.origin import Origin
from training.errors import PublishError
from training.model.text_projection import ITEM_TEXT
from training.publish.active_gate import active_release, compared_with_active
from training.publish.gates import Gate, check_release, decide, vocabulary_gate
from training.publish.rule_gate import beside_rules, compare_with_rules, rule_gates, stand_by_reason
from training.repository import Ledger, locked, newest_release, read_ledger, sync_directory, write_ledger
from training.runs import Progress, Run, no_progress
from training.segments.confidence import read_confidence
from training.segments.drift_reference import DRIFT_REFERENCE
from training.segments.migration import read_migration, unchanged_migration, write_migration
from training.segments.result import Segmentation, same_segments

_STAGING = ".staging"
_KEPT_FIGURES = ("ndcg@10", "hr@10")
_SOURCES = {
    "export": ("model.onnx", "preprocessing.json", "item_embeddings.npy"),
    "segment": ("items.parquet", "centroids.npy", "segment_items.parquet"),
}
_OPTIONAL = (("export", ITEM_TEXT), ("segment", DRIFT_REFERENCE), ("segment", RANKING), ("segment", SEARCH_LISTS))


def _show_nothing(gates: Sequence[Gate]) -> None:
    """The default of `Push.show_gates`."""


@dataclass(frozen=True, slots=True)
class Push:
    """The options of publishing a release.

    `settings` None stands for the run's own settings. `forced` is the reason for overriding failed gates that can be
    forced. `key` signs the release. `show_gates` is called with all gates, failed gates included.
    """

    who: str = field(default_factory=user_at_host)
    settings: PublishSettings | None = None
    forced: str | None = None
    key: Ed25519PrivateKey | None = None
    show_gates: Callable[[Sequence[Gate]], None] = _show_nothing


@dataclass(frozen=True, slots=True)
class Standing:
    """Why a release stands by, or why it was `forced` to answer; both are empty for a release that passed."""

    reason: str = ""
    forced: str = ""


Judge = Callable[[Release, Path], list[Gate]]
"""Returns the gates of a release, given the release and its directory, beyond the checks of its model."""


def publish(run: Run, repository: Path, push: Push | None = None, progress: Progress = no_progress) -> int:
    """Publish the run as a release in the model repository; returns the release number.

    Raises PublishError while somebody else publishes, when the run's segment ids were matched to another release than
    the newest, and when a gate fails; RunError when a stage is missing.
    """
    sources = {stage: run.require(stage) for stage in ("prepare", *_SOURCES)}
    settings = (push and push.settings) or run.config().publish
    push = replace(push or Push(), settings=settings)
    with run.stage("publish") as stage, locked(repository):
        segmentation = Segmentation.read(sources["segment"])
        parent = newest_release(repository)
        _check_parent(run, repository, segmentation, parent)
        figures, origin = _evaluated(run), Origin.of(run, sources["prepare"])
        comparisons = compare_with_rules(run)
        problem = stand_by_reason(comparisons)
        standing = Standing("", push.forced) if push.forced and problem else Standing(problem)

        def judge(release: Release, directory: Path) -> list[Gate]:
            active = active_release(repository)
            if active is None:
                return rule_gates(comparisons)
            catalogue = vocabulary_gate(release, active, settings.min_known_popularity)
            active_directory = repository / MODEL_NAME / str(active.number)
            return [
                *rule_gates(comparisons),
                catalogue,
                *compared_with_active(run, (release, directory), (active, active_directory), settings, progress),
            ]

        number = add_release(
            repository,
            lambda directory: _assemble(directory, sources, segmentation, parent, figures, origin, standing),
            judge,
            push,
            f"run {run.path.name}",
            progress,
        )
        stage.figures |= {"release": number, "repository": str(repository.resolve())}
        stage.figures |= {"beside_rules": beside_rules(comparisons)}
    return number


def unpublished_release(run: Run) -> Release:
    """The release that the run would be as the first of a repository. No repository is read or written.

    Raises RunError when a stage is missing.
    """
    sources = {stage: run.require(stage) for stage in ("prepare", *_SOURCES)}
    segmentation, origin = Segmentation.read(sources["segment"]), Origin.of(run, sources["prepare"])
    with tempfile.TemporaryDirectory(prefix=_STAGING, dir=run.path) as scratch:
        directory = Path(scratch) / "1"
        directory.mkdir()
        _assemble(directory, sources, segmentation, None, _evaluated(run), origin, Standing())
        return read_release(directory)


def add_release(
    repository: Path,
    assemble: Callable[[Path], None],
    judge: Judge,
    push: Push,
    source: str,
    progress: Progress = no_progress,
) -> int:
    """Publish the next release, completely or not at all; returns its number. The caller holds the repository's lock.

    `assemble` writes the release into the directory that it gets; the directory's name is the release number. `source`
    names the origin of the release in the audit. Raises PublishError.
    """
    progress("publishing", 0, 4)
    shutil.rmtree(repository / _STAGING, ignore_errors=True)
    ledger = read_ledger(repository)
    number = ledger.next_release
    directory = repository / _STAGING / uuid.uuid4().hex / str(number)
    try:
        directory.mkdir(parents=True)
        assemble(directory)
        progress("publishing", 1, 4)
        release, gates = check_release(directory, push.settings or PublishSettings())
        gates += judge(release, directory)
        push.show_gates(gates)
        forced = decide(gates, push.forced)
        progress("publishing", 2, 4)
        if push.key:
            sign_manifest(directory, push.key)
        _make_durable(directory)
        progress("publishing", 3, 4)
        _move_in(repository, directory, release, ledger, _audit_entry(release, gates, forced, push, source))
    except OSError as error:
        raise PublishError(f"Cannot write release {number} to {repository}: {error.strerror}.") from error
    finally:
        shutil.rmtree(directory.parent, ignore_errors=True)
    progress("publishing", 4, 4)
    return number


def _audit_entry(release: Release, gates: Sequence[Gate], forced: list[str], push: Push, source: str) -> AuditEntry:
    measured = {name: value for gate in gates for name, value in (gate.figures or {}).items()}
    details = {
        "source": source,
        "parent_release": release.manifest.parent_release,
        "measured": measured,
        "figures": [figure.model_dump(exclude_none=True) for figure in release.manifest.figures],
        "gates": {gate.name: {"measured": gate.measured, "asked": gate.required} for gate in gates},
        "forced": forced,
        "signed": push.key is not None,
    }
    reason = push.forced or ""
    return AuditEntry(who=push.who, what="publish", release=release.number, reason=reason, details=details)


def _check_parent(run: Run, repository: Path, segmentation: Segmentation, parent: Release | None) -> None:
    """Raises PublishError if the newest release is not the one that the run's segment ids were matched to."""
    number = parent.number if parent else 0
    if number == segmentation.parent_release or (parent and same_segments(run, segmentation, parent)):
        return
    matched = f"release {segmentation.parent_release}" if segmentation.parent_release else "no release"
    raise PublishError(
        f"The newest release of {repository} is {number or 'none'}, but the run's segment ids were matched to "
        f"{matched}; run `segrec-train segment --run {run.path.name} --repository {repository}` again, then publish."
    )


def _assemble(
    directory: Path,
    sources: dict[str, Path],
    segmentation: Segmentation,
    parent: Release | None,
    figures: tuple[Figure, ...],
    origin: Origin,
    standing: Standing,
) -> None:
    number = int(directory.name)
    for stage, names in _SOURCES.items():
        for name in names:
            shutil.copyfile(sources[stage] / name, directory / name)
    for stage, name in _OPTIONAL:
        if (sources[stage] / name).is_file():
            shutil.copyfile(sources[stage] / name, directory / name)
    profiles = [with_history(profile, number, parent) for profile in segmentation.profiles]
    write_segments(directory, profiles)
    if parent is not None:
        write_migration(directory, _migration(sources["segment"], segmentation, parent))
    preprocessing = read_preprocessing(directory)
    embeddings = np.load(directory / "item_embeddings.npy", mmap_mode="r", allow_pickle=False)
    manifest = Manifest(
        release=number,
        created_time=datetime.now(UTC),
        data_cutoff_time=segmentation.data_cutoff_time,
        trained_on=origin.trained_on,
        forget_after=origin.forget_after,
        parent_release=parent.number if parent else 0,
        embedding_dim=embeddings.shape[1],
        max_length=preprocessing.max_length,
        item_count=len(embeddings),
        segment_count=len(profiles),
        hybrid_weight=segmentation.hybrid_weight,
        figures=figures + segmentation.figures,
        confidence=read_confidence(sources["segment"]),
        min_segment_size=segmentation.min_segment_size,
        stands_by=standing.reason,
        forced=standing.forced,
        files=file_records(directory),
        golden=Golden.model_validate_json((sources["segment"] / "golden.json").read_bytes()),
    )
    (directory / "manifest.json").write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _migration(segment: Path, segmentation: Segmentation, parent: Release) -> Migration | None:
    """The run's own migration; no change if the parent release has exactly the segments of the run."""
    return read_migration(segment) if segmentation.parent_release == parent.number else unchanged_migration(parent)


def file_records(directory: Path) -> dict[str, FileRecord]:
    """The manifest's records of all files in the directory; call it before the manifest is written."""
    return {path.name: record_of(path) for path in sorted(directory.iterdir())}


def write_segments(directory: Path, profiles: Sequence[SegmentProfile]) -> None:
    """Write `segments.json` of a release."""
    text = json.dumps([profile.model_dump(mode="json") for profile in profiles], ensure_ascii=False, indent=1)
    (directory / "segments.json").write_text(text, encoding="utf-8")


def with_history(profile: SegmentProfile, number: int, parent: Release | None) -> SegmentProfile:
    """The profile with its size in release `number` put before its sizes in earlier releases."""
    now = SegmentRecord(release=number, user_count=profile.user_count, share=profile.share)
    earlier = next((p.history for p in parent.segments if p.segment_id == profile.segment_id), ()) if parent else ()
    return profile.model_copy(update={"history": (now, *earlier)})


def _evaluated(run: Run) -> tuple[Figure, ...]:
    """NDCG@10 and HR@10 of the evaluate stage; empty if the stage did not run."""
    return tuple(figure for figure in run.quality("evaluate") if figure.measure in _KEPT_FIGURES)


def _make_durable(directory: Path) -> None:
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_directory(directory)


def _move_in(repository: Path, directory: Path, release: Release, ledger: Ledger, entry: AuditEntry) -> None:
    """Use up the numbers, write the audit, then rename: a crash wastes a number but never lets it be used twice."""
    model = ensure_repository(repository).parent
    sync_directory(repository)
    next_segment_id = max(ledger.next_segment_id, 1 + max(segment.segment_id for segment in release.segments))
    write_ledger(repository, Ledger(next_release=release.number + 1, next_segment_id=next_segment_id))
    append_audit(repository, entry)
    directory.rename(model / directory.name)
    sync_directory(model)
