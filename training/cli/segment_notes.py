"""The commands of `segrec-train segments`: what people say about segments, by the ids that segments keep."""

from typing import Annotated

import typer

from training.cli.console import command_console
from training.cli.options import REPOSITORY, Repository

commands = typer.Typer(
    help="Name, note, tag and own segments. A segment keeps its id from release to release, and so what is said here; "
    "running servers answer with a new name within a second.",
    no_args_is_help=True,
)

SegmentId = Annotated[int, typer.Argument(metavar="ID", min=1, help="Id of a segment.")]


@commands.command()
def rename(
    segment_id: SegmentId,
    name: Annotated[str, typer.Argument(help='Name; "" brings the label of the training back.')],
    repository: Repository = REPOSITORY,
) -> None:
    """Give a segment a name, which takes the place of its label in answers, tables and reports."""
    with command_console() as console:
        from training.segments.notes import rename_segment

        rename_segment(repository, segment_id, name)
        said = (
            f"Segment {segment_id} is “{name}” now" if name else f"Segment {segment_id} has the label of its training"
        )
        console.print(f"{said}; running servers follow within a second.")


@commands.command()
def note(
    segment_id: SegmentId,
    text: Annotated[str, typer.Argument(help='One line; "" takes the note away.')],
    repository: Repository = REPOSITORY,
) -> None:
    """Put a note to a segment, which reports show."""
    with command_console() as console:
        from training.segments.notes import note_segment

        note_segment(repository, segment_id, text)
        console.print(f"The note of segment {segment_id} is {'kept' if text else 'taken away'}.")


@commands.command()
def tag(
    segment_id: SegmentId,
    tags: Annotated[list[str] | None, typer.Argument(help="All its tags; none takes them away.")] = None,
    repository: Repository = REPOSITORY,
) -> None:
    """Replace the tags of a segment, which reports show."""
    with command_console() as console:
        from training.segments.notes import tag_segment

        kept = tag_segment(repository, segment_id, tags or []).tags
        console.print(f"Tags of segment {segment_id}: {', '.join(kept) or 'none'}.")


@commands.command()
def own(
    segment_id: SegmentId,
    owner: Annotated[str, typer.Argument(help='Who looks after it; "" for nobody.')],
    repository: Repository = REPOSITORY,
) -> None:
    """Say who looks after a segment, which reports show."""
    with command_console() as console:
        from training.segments.notes import own_segment

        own_segment(repository, segment_id, owner)
        console.print(f"Owner of segment {segment_id}: {owner or 'nobody'}.")


@commands.command(name="list")
def list_segments(repository: Repository = REPOSITORY) -> None:
    """Show the segments of the newest release with their names, owners, tags and notes."""
    with command_console() as console:
        from server.core.repository.segment_notes import read_segment_notes
        from training.errors import PublishError
        from training.repository import newest_release
        from training.segments.notes import notes_table

        release = newest_release(repository)
        if release is None:
            raise PublishError(f"There is no release in {repository}; give another --repository.")
        console.print(notes_table(release, read_segment_notes(repository)))
