"""Checks the protos and generates their Python code: `python deploy/protos.py generate`, `check` or `breaking`.

buf and protoc read Google's protos, which ours import, from the installed googleapis-common-protos, not from a network.
"""

import argparse
import filecmp
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import files
from importlib.resources import files as resources
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = Path("protos", "segrec", "v1")
_BIN = Path(sys.executable).parent
_WORKSPACE = """version: v2
modules:
  - path: protos
    lint: {use: [STANDARD, COMMENTS]}
    breaking: {use: [FILE]}
  - path: google
    lint: {ignore: [google]}
    breaking: {ignore: [google]}
"""


def main() -> int:
    """Runs the command; returns the exit code."""
    commands = {"generate": generate, "check": check, "breaking": breaking}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=commands)
    parser.add_argument("--root", type=Path, default=ROOT, help="a checkout of the repository; default this one")
    arguments = parser.parse_args()
    return commands[arguments.command](arguments.root)


def generate(root: Path) -> int:
    """Formats the protos and writes their code beside them."""
    _run(_BIN / "buf", "format", "-w", root / "protos")
    _protoc(root, root / "protos")
    return 0


def check(root: Path) -> int:
    """Lints the protos; 1 when they are not formatted, or when the code beside them is not what they give."""
    with _workspace(root / "protos") as workspace, tempfile.TemporaryDirectory() as fresh:
        _run(_BIN / "buf", "lint", workspace)
        _run(_BIN / "buf", "format", "-d", "--exit-code", root / "protos")
        _protoc(root, Path(fresh))
        names = [path.name for path in Path(fresh, "segrec", "v1").iterdir()]
        _, stale, missing = filecmp.cmpfiles(Path(fresh, "segrec", "v1"), root / PACKAGE, names, shallow=False)
    if stale or missing:
        print(f"error: generated code is stale: run 'make protos' and commit: {', '.join(stale + missing)}")
    return 1 if stale or missing else breaking(root)


def breaking(root: Path) -> int:
    """1 when the protos break callers of the last release, the newest tag `v*` that this commit comes after."""
    tag = _git(root, "describe", "--tags", "--abbrev=0", "--match", "v*")
    if not tag:
        print("protos: there is no tag v*, so there is nothing yet that a change could break; compared with nothing")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch, "released.tar")
        _run("git", "-C", root, "archive", "--output", archive, tag, "protos")
        shutil.unpack_archive(archive, scratch, filter="data")
        with _workspace(root / "protos") as now, _workspace(Path(scratch, "protos")) as released:
            result = subprocess.run([_BIN / "buf", "breaking", now, "--against", released], check=False)
    if result.returncode:
        print(f"error: the protos break callers of {tag}: see docs/API_STABILITY.md")
    return min(result.returncode, 1)


@contextmanager
def _workspace(protos: Path) -> Iterator[Path]:
    """A folder that buf understands: the protos and, beside them, those that they import from Google."""
    with tempfile.TemporaryDirectory() as name:
        workspace = Path(name)
        (workspace / "buf.yaml").write_text(_WORKSPACE)
        shutil.copytree(protos, workspace / "protos", ignore=shutil.ignore_patterns("*.py*", "__pycache__"))
        for folder in ("api", "rpc"):
            (workspace / "google" / "google" / folder).mkdir(parents=True)
        for path in _google_protos():
            shutil.copy(path, workspace / "google" / "google" / path.parent.name)
        yield workspace


def _google_protos() -> list[Path]:
    """The files of googleapis-common-protos that the protos may import."""
    installed = files("googleapis-common-protos") or ()
    wanted = ("annotations.proto", "field_behavior.proto", "http.proto", "status.proto", "error_details.proto")
    return [
        Path(str(file.locate())) for file in installed if file.name in wanted and file.parent.name in ("api", "rpc")
    ]


def describe(root: Path, target: Path) -> None:
    """Writes the FileDescriptorSet of the protos, with their comments, to a file."""
    _compile(root, [f"--descriptor_set_out={target}", "--include_source_info"])


def _protoc(root: Path, target: Path) -> None:
    out = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    plugin = [f"--plugin=protoc-gen-mypy_grpc={_BIN / 'protoc-gen-mypy_grpc'}", f"--mypy_grpc_out=quiet:{target}"]
    _compile(root, [*out, *plugin])


def _compile(root: Path, options: list[str]) -> None:
    google = _google_protos()[0].parent.parent.parent
    well_known = resources("grpc_tools") / "_proto"
    include = [f"-I{root / 'protos'}", f"-I{google}", f"-I{well_known}"]
    sources = sorted((root / PACKAGE).glob("*.proto"))
    _run(sys.executable, "-m", "grpc_tools.protoc", *include, *options, *sources)


def _git(root: Path, *words: str) -> str:
    """What git says; empty when it fails."""
    return subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=False).stdout.strip()


def _run(*command: str | Path) -> None:
    """Ends the program with the command's exit code when it fails; the command has said why."""
    result = subprocess.run(list(map(str, command)), check=False)
    if result.returncode:
        raise SystemExit(result.returncode)


if __name__ == "__main__":
    sys.exit(main())
