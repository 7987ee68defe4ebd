"""Every module that opens files of people is a reader of the table of cases."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.contract.reading.readers import PREPARED, READERS

ROOT = Path(__file__).parents[2]
FOLDERS = ("protos/segrec", "server", "training", "deploy")
OPENERS = {
    *("scan_csv", "scan_ndjson", "scan_parquet", "scan_delta", "scan_iceberg", "read_csv", "read_ndjson", "read_json"),
    *("read_parquet", "read_excel", "read_database_uri", "csv.reader", "csv.DictReader", "gzip.GzipFile"),
    *("TextFile", "Delimited", "json_values", "open_table", "scan_table", "json_rows"),
}
OWN_FILES = frozenset(
    f"{package}.{name}"
    for package, names in {
        "deploy": "api_page demo",
        "segrec.cli.files": "output_file",
        "server.adapters": "store_export",
        "server.core.repository": "audit read",
        "training.data": "contract demo nightly origin sequences text_encoders",
        "training.derive": "fuse",
        "training.evaluation": "compare evaluate probe",
        "training.facade": "trained_run",
        "training.fit": "train",
        "training.model": "category_tower",
        "training.offline": "parts_file users",
        "training.privacy": "prune_runs tables",
        "training.publish": "active_gate rule_gate",
        "training.reports": "members",
        "training.reports.segments": "content people",
        "training.tune": "rules",
        "training.segments": "drift_reference files previous_release segment",
    }.items()
    for name in names.split()
)
"""Modules that open only what Segrec itself, or a package, wrote: runs, releases, answers, the demo's data."""


def opens_files(path: Path) -> bool:
    """Whether a module opens tables, or reads JSON line by line."""
    return any(_is_opener(node) or _is_json_in_a_loop(node) for node in ast.walk(ast.parse(path.read_text())))


def _is_opener(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func)
    return name in OPENERS or name.split(".")[-1] in OPENERS


def _is_json_in_a_loop(node: ast.AST) -> bool:
    if not isinstance(node, ast.For | ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp):
        return False
    lines = ast.unparse(node.iter if isinstance(node, ast.For) else node.generators[0].iter)
    return "json.loads" in ast.unparse(node) and "json.loads" not in lines


def modules() -> Iterator[tuple[str, Path]]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT / "protos" if folder.startswith("protos") else ROOT)
            yield ".".join(relative.with_suffix("").parts), path


def test_every_module_that_opens_files_is_a_reader_of_the_table() -> None:
    opening = {name for name, path in modules() if opens_files(path)}
    registered = {module for reader in (*READERS, PREPARED) for module in reader.modules}
    assert opening - registered - OWN_FILES == set(), "add a reader to tests/contract/reading/readers.py"
    assert (registered | OWN_FILES) - opening == set(), "these open no files any more"
