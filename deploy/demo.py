"""The second half of `make run`: serves the demo's release, shows answers of its gRPC API, and keeps serving."""

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.table import Table
from segrec import ModelClient, SegrecClient
from segrec.errors import SegrecError
from segrec.v1 import segrec_service_pb2 as pb

from training.repository import stands_by

USERS_SHOWN = 5
console = Console()


def main() -> int:
    """Serve until Ctrl-C; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="Directory of the training run.")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        # After the imports, since Ctrl-C does not interrupt waits with the handler of Polars (pola-rs/polars 21739).
        signal.signal(number, signal.default_int_handler)
    _answer_all_the_same(options.run)
    events = options.run / "prepare" / "events.parquet"
    command = [Path(sys.executable).with_name("segrec-serve"), "--bootstrap-events", events]
    with subprocess.Popen(list(map(str, command)), start_new_session=True, stdout=subprocess.PIPE, text=True) as server:
        try:
            addresses = _wait_until_serving(server)
            if addresses:
                _show(options.run, addresses)
                _print_commands(addresses["segrec"])
            return server.wait()
        except KeyboardInterrupt:
            console.print("\nStopping: accepted calls are answered, then the server and Triton stop.")
            return 130
        except SegrecError as error:
            console.print(f"[red]error:[/] {error}")
            return 1
        finally:
            server.terminate()
            server.wait()


def _answer_all_the_same(run: Path) -> None:
    """Give the demo's release traffic if it stands by, and say so: the demo shows answers in any case."""
    published = json.loads((run / "run.json").read_text(encoding="utf-8"))["stages"]["publish"]["figures"]
    if stands_by(Path(published["repository"]), published["release"]):
        console.print("The release of this demo stands by, see above. The demo lets it answer all the same:")
        command = [Path(sys.executable).with_name("segrec-train"), "traffic", f"{published['release']}=100"]
        subprocess.run([*map(str, command), "--reason", "the demo shows answers in any case"], check=True)


def _wait_until_serving(server: "subprocess.Popen[str]") -> dict[str, str]:
    """Print the server's output until it serves; returns its addresses by name, none if the server ended."""
    assert server.stdout is not None
    addresses: dict[str, str] = {}
    for line in server.stdout:
        console.print(f"[dim]{line.rstrip()}[/]")
        if line.strip() == "serving":
            return addresses
        name, _, address = line.strip().partition(" on ")
        addresses[name] = address
    return {}


def _show(run: Path, addresses: dict[str, str]) -> None:
    with SegrecClient(addresses["segrec"]) as client, ModelClient(addresses["models"]) as models:
        listed = client.list_segments()
        [release] = [entry for entry in models.list_releases() if entry.release == listed.release]
        console.print(f"\nRelease {listed.release} answers on {addresses['segrec']}: {release.item_count:,} items.")
        console.print(_segments_table(listed))
        for user_id in _some_users(run):
            console.print(_user_table(client, user_id))


def _segments_table(listed: pb.ListSegmentsResponse) -> Table:
    table = Table(title=f"Segments of release {listed.release}", title_justify="left")
    for name in ("id", "label", "users", "share", "traits"):
        table.add_column(name, justify="right" if name in ("id", "users", "share") else "left")
    for segment in listed.segments:
        traits = ", ".join(f"{trait.name} × {trait.lift:.1f}" for trait in segment.traits[:3])
        table.add_row(str(segment.segment_id), segment.label, f"{segment.user_count:,}", f"{segment.share:.0%}", traits)
    return table


def _some_users(run: Path) -> list[str]:
    """One user of each of the largest segments."""
    assignments = pl.read_parquet(run / "segment" / "assignments.parquet").sort("user_id")
    first = assignments.group_by("segment_id").agg(pl.first("user_id"), pl.len().alias("size"))
    return first.sort("size", "segment_id", descending=[True, False])["user_id"].head(USERS_SHOWN).to_list()


def _user_table(client: SegrecClient, user_id: str) -> Table:
    answer = client.recommend(user_id=user_id, top_k=5)
    place = answer.assignment
    title = f"User {user_id}: segment {place.segment_id} ({place.label}), distance {place.distance:.2f}"
    table = Table(title=title, title_justify="left")
    for name in ("item", "title", "score", "reason", "bought before"):
        table.add_column(name)
    for item in answer.items:
        reason = pb.ItemReason.Name(item.reason).removeprefix("ITEM_REASON_").replace("_", " ").lower()
        table.add_row(item.item_id, item.title, f"{item.score:.2f}", reason, "yes" if item.seen else "no")
    return table


def _print_commands(address: str) -> None:
    console.print(
        "\nServing. Try:\n"
        "  .venv/bin/segrec segment 1 2 3\n"
        "  .venv/bin/segrec recommend 1 --top-k 5\n"
        f'  .venv/bin/grpcurl -plaintext -d \'{{"user_id": "1"}}\' {address} segrec.v1.SegrecService/Segment\n'
        "Ctrl-C stops the server and Triton.",
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
