"""Names, notes, tags and owners of segments, in the file that servers follow."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.core.errors import DamagedSegmentNotes
from server.core.repository.segment_notes import SEGMENT_NOTES, SegmentNote, read_segment_notes
from tests.support.releases import tiny_release
from training.cli.main import app
from training.repository import find_release
from training.segments.notes import with_names


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    tiny_release(tmp_path, 1)
    return tmp_path


def say(repository: Path, *words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["segments", *words, "--repository", str(repository)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_what_is_said_is_kept_by_id_and_shown(repository: Path) -> None:
    assert "running servers follow within a second" in say(repository, "rename", "2", 'The "best" \\ 购买')
    say(repository, "note", "2", "Mailed in spring")
    assert say(repository, "tag", "2", "mail", "core", "mail") == "Tags of segment 2: mail, core."
    say(repository, "own", "2", "Ana")
    kept = SegmentNote(name='The "best" \\ 购买', note="Mailed in spring", tags=("mail", "core"), owner="Ana")
    assert read_segment_notes(repository).segments == {2: kept}
    tiny_release(repository, 2)
    labels = [one.label for one in with_names(find_release(repository, 2), repository).segments]
    learned = [one.label for one in find_release(repository, 2).segments]
    assert labels == [learned[0], kept.name, *learned[2:]]
    assert "Mailed in spring" in say(repository, "list")


def test_what_is_taken_away_is_gone(repository: Path) -> None:
    say(repository, "rename", "2", "Best")
    say(repository, "tag", "2", "mail")
    say(repository, "rename", "2", "")
    assert say(repository, "tag", "2") == "Tags of segment 2: none."
    assert read_segment_notes(repository).segments == {}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("rename", "99", "Best"), "ever had segment 99; release 1 has 1, 2, 3, 4"),
        (("rename", "2", "two\nlines"), "name of segment 2 cannot be so: write one line"),
        (("rename", "2", "x" * 61), "at most 60 characters"),
        (("note", "2", "\x1b[31mred"), "visible characters"),
        (("tag", "2", ""), "a tag has at least one character"),
    ],
)
def test_what_cannot_be_said_is_refused_in_a_sentence(repository: Path, words: tuple[str, ...], reason: str) -> None:
    assert reason in say(repository, *words, code=2)
    assert not (repository / SEGMENT_NOTES).exists()


def test_no_two_segments_have_one_name(repository: Path) -> None:
    say(repository, "rename", "2", "Best")
    assert "Segment 2 is called “Best” already" in say(repository, "rename", "3", "BEST", code=2)
    learned = find_release(repository, 1).segments[3].label
    assert "Segment 4 is called" in say(repository, "rename", "3", learned, code=2)


def test_a_damaged_file_is_not_overwritten(repository: Path) -> None:
    path = repository / SEGMENT_NOTES
    path.write_text('[segments.2]\nnmae = "Best"\n')
    with pytest.raises(DamagedSegmentNotes, match=r"segments\.toml: segments\.2\.nmae: .*; mend the file"):
        read_segment_notes(repository)
    assert "mend the file" in say(repository, "rename", "2", "Other", code=1)
    assert "nmae" in path.read_text()


def test_a_repository_without_releases_says_so(tmp_path: Path) -> None:
    assert "There is no release in" in say(tmp_path, "rename", "2", "Best", code=1)
