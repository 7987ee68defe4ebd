"""The peers' environments: apart from ours, because peers pin libraries to other versions."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Peers:
    """An environment: its directory, and the file of its pins beside this module."""

    directory: Path
    file: str

    @property
    def requirements(self) -> Path:
        return Path(__file__).with_name(self.file)


RECTOOLS = Peers(Path(".peers/rectools"), "requirements.txt")
SERVERS = Peers(Path(".peers/servers"), "servers.txt")
"""LitServe and BentoML."""


def python_of(peers: Peers = RECTOOLS) -> Path:
    """The interpreter of an environment, which is made where it is missing or its pins have changed.

    pip takes torch alone, since only pip can be told where a build without CUDA lies; uv takes the rest.
    """
    python, stamp = peers.directory / "bin" / "python", peers.directory / "requirements.installed"
    pins = peers.requirements.read_text(encoding="utf-8")
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != pins:
        print(f"Installing {peers.file} into {peers.directory} (a minute or two)", file=sys.stderr, flush=True)
        _run(sys.executable, "-m", "venv", "--clear", peers.directory)
        for torch in [line for line in pins.splitlines() if line.startswith("torch==")]:
            _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", torch)
        install = (sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python, "--no-deps")
        _run(*install, "-r", peers.requirements)
        stamp.write_text(pins, encoding="utf-8")
    return python.absolute()


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)
