"""Public logs as CSV, TSV, NDJSON, Parquet and gzip, in parts and in other encodings: `prepare` gives the same events.

    python -m tests.benchmarks.bench_formats --logs ml-100k deskdrop

For each log and form: the rows of the account, which adds up or `prepare` fails, and the sha256 of the prepared events,
which must be the same in all forms. Logs are read from `../shared/data`, which is not part of the project. Exit code 1
if a form differs, 2 if a log is missing. Ends in one JSON line.
"""

import argparse
import gzip
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.table import Table

from training.config import Config
from training.data.prepare import prepare
from training.runs import Run

DATA = Path("../shared/data")
LOGS = ("ml-100k", "deskdrop", "taobao-sample", "beauty", "online-retail", "ml-1m")


def _write_parts(log: pl.DataFrame, path: Path) -> None:
    path.mkdir()
    for number, part in enumerate(log.iter_slices(len(log) // 3 + 1)):
        part.write_csv(path / f"part-{number}.csv")


FORMS: Mapping[str, tuple[str, Callable[[pl.DataFrame, Path], object]]] = {
    "parquet": ("log.parquet", lambda log, path: log.write_parquet(path)),
    "csv": ("log.csv", lambda log, path: log.write_csv(path)),
    "csv, quoted, CR LF": (
        "log.csv",
        lambda log, path: log.write_csv(path, quote_style="always", line_terminator="\r\n"),
    ),
    "tsv, stray quotes": (
        "log.tsv",
        lambda log, path: log.with_columns(note=pl.lit('7"')).write_csv(path, separator="\t", quote_style="never"),
    ),
    "csv, semicolons, UTF-16": ("log.csv", lambda log, path: path.write_text(log.write_csv(separator=";"), "utf-16")),
    "csv.gz": ("log.csv.gz", lambda log, path: path.write_bytes(gzip.compress(log.write_csv().encode(), 1))),
    "tsv": ("log.tsv", lambda log, path: log.write_csv(path, separator="\t")),
    "ndjson": ("log.ndjson", lambda log, path: log.write_ndjson(path)),
    "ndjson.gz": ("log.ndjson.gz", lambda log, path: path.write_bytes(gzip.compress(log.write_ndjson().encode(), 1))),
    "parts": ("parts", _write_parts),
}


def events_of(path: Path, directory: Path) -> tuple[str, int, int]:
    """The sha256 of the events that `prepare` writes, and the account's rows in and out."""
    result = prepare(Run.create(directory / "runs"), path, None, None, Config())
    events = pl.read_parquet(result.directory / "events.parquet")
    digest = hashlib.sha256(events.write_csv().encode()).hexdigest()
    return digest, result.account.rows_in, result.account.rows_out


def main() -> None:
    """Read every log in every form, and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logs", nargs="+", default=list(LOGS))
    asked = parser.parse_args()
    missing = [name for name in asked.logs if not (DATA / name).is_dir()]
    if missing:
        print(f"Not there: {', '.join(str(DATA / name) for name in missing)}; nothing was read.")
        sys.exit(2)
    table = Table("log", "form", "rows in", "rows out", "seconds", "sha256")
    figures: dict[str, dict[str, str]] = {}
    for name in asked.logs:
        log = pl.read_parquet(DATA / name / "interactions.parquet")
        for form, (file, write) in FORMS.items():
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory) / file
                write(log, path)
                start = time.perf_counter()
                digest, rows_in, rows_out = events_of(path, Path(directory))
                seconds = time.perf_counter() - start
            figures.setdefault(name, {})[form] = digest
            table.add_row(name, form, f"{rows_in:,}", f"{rows_out:,}", f"{seconds:.1f}", digest[:16])
    Console().print(table)
    alike = {name: len(set(digests.values())) == 1 for name, digests in figures.items()}
    print(json.dumps({"benchmark": "formats", "alike": alike, "sha256": figures}))
    sys.exit(0 if all(alike.values()) else 1)


if __name__ == "__main__":
    main()
