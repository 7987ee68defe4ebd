"""The segments of real logs: the sweep over k, do they hold together, what do they predict; against stated floors.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_segments --data ml-100k,deskdrop --max-minutes 4 --work DIR

For each log a training of `--max-minutes`, then `segrec-train sweep` and, for 8 and 32 segments, half-ARI (segments
made anew of two random halves of users' events), seed-ARI, and HR@10 of segment popularity on test targets, as in
`bench_probes`, whose floors these are. What the product tells its user of doubt is shown beside. Under `--work` each
log's run and figures are kept: what is there already is not done again. Logs are read from `../shared/data`, which is
not part of the project; `demo` is. Ends in one JSON line.
"""

import argparse
import json
import math
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tests.benchmarks.bench_probes import FLOORS, HITS, trained
from tests.benchmarks.common import show
from training.errors import RunError
from training.evaluation.probe import KS, segment_figures
from training.model.export import export
from training.runs import Run, write_atomically
from training.segments.sweep import KSweep, sweep_run


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=",".join(FLOORS), help=f"Some of {','.join(FLOORS)}.")
    parser.add_argument("--max-minutes", type=float, default=4.0, help="Of training, for each log.")
    parser.add_argument("--work", type=Path, help="Where runs and figures are kept; left out: nowhere.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.data.split(",")
    if unknown := [name for name in names if name not in FLOORS]:
        sys.exit(f"There is no log {', '.join(unknown)} here; known: {', '.join(FLOORS)}.")
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        found = {name: figures_of(work, name, options.max_minutes) for name in names}
    rows = [row for name, figures in found.items() for row in compared(name, figures)]
    title = f"Segments after {options.max_minutes:g} minutes of training, and floors"
    measured = {"benchmark": "segments", "max_minutes": options.max_minutes, "rows": found}
    show(title, ("log", "figure", "floor", "found", "above"), rows, measured)


def figures_of(work: Path, data: str, max_minutes: float) -> dict[str, Any]:
    """The figures of one log, from `work` where they are there for the same training time."""
    path = work / f"{data}.json"
    known: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    if known.get("max_minutes") != max_minutes:
        known = measured_anew(exported(work / f"{data}-{max_minutes:g}", data, max_minutes))
        known["max_minutes"] = max_minutes
        write_atomically(path, json.dumps(known))
    swept = KSweep.model_validate(known["sweep"])
    Console(width=140, stderr=True).print(data, swept.table(), swept.reason, *known["notes"], sep="\n")
    return known


def exported(directory: Path, data: str, max_minutes: float) -> Run:
    """A trained and exported run; one that is there and done is taken."""
    directory.mkdir(parents=True, exist_ok=True)
    for record in sorted(directory.glob("*/run.json")):
        with suppress(RunError):
            (run := Run(record.parent)).require("export")
            return run
    run = trained(directory, data, max_minutes, 0)
    export(run)
    return run


def measured_anew(run: Run) -> dict[str, Any]:
    """The sweep, figures for each of `KS`, and what the product tells of doubt at the k that it chose."""
    swept = sweep_run(run)
    users, global_hr, by_k = segment_figures(run)
    quality = {str(k): one for k, one in zip(KS, map(asdict, by_k), strict=True)}
    figures = {"users": users, "global_hr": global_hr, "quality": quality, "notes": swept.stability_notes()}
    return figures | {"sweep": json.loads(swept.model_dump_json())}


def compared(data: str, figures: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows of the table: what has a floor, and what else there is to know."""
    rows: list[tuple[str, ...]] = []
    for k, hits in zip(KS, HITS[data], strict=True):
        quality = figures["quality"][str(k)]
        for name, floor, value in (
            (f"half-ARI, k {k}", FLOORS[data][f"halves, k {k}"], quality["halves"]),
            (f"seed-ARI, k {k}", math.nan, quality["seeds"]),
            (f"HR@10, k {k}", hits, quality["hr"]),
        ):
            above = "" if math.isnan(floor) else "yes" if value >= floor else "NO"
            rows.append((data, name, "" if math.isnan(floor) else f"{floor:.4f}", f"{value:.4f}", above))
    swept = KSweep.model_validate(figures["sweep"])
    found = {"HR@10 of everyone's items": figures["global_hr"]}
    for row in swept.rows:
        if row.k == swept.chosen:
            found |= {"its stability": row.stability, "its halves": row.halves, "its lift": row.lift}
    rows.append((data, "k auto", "", str(swept.chosen), ""))
    rows += [(data, name, "", f"{value:.4f}", "") for name, value in found.items()]
    rows.append((data, "doubt is told", "", "yes" if figures["notes"] else "no", ""))
    return rows


if __name__ == "__main__":
    main()
