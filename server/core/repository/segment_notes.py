"""`segments.toml` of the model repository: what people say about segments, by segment id. All servers follow this file.

A segment keeps its id from release to release, and so its name, note, tags and owner:

    [segments.3]
    name = "Weekend families"
    note = "Mailed in spring"
    tags = ["families", "mail"]
    owner = "Ana"
"""

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError

from server.core.errors import DamagedSegmentNotes
from server.core.frozen_model import FrozenModel
from server.core.profiles import SegmentProfile

SEGMENT_NOTES = "segments.toml"
_HEAD = (
    "# Names, notes, tags and owners of segments, by segment id; `segrec-train segments` checks and writes this file.\n"
)


def _one_line(text: str) -> str:
    if text != text.strip() or not text.replace("\u200c", "").replace("\u200d", "").isprintable():
        raise ValueError("write one line of visible characters, without blanks around it")
    return text


def _not_empty(tag: str) -> str:
    if not tag:
        raise ValueError("a tag has at least one character")
    return tag


Line = Annotated[str, AfterValidator(_one_line)]


class SegmentNote(FrozenModel):
    """What people say about a segment; empty: nothing. `name` takes the place of the label that training gives."""

    name: Line = Field(default="", max_length=60)
    note: Line = Field(default="", max_length=500)
    tags: tuple[Annotated[Line, AfterValidator(_not_empty), Field(max_length=40)], ...] = Field(
        default=(), max_length=20
    )
    owner: Line = Field(default="", max_length=100)


class SegmentNotes(FrozenModel):
    """The notes of all segments, by segment id."""

    segments: dict[Annotated[int, Field(ge=1)], SegmentNote] = Field(default_factory=dict)

    def names(self) -> dict[int, str]:
        """The names that people gave, by segment id."""
        return {segment_id: note.name for segment_id, note in self.segments.items() if note.name}

    def named(self, profiles: Iterable[SegmentProfile]) -> tuple[SegmentProfile, ...]:
        """The profiles with the names that people gave in place of their labels."""
        return named(profiles, self.names())


def named(profiles: Iterable[SegmentProfile], names: Mapping[int, str]) -> tuple[SegmentProfile, ...]:
    """The profiles with `names`, by segment id, in place of their labels."""
    return tuple(
        profile.model_copy(update={"label": names[profile.segment_id]}) if profile.segment_id in names else profile
        for profile in profiles
    )


def read_segment_notes(repository: Path) -> SegmentNotes:
    """The notes in force; none without a file. Raises `DamagedSegmentNotes`, which says what to mend."""
    path = repository / SEGMENT_NOTES
    try:
        return SegmentNotes.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return SegmentNotes()
    except OSError as error:
        raise DamagedSegmentNotes(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place, said = ".".join(map(str, first["loc"])), str(first["msg"]).removeprefix("Value error, ")
        raise DamagedSegmentNotes(f"{path}: {place}: {said}; mend the file") from error
    except ValueError as error:  # no UTF-8, or no TOML
        raise DamagedSegmentNotes(f"{path} is no TOML file ({error}); mend the file") from error


def write_segment_notes(repository: Path, notes: SegmentNotes) -> None:
    """Replace the file by a rename; segments without notes are left out. Raises OSError."""
    path = repository / SEGMENT_NOTES
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    tables = [_table(number, note) for number, note in sorted(notes.segments.items()) if note != SegmentNote()]
    try:
        temporary.write_text("\n".join([_HEAD, *tables]), encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _table(segment_id: int, note: SegmentNote) -> str:
    given = {key: value for key, value in note.model_dump().items() if value}
    return "\n".join([f"[segments.{segment_id}]", *(f"{key} = {_toml(value)}" for key, value in given.items()), ""])


def _toml(value: str | tuple[str, ...]) -> str:
    """A text, or a list of texts, whose characters are all visible."""
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return f"[{', '.join(map(_toml, value))}]"
