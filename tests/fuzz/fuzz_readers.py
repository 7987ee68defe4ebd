"""Coverage-guided fuzzing of the client's readers: `python -m tests.fuzz.fuzz_readers --seconds 600`.

Bytes of any kind are read as users and as events. Every outcome but rows and InvalidArgument is a fault: the run ends
with its traceback and exit code 77, and keeps the bytes in a file that it names. Needs atheris, which has wheels for
Linux on x86-64.
"""

import argparse
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["segrec.reading", "segrec.cli"]):
    from segrec.cli.files.input_file import InputFile
    from segrec.cli.files.reading_options import Rules
    from segrec.cli.record import OPTIONAL, REQUIRED, event_of
    from segrec.errors import InvalidArgument

from tests.contract.reading.cases import CASES

_SUFFIXES = ("csv", "tsv", "txt", "ndjson")
_MOST_BYTES = 4096
_SECONDS_FOR_ONE = 10


def read(path: Path) -> None:
    """Read the file as users and as events."""
    rules = Rules()
    with suppress(InvalidArgument), InputFile(str(path), rules) as file:
        assert all(isinstance(user.user_id, str) for user in file.users())
    with suppress(InvalidArgument), InputFile(str(path), rules) as file:
        for row in file.rows(REQUIRED, OPTIONAL):
            with suppress(InvalidArgument):  # the row is refused
                event = event_of(row.values, "", rules)
                assert event.user_id
                assert event.event.item_id


def main() -> None:
    """Fuzz for as many seconds as the command line says; seeds are the files of the table of cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, required=True)
    seconds = parser.parse_args().seconds
    folder = Path(tempfile.mkdtemp(prefix="segrec-fuzz-"))
    seeds = folder / "seeds"
    seeds.mkdir()
    for number, case in enumerate(case for case in CASES if len(case.content) < _MOST_BYTES):
        suffix = Path(case.file.removesuffix(".gz").removesuffix(".zst")).suffix.removeprefix(".").lower()
        kind = _SUFFIXES.index(suffix) if suffix in _SUFFIXES else 0
        (seeds / str(number)).write_bytes(bytes([kind]) + case.content)

    def one(data: bytes) -> None:
        path = folder / f"log.{_SUFFIXES[data[0] % len(_SUFFIXES)] if data else 'csv'}"
        path.write_bytes(data[1:])
        read(path)

    options = {"max_total_time": seconds, "max_len": _MOST_BYTES, "timeout": _SECONDS_FOR_ONE, "print_final_stats": 1}
    flags = [f"-{name}={value}" for name, value in options.items()]
    atheris.Setup([sys.argv[0], *flags, f"-artifact_prefix={folder}/", str(seeds)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
