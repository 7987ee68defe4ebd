"""Installs and checks Triton's own Python environment.

The directory is a virtual environment with two additions: `backends/` (Triton's Python backend with the stub for this
Python version, and Segrec's `onnxruntime` backend, which runs on it) and `segrec-stamp.json`, which is written last.
"""

import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.core.errors import SetupError

DEFAULT_PATH = Path(".triton")
_PACKAGE = Path(__file__).parent
_REQUIREMENTS = _PACKAGE / "requirements.txt"
_OWN_BACKENDS = _PACKAGE / "backends"
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class TritonEnvironment:
    """Paths inside an installed environment."""

    path: Path

    @property
    def python(self) -> Path:
        """The interpreter; the stubs use its packages."""
        return self.path / "bin" / "python"

    @property
    def backends(self) -> Path:
        """Triton's `--backend-directory`."""
        return self.path / "backends"

    @property
    def site_packages(self) -> Path:
        """The directory of the installed packages."""
        return self.path / "lib" / f"python{_PYTHON}" / "site-packages"

    @property
    def server(self) -> Path:
        """The `tritonserver` binary."""
        return self.site_packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    def variables(self) -> dict[str, str]:
        """The environment variables of Triton. The stubs find their interpreter by PATH."""
        libraries = [str(self.site_packages / "nvidia_pytriton.libs"), *_libpython_directories()]
        inherited = {
            key: os.environ[key] for key in ("HOME", "LANG", "TMPDIR", "CUDA_VISIBLE_DEVICES") if key in os.environ
        }
        return {
            **inherited,
            "PATH": f"{self.path / 'bin'}:{os.environ.get('PATH', os.defpath)}",
            "LD_LIBRARY_PATH": ":".join([*libraries, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }


def check_environment(path: Path = DEFAULT_PATH) -> TritonEnvironment:
    """The environment at `path`. Raises `SetupError` when it is missing, incomplete or of another version."""
    stamp = _read_stamp(path)
    if not stamp:
        raise SetupError(f"The Triton environment {path} is missing: run `segrec-triton install`")
    if stamp != _current_stamp() or not TritonEnvironment(path.absolute()).server.is_file():
        raise SetupError(f"The Triton environment {path} is out of date: run `segrec-triton install`")
    return TritonEnvironment(path.absolute())


def install_environment(path: Path = DEFAULT_PATH, report: Callable[[str], None] = lambda _: None) -> TritonEnvironment:
    """Install the environment at `path`, or only the parts that changed.

    `report` receives one sentence per step. Several processes may call this at once. Raises `SetupError`.
    """
    environment = TritonEnvironment(path.absolute())
    with _locked(environment.path):
        stamp, current = _read_stamp(path), _current_stamp()
        if stamp.get("packages") != current["packages"] or not environment.server.is_file():
            (path / "segrec-stamp.json").unlink(missing_ok=True)
            _libpython_directories()
            _install_packages(environment, report)
            stamp = {}
        if stamp.get("backends") != current["backends"]:
            report("copying the backends")
            _copy_backends(environment)
            _write_stamp(path, current)
    return environment


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file beside `path`, so that two installations wait for each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".setup-{path.name.lstrip('.')}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read_stamp(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads((path / "segrec-stamp.json").read_text()))
    except (OSError, ValueError):
        return {}


def _write_stamp(path: Path, stamp: dict[str, str]) -> None:
    temporary = path / "segrec-stamp.json.new"
    temporary.write_text(json.dumps(stamp))
    temporary.rename(path / "segrec-stamp.json")


def _current_stamp() -> dict[str, str]:
    """Hashes of the pins with the interpreter, and of Segrec's backends."""
    backends = hashlib.sha256()
    for file in sorted(_OWN_BACKENDS.rglob("*.py")):
        backends.update(str(file.relative_to(_OWN_BACKENDS)).encode() + b"\0" + file.read_bytes())
    packages = hashlib.sha256(_REQUIREMENTS.read_bytes() + sys.version.encode() + sys.base_prefix.encode())
    return {"packages": packages.hexdigest(), "backends": backends.hexdigest()}


def _libpython_directories() -> list[str]:
    """Directories with the shared libpython; empty when the linker of the system finds it. Raises `SetupError`."""
    name = f"libpython{_PYTHON}.so.1.0"
    library_directory = str(sysconfig.get_config_var("LIBDIR"))
    if (Path(library_directory) / name).exists():
        return [library_directory]
    try:
        ctypes.CDLL(name)
    except OSError:
        raise SetupError(
            f"Triton needs {name}, which this Python ({sys.base_prefix}) lacks: "
            "use a Python built with --enable-shared, such as the one that `uv python install` installs"
        ) from None
    return []


def _install_packages(environment: TritonEnvironment, report: Callable[[str], None]) -> None:
    uv = _find_uv()
    report(f"creating the environment {environment.path} with {'uv' if uv else 'pip'}")
    if uv:
        _run(uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(environment.path))
        install = [uv, "pip", "install", "--quiet", "--python", str(environment.python)]
    else:
        _run(sys.executable, "-m", "venv", "--clear", str(environment.path))
        install = [str(environment.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    report("installing Triton and ONNX Runtime (about 300 MB)")
    _run(*install, "--no-deps", "-r", str(_REQUIREMENTS))


def _find_uv() -> str | None:
    """The `uv` beside this interpreter, else the `uv` on PATH."""
    return shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")


def _run(*command: str) -> None:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode:
        raise SetupError(f"`{' '.join(command)}` failed with exit code {result.returncode}: {result.stdout.strip()}")


def _copy_backends(environment: TritonEnvironment) -> None:
    """Replace the backend directory: the Python backend with the stub for this Python, and Segrec's backends."""
    triton = environment.site_packages / "pytriton" / "tritonserver"
    stub = triton / "python_backend_stubs" / _PYTHON / "triton_python_backend_stub"
    if not stub.is_file():
        raise SetupError(f"This Triton has no stub for Python {_PYTHON}: use Python 3.11, 3.12 or 3.13")
    if environment.backends.exists():
        shutil.rmtree(environment.backends)  # a running Triton keeps its open files
    shutil.copytree(_OWN_BACKENDS, environment.backends, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(triton / "backends" / "python", environment.backends / "python")
    shutil.copyfile(stub, environment.backends / "python" / stub.name)
    (environment.backends / "python" / stub.name).chmod(0o755)
