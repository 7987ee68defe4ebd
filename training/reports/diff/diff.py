"""The comparison of `segrec-train diff`: what would change for users if one release replaced another.

Both releases answer for the same users of a log. The result names no user, and it leaves out segments and flows of
fewer users than the larger `min_segment_size` of both releases.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.core.profiles import Migration
from server.core.release import Release
from training.config import Clean, Columns, Config
from training.data.reading.sources import Log
from training.data.split import read_split
from training.errors import ConfigError, PublishError, RunError
from training.reports.diff.answers import NO_ITEM, AnswerPair, Answers, Sample, answers, common_items, draw_sample
from training.reports.diff.figures import (
    Catalogue,
    ConfidentShares,
    Diff,
    Items,
    QualityFigure,
    SameTest,
    SegmentComparison,
    Vectors,
)
from training.reports.members import published_as, run_of
from training.repository import find_release, release_numbers
from training.runs import Progress, Run, no_progress
from training.segments.migration import Overlap, flows_of, merges_of, splits_of
from training.segments.notes import with_names
from training.segments.placement import read_events
from training.segments.quality import NEIGHBOURS, neighbour_overlap

_NEIGHBOUR_SAMPLE = 1_000


PREPARED = Config(columns=Columns(missing_words=()), clean=Clean(drop_duplicates=False))
"""How the events of a run are read: they are cleaned, and a user called NA is one that the run's settings kept."""


def diff(
    repository: Path,
    numbers: tuple[int, int],
    runs: Path,
    events: Log | None,
    config: Config,
    users: int = 2_000,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Diff:
    """Compare release `numbers[0]` with release `numbers[1]`, which would replace it.

    The users are drawn from the log `events`, or else from the log of the run, under `runs`, that either release came
    from. Raises PublishError for a missing release, DamagedRelease for a release that does not pass its checks,
    RunError if no log is given and no run is found, LogError for a log that cannot be read or has no user that both
    releases know.
    """
    check_numbers(repository, numbers)
    before, after = (with_names(find_release(repository, number), repository) for number in numbers)
    progress("reading", 0, 0)
    log: Log = events or _log_of(repository, (after, before), runs)
    config = config if events else PREPARED
    clocked = before if before.preprocessing.has_clock else after
    read = read_events(log, config, clocked)
    sample = draw_sample(read.events, users, seed)
    pair = answers(repository, before, after, sample, progress)
    found = compared(before, after, sample, pair, same_test(repository, before, after, runs))
    return found.model_copy(update={"account": read.account})


def check_numbers(repository: Path, numbers: tuple[int, int]) -> None:
    """Raises PublishError if the repository has fewer than two releases, ConfigError if both numbers are the same."""
    existing = release_numbers(repository)
    if len(existing) < 2:
        only = f"only release {existing[0]}" if existing else "no release"
        raise PublishError(f"diff compares two releases, and there is {only} in {repository}; publish another one.")
    if numbers[0] == numbers[1]:
        raise ConfigError(f"Release {numbers[0]} cannot be compared with itself; name two releases.")


def compared(before: Release, after: Release, sample: Sample, pair: AnswerPair, same: SameTest) -> Diff:
    """All figures of the comparison."""
    least = max(before.manifest.min_segment_size, after.manifest.min_segment_size)
    segment_ids = pair.before.segment_ids, pair.after.segment_ids
    return Diff(
        before=before.number,
        after=after.number,
        users=sample.users,
        user_count=sample.user_count,
        compared=pair.users,
        only_before=pair.only_before,
        only_after=pair.only_after,
        changed=float((segment_ids[0] != segment_ids[1]).mean()),
        segments=_segments(before, after, pair, least),
        migration=_migration(before, after, pair, least),
        min_segment_size=least,
        sureness=_confident_shares(pair),
        items=items_of(pair.before, pair.after),
        vectors=_vectors(before, after, pair),
        catalogue=_catalogue(before, after),
        microseconds=pair.microseconds,
        quality=_quality(before, after),
        same_test=same,
    )


def same_test(repository: Path, before: Release, after: Release, runs: Path) -> SameTest:
    """Whether the encoders of both releases were tested on the same users; unknown if a run is not under `runs`."""
    if encoder_of(before) == encoder_of(after):
        return "same"
    both_runs = [next(published_as(release.number, repository, runs), None) for release in (before, after)]
    tests = [_tested_on(run) for run in both_runs if run is not None]
    if len(tests) < 2:
        return "unknown"
    return "same" if tests[0] == tests[1] else "different"


def encoder_of(release: Release) -> str:
    """SHA-256 of the encoder's file, equal for two releases of one training."""
    return release.manifest.files["model.onnx"].sha256


def items_of(before: Answers, after: Answers) -> Items:
    """How far the item lists of both releases agree, over P users."""
    same = common_items(before.items, after.items)  # (P, T, T)
    common = same.sum((1, 2))
    longest = np.maximum((before.items != NO_ITEM).sum(1), (after.items != NO_ITEM).sum(1))
    shares = common / np.maximum(longest, 1)
    # One entry for each common item: its user, and its place in both lists.
    user, place_before, place_after = np.nonzero(same)
    shift = after.scores[user, place_after] - before.scores[user, place_before]
    top_k = before.items.shape[1]
    low_high = np.quantile(shift, [0.05, 0.95]).tolist() if len(shift) else None
    return Items(
        top_k=top_k,
        overlap=float(shares.mean()),
        quantiles=tuple(np.quantile(shares, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()),
        none_in_common=float((common == 0).mean()),
        counts=tuple((np.bincount(common, minlength=top_k + 1) / len(common)).tolist()),
        moved_places=float(np.abs(place_before - place_after).mean()) if len(shift) else None,
        score_shift=float(shift.mean()) if len(shift) else None,
        score_shift_interval=low_high,
    )


def _log_of(repository: Path, releases: Sequence[Release], runs: Path) -> Path:
    for release in releases:
        if next(published_as(release.number, repository, runs), None) is not None:
            return run_of(release, repository, runs).require("prepare") / "events.parquet"
    numbers = " or ".join(str(release.number) for release in releases)
    raise RunError(
        f"No run under {runs} was published as release {numbers} in {repository}, so there are no users to compare; "
        "give a log with --events, or the directory of runs with --runs."
    )


def _tested_on(run: Run) -> tuple[object, object]:
    return run.log_identity(), read_split(run.require("prepare"))


def _segments(before: Release, after: Release, pair: AnswerPair, least: int) -> tuple[SegmentComparison, ...]:
    """All segments of both releases, sorted by their size in the later release, the largest first."""
    labels = [{profile.segment_id: profile.label for profile in release.segments} for release in (before, after)]
    rows = [
        _segment(segment_id, labels[0].get(segment_id), labels[1].get(segment_id), pair, least)
        for segment_id in sorted(set(labels[0]) | set(labels[1]))
    ]
    return tuple(sorted(rows, key=lambda row: (-(row.share_after or 0), -(row.share_before or 0))))


def _segment(segment_id: int, before: str | None, after: str | None, pair: AnswerPair, least: int) -> SegmentComparison:
    members = [answers.segment_ids == segment_id for answers in (pair.before, pair.after)]
    counts = [int(is_member.sum()) for is_member in members]
    large = [count >= max(least, 1) for count in counts]
    shares = [count / pair.users if is_large else None for count, is_large in zip(counts, large, strict=True)]
    return SegmentComparison(
        segment_id=segment_id,
        label_before=before,
        label_after=after,
        share_before=shares[0],
        share_after=shares[1],
        stay=int((members[0] & members[1]).sum()) / counts[0] if large[0] else None,
    )


def _migration(before: Release, after: Release, pair: AnswerPair, least: int) -> Migration:
    """Flows of users between segments; flows of fewer than `least` users are merged per target, from segment 0."""
    old, new = ([profile.segment_id for profile in release.segments] for release in (before, after))
    places = {segment_id: place for place, segment_id in enumerate(new)}
    clusters = np.array([places[segment_id] for segment_id in pair.after.segment_ids.tolist()], np.intp)
    overlap = Overlap.of(pair.before.segment_ids, np.arange(pair.users), clusters, old, new)
    return Migration(
        previous_release=before.number,
        user_count=pair.users,
        flows=flows_of(overlap, least),
        born_segment_ids=tuple(sorted(set(new) - set(old))),
        retired_segment_ids=tuple(sorted(set(old) - set(new))),
        splits=splits_of(overlap, least),
        merges=merges_of(overlap, least),
    )


def _confident_shares(pair: AnswerPair) -> ConfidentShares | None:
    before, after = pair.before.confident, pair.after.confident
    if before is None or after is None:
        return None
    shares = {"before": before, "after": after, "lost": before & ~after, "gained": ~before & after}
    return ConfidentShares(**{name: float(who.mean()) for name, who in shares.items()})


def _vectors(before: Release, after: Release, pair: AnswerPair) -> Vectors:
    same, enough = encoder_of(before) == encoder_of(after), pair.users > 1
    points = pair.before.points, pair.after.points
    cosines = _cosines(pair.before.embeddings, pair.after.embeddings) if same else None
    count = min(NEIGHBOURS, pair.users - 1)
    return Vectors(
        same_encoder=same,
        neighbours=neighbour_overlap(*points, _NEIGHBOUR_SAMPLE, seed=0) if enough else None,
        by_chance=count / (pair.users - 1) if enough else None,
        cosine=None if cosines is None else float(cosines.mean()),
        cosine_low=None if cosines is None else float(np.quantile(cosines, 0.05)),
    )


def _cosines(before: NDArray[np.float32], after: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine of each row of `before` (P, D) with the same row of `after` (P, D)."""
    wide = before.astype(np.float64), after.astype(np.float64)
    lengths = np.linalg.norm(wide[0], axis=1) * np.linalg.norm(wide[1], axis=1)
    cosines: NDArray[np.float64] = (wide[0] * wide[1]).sum(1) / np.maximum(lengths, 1e-30)
    return cosines


def _catalogue(before: Release, after: Release) -> Catalogue:
    new = [row for row, item_id in enumerate(after.item_ids) if item_id not in before.vocabulary]
    gone = [row for row, item_id in enumerate(before.item_ids) if item_id not in after.vocabulary]
    return Catalogue(
        before=len(before.item_ids),
        after=len(after.item_ids),
        new=len(new),
        new_popularity=_popularity(after, new),
        gone=len(gone),
        gone_popularity=_popularity(before, gone),
    )


def _popularity(release: Release, rows: Sequence[int]) -> float:
    shares = np.exp(release.popularity.astype(np.float64))
    return float(shares[list(rows)].sum() / shares.sum())


def _quality(before: Release, after: Release) -> tuple[QualityFigure, ...]:
    """Figures of both manifests, in the order of the later manifest."""
    then, now = ({figure.name: figure for figure in one.manifest.figures} for one in (before, after))
    return tuple(
        QualityFigure(
            **figure.model_dump(include={"protocol", "method", "metric", "k"}),
            before=then[name].value if name in then else None,
            after=now[name].value if name in now else None,
        )
        for name, figure in (now | then).items()
    )
