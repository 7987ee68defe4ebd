"""What the serving benchmarks share: the machine, a release of realistic size, users, and how figures are shown."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import torch
from onnx import numpy_helper
from rich.console import Console
from rich.table import Table

from server.core.release import Golden, Manifest
from server.core.repository.layout import EVENTS_MARK, WITH_CLOCK
from server.core.repository.read import record_of
from server.core.segments import normalised
from tests.support.releases import ACTIONS, encode_with_onnx, item_id, tiny_release
from training.config import Config, SplitSettings, VisitSettings
from training.model.encoder import Encoder, EncoderShape
from training.model.export import random_inputs, write_onnx
from training.model.forecast import RANK
from training.model.user_encoder import BAG_DIM, BAG_HISTORY, SegmentEmbedding, UserEncoder

ITEMS = 20_000
MAX_LENGTH = 50
"""Of what the encoder's blocks read."""
DIM = 64
SEGMENTS = 32
START_MS = 1_700_000_000_000


def machine() -> dict[str, str]:
    """Where and on what the figures were taken."""
    model = next((line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")), "unknown")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "cpu": f"{len(os.sched_getaffinity(0))} × {model}",
        **gpu,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "unknown",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def by_last_event(config: Config) -> Config:
    """The settings that papers evaluate by: the last event is held out, and the file tells the order of tied events."""
    changes = {"split": SplitSettings(method="leave_one_out"), "visits": VisitSettings(ordered=True)}
    return config.model_copy(update=changes)


def anonymous_mib(pid: int) -> float:
    """What a process holds beside files, in MiB: the history store is a mapped file, which counts as it is read."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], figures: Mapping[str, object]) -> None:
    """Print a table for people, then one JSON line with the figures and the machine."""
    print_table(title, columns, rows)
    print(json.dumps({**figures, **machine()}))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table for people, and the machine."""
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name == columns[0] else "right")
    for row in rows:
        table.add_row(*(f"{cell:,.2f}" if isinstance(cell, float) else str(cell) for cell in row))
    console = Console()
    if not console.is_terminal:  # a file has no width, and 80 columns cut names off
        console = Console(width=140)
    console.print(table)
    console.print(", ".join(f"{key} {value}" for key, value in machine().items()))


def realistic_release(repository: Path, number: int = 1) -> Path:
    """A release with the encoder of a usual size and random weights: what it costs does not depend on what it knows.

    Each number has weights, centroids and items of its own.
    """
    directory = tiny_release(repository, number, items=ITEMS, dim=DIM, segments=SEGMENTS, max_length=BAG_HISTORY)
    staged = directory.rename(repository / f"staged-{number}")
    torch.manual_seed(number)
    shape = EncoderShape(ITEMS, len(ACTIONS), MAX_LENGTH, DIM, layers=2, heads=2)
    bag = torch.randn(ITEMS + 1, BAG_DIM)
    bag[0] = 0.0  # padding
    places = torch.arange(ITEMS + 1, dtype=torch.int32)[:, None]
    forecast = torch.randn(2 * DIM + BAG_DIM, RANK), torch.zeros(RANK)
    parts = SegmentEmbedding(torch.zeros(2, DIM), places, bag, *forecast)
    encoder = UserEncoder(Encoder(shape), parts).eval()
    write_onnx(encoder, staged / "model.onnx")
    rng = np.random.default_rng(number)
    centroids = normalised(rng.normal(size=(SEGMENTS, encoder.segment_dim))).astype(np.float32)
    np.save(staged / "centroids.npy", centroids)
    np.save(staged / "item_embeddings.npy", encoder.item_embeddings().detach().numpy())
    inputs = random_inputs(encoder, 4, 8, 0)
    golden = Golden(
        **{name: array.tolist() for name, array in inputs.items()},
        user_embedding=encode_with_onnx(staged / "model.onnx", inputs).tolist(),
    )
    _write_manifest(staged, {"golden": golden})
    return staged.rename(directory)


def another_release(release: Path, number: int) -> Path:
    """A release beside `release` with all of its weights changed, in a twentieth of the time that an export takes."""
    directory = release.with_name(str(number))
    shutil.copytree(release, directory)
    rng = np.random.default_rng(number)
    model = onnx.load(directory / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            weights = numpy_helper.to_array(tensor)
            changed = weights * rng.normal(1.0, 0.2, size=weights.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    onnx.save(model, directory / "model.onnx")
    centroids = np.load(directory / "centroids.npy")
    changed = normalised(centroids + rng.normal(scale=0.05, size=centroids.shape)).astype(np.float32)
    np.save(directory / "centroids.npy", changed)
    items = np.load(directory / "item_embeddings.npy")
    np.save(directory / "item_embeddings.npy", (items * rng.normal(1.0, 0.2, size=items.shape)).astype(np.float32))
    golden = Manifest.model_validate_json((directory / "manifest.json").read_bytes()).golden
    embeddings = encode_with_onnx(directory / "model.onnx", golden.inputs()).tolist()
    _write_manifest(directory, {"release": number, "golden": golden.model_copy(update={"user_embedding": embeddings})})
    return directory


def _write_manifest(directory: Path, update: Mapping[str, object]) -> None:
    """Change the manifest of a release, and have it hold what its files are now."""
    manifest = Manifest.model_validate_json((directory / "manifest.json").read_bytes())
    files = {name: record_of(directory / name) for name in manifest.files}
    changed = manifest.model_copy(update={**update, "files": files})
    (directory / "manifest.json").write_text(changed.model_dump_json())


def write_histories(path: Path, users: int, seed: int = 0) -> list[str]:
    """A prepared log of histories of mixed lengths, 20 events on average, 1 to 200; returns the user ids."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.geometric(1 / 20, users), 1, 200)
    total = int(lengths.sum())
    user_ids = [f"user-{number:08d}" for number in range(users)]
    items = np.array([item_id(number) for number in range(1, ITEMS + 1)])
    place = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    pl.DataFrame(
        {
            "user_id": np.repeat(np.array(user_ids), lengths),
            "item_id": items[rng.integers(0, ITEMS, total)],
            "action": np.array(list(ACTIONS))[rng.integers(0, 3, total)],
            "value": rng.lognormal(1, 1, total),
            "timestamp": START_MS + place * 3_600_000,
        }
    ).write_parquet(path, metadata={EVENTS_MARK: WITH_CLOCK})
    return user_ids
