"""Names, notes, tags and owners of segments: changes of `segments.toml` of the model repository, with checks."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError
from rich.table import Table

from server.core.release import Release
from server.core.repository.segment_notes import (
    SegmentNote,
    SegmentNotes,
    read_segment_notes,
    write_segment_notes,
)
from server.core.repository.traffic import locked_traffic
from training.errors import ConfigError, PublishError
from training.repository import newest_release, read_ledger


def rename_segment(repository: Path, segment_id: int, name: str) -> SegmentNote:
    """Give a segment a name; an empty one brings the label of its training back.

    Raises ConfigError for a name that another segment has, PublishError for a repository without releases.
    """

    def change(notes: SegmentNotes, release: Release) -> dict[str, object]:
        others = {one.segment_id: one.label for one in release.segments} | notes.names()
        taken = [
            other for other, label in others.items() if other != segment_id and label.casefold() == name.casefold()
        ]
        if name and taken:
            raise ConfigError(f"Segment {taken[0]} is called “{others[taken[0]]}” already; choose another name.")
        return {"name": name}

    return _changed(repository, segment_id, change)


def note_segment(repository: Path, segment_id: int, text: str) -> SegmentNote:
    """Put a note to a segment; an empty one takes it away. Raises as `rename_segment` does."""
    return _changed(repository, segment_id, lambda *_: {"note": text})


def own_segment(repository: Path, segment_id: int, owner: str) -> SegmentNote:
    """Say who looks after a segment; empty: nobody. Raises as `rename_segment` does."""
    return _changed(repository, segment_id, lambda *_: {"owner": owner})


def tag_segment(repository: Path, segment_id: int, tags: Sequence[str]) -> SegmentNote:
    """Replace a segment's tags; none takes them away. Raises as `rename_segment` does."""
    return _changed(repository, segment_id, lambda *_: {"tags": tuple(dict.fromkeys(tags))})


_Change = Callable[[SegmentNotes, Release], dict[str, object]]


def _changed(repository: Path, segment_id: int, change: _Change) -> SegmentNote:
    """The note of a segment after a change, which is written under the lock of the traffic."""
    release = newest_release(repository)
    if release is None:
        raise PublishError(f"There is no release in {repository}, so there are no segments; give another --repository.")
    _check_id(repository, release, segment_id)
    with locked_traffic(repository):
        notes = read_segment_notes(repository)
        note = notes.segments.get(segment_id, SegmentNote())
        try:
            changed = SegmentNote.model_validate(note.model_dump() | change(notes, release))
        except ValidationError as error:
            first = error.errors()[0]
            said = str(first["msg"]).removeprefix("Value error, ")
            raise ConfigError(f"The {first['loc'][0]} of segment {segment_id} cannot be so: {said}.") from error
        write_segment_notes(repository, SegmentNotes(segments=notes.segments | {segment_id: changed}))
    return changed


def _check_id(repository: Path, release: Release, segment_id: int) -> None:
    if not 0 < segment_id < read_ledger(repository).next_segment_id:
        ids = ", ".join(str(number) for number in sorted(one.segment_id for one in release.segments))
        raise ConfigError(
            f"No release of {repository} ever had segment {segment_id}; release {release.number} has {ids}."
        )


def with_names(release: Release, repository: Path) -> Release:
    """A release whose labels are the names that people gave. Raises DamagedSegmentNotes."""
    return replace(release, segments=read_segment_notes(repository).named(release.segments))


def notes_table(release: Release, notes: SegmentNotes) -> Table:
    """The segments of a release with what people say about them."""
    table = Table(title=f"segments of release {release.number}")
    for heading in ("id", "name", "label of the training", "owner", "tags", "note"):
        table.add_column(heading)
    for profile in sorted(release.segments, key=lambda one: one.segment_id):
        note = notes.segments.get(profile.segment_id, SegmentNote())
        number = str(profile.segment_id)
        table.add_row(number, note.name, profile.label, note.owner, ", ".join(note.tags), note.note)
    return table
