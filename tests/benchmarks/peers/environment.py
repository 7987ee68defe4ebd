"""The peers' environment: apart from ours, because RecTools pins NumPy, pandas and Lightning to older ones."""

import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
DIRECTORY = Path(".peers/rectools")


def python_of(directory: Path = DIRECTORY) -> Path:
    """The interpreter of the peer's environment, which is made where it is missing or its pins have changed.

    pip takes torch alone, since only pip can be told where a build without CUDA lies; uv takes the rest.
    """
    python, stamp = directory / "bin" / "python", directory / "requirements.installed"
    pins = REQUIREMENTS.read_text(encoding="utf-8")
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != pins:
        print(f"Installing RecTools into {directory} (a minute or two)", file=sys.stderr, flush=True)
        torch = next(line for line in pins.splitlines() if line.startswith("torch=="))
        _run(sys.executable, "-m", "venv", "--clear", directory)
        _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", torch)
        _run(
            sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python, "--no-deps", "-r", REQUIREMENTS
        )
        stamp.write_text(pins, encoding="utf-8")
    return python


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)
