"""Reads a release from its directory, and checks signature, sizes, SHA-256, shapes and values."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from server.core.errors import DamagedRelease
from server.core.item_search import SearchLists
from server.core.next_visit import ITEM_STATISTICS, NextVisitModel
from server.core.profiles import Migration, SegmentProfile
from server.core.release import (
    FILES,
    GROUP,
    ITEM_HASH,
    MIGRATION,
    RANKING,
    SCHEMA_VERSION,
    SEARCH_LISTS,
    TREND,
    FileRecord,
    Manifest,
    RankedItems,
    Release,
    with_item_hashes,
)
from server.core.repository.layout import read_preprocessing
from server.core.repository.signature import MANIFEST_SIGNATURE, check_signature
from server.core.segments import segment_part

HASH_SAMPLE = 100
"""Approximate number of item hashes that are computed again to check a release."""
_ITEM_COLUMNS = {"item_id", "title", "category", "popularity", GROUP, ITEM_HASH}


class _SchemaVersion(BaseModel):
    """The key of `manifest.json` that is read first, because it decides which other keys there are."""

    schema_version: int


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_of(path: Path) -> FileRecord:
    """The manifest's record of a file."""
    return FileRecord(sha256=sha256_of(path), size_bytes=path.stat().st_size)


def read_release(directory: Path, key: Ed25519PublicKey | None = None) -> Release:
    """Read and check a release. Raises `DamagedRelease`.

    With a `key`, a release without a valid signature is refused before any other file is read.
    """
    try:
        manifest = read_manifest(directory, key)
        _check_files(directory, manifest)
        release = Release(
            manifest,
            read_preprocessing(directory),
            pl.read_parquet(directory / "items.parquet"),
            _read_array(directory / "item_embeddings.npy"),
            _read_array(directory / "centroids.npy"),
            _read_segments(directory / "segments.json"),
            _read_segment_items(directory / "segment_items.parquet"),
            _read_migration(directory / MIGRATION) if MIGRATION in manifest.files else None,
            _read_ranking(directory / RANKING) if RANKING in manifest.files else None,
            read_search_lists(directory / SEARCH_LISTS) if SEARCH_LISTS in manifest.files else None,
        )
        _check_shapes(release)
        release.warm()
    except DamagedRelease:
        raise
    except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
        raise DamagedRelease(f"release {directory} cannot be read: {_first_line(error)}") from error
    return release


def read_manifest(directory: Path, key: Ed25519PublicKey | None = None) -> Manifest:
    """Read `manifest.json` alone; see `read_release`. Raises `DamagedRelease`."""
    path = directory / "manifest.json"
    try:
        text = path.read_bytes()
        if key is not None:
            check_signature(directory, text, key)
        schema_version = _SchemaVersion.model_validate_json(text).schema_version
        if schema_version != SCHEMA_VERSION:
            raise DamagedRelease(
                f"{path} has schema version {schema_version} and this build reads {SCHEMA_VERSION}: "
                "publish the run again with the `segrec-train` of this version"
            )
        manifest = Manifest.model_validate_json(text)
    except FileNotFoundError as error:
        raise DamagedRelease(f"release {directory} has no manifest.json: the copy is not complete") from error
    except (OSError, ValidationError) as error:
        raise DamagedRelease(f"{path} cannot be read: {_first_line(error)}") from error
    if str(manifest.release) != directory.name:
        raise DamagedRelease(
            f"{path} belongs to release {manifest.release}, but its directory is named {directory.name}"
        )
    return manifest


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_listed(directory: Path, manifest: Manifest) -> None:
    """Raises `DamagedRelease` for a file in a release that its manifest does not list, and OSError.

    Names that begin with a dot are let pass: editors and file systems leave such files, and nothing reads them.
    """
    names = {path.name for path in directory.iterdir() if not path.name.startswith(".")}
    unlisted = names - {*manifest.files, "manifest.json", MANIFEST_SIGNATURE}
    if unlisted:
        raise DamagedRelease(
            f"release {directory} holds {min(unlisted)}, which its manifest does not list: remove the file, or copy "
            "the release again"
        )


def _check_files(directory: Path, manifest: Manifest) -> None:
    check_listed(directory, manifest)
    missing = sorted(set(FILES) - set(manifest.files))
    if missing:
        raise DamagedRelease(f"the manifest of {directory} lacks {', '.join(missing)}")
    for name, record in manifest.files.items():
        path = directory / name
        if Path(name).name != name or not path.is_file():
            raise DamagedRelease(f"release {directory} lacks {name}: copy it again")
        if path.stat().st_size != record.size_bytes or sha256_of(path) != record.sha256:
            raise DamagedRelease(f"{path} is not the file that was published (size or SHA-256 differs): copy it again")


def _read_array(path: Path) -> NDArray[Any]:
    return np.ascontiguousarray(np.load(path, allow_pickle=False))


def _read_segments(path: Path) -> tuple[SegmentProfile, ...]:
    return tuple(SegmentProfile.model_validate(entry) for entry in json.loads(path.read_bytes()))


def _read_migration(path: Path) -> Migration:
    return Migration.model_validate_json(path.read_bytes())


def _read_ranking(path: Path) -> NextVisitModel:
    return NextVisitModel.model_validate_json(path.read_bytes())


def read_search_lists(path: Path) -> SearchLists:
    """Read `search_lists.npz`. Raises OSError, KeyError and ValueError."""
    with np.load(path, allow_pickle=False) as arrays:
        return SearchLists(arrays["centroids"], arrays["list_of_item"], int(arrays["probes"]), float(arrays["recall"]))


def _read_segment_items(path: Path) -> dict[int, RankedItems]:
    frame = pl.read_parquet(path)
    return {
        int(segment_id): RankedItems(
            part["item_index"].to_numpy().astype(np.int32),
            part["score"].to_numpy().astype(np.float32),
        )
        for (segment_id,), part in frame.partition_by("segment_id", as_dict=True, maintain_order=True).items()
    }


def _check_shapes(release: Release) -> None:
    manifest, where = release.manifest, f"release {release.number}"
    items = (manifest.item_count, manifest.embedding_dim)
    golden = np.array(manifest.golden.user_embedding, np.float32)
    if golden.ndim != 2 or golden.shape[1] < manifest.embedding_dim:
        raise DamagedRelease(f"{where}: golden embeddings must be rows of {manifest.embedding_dim} numbers or more")
    segments = (manifest.segment_count, segment_part(golden, manifest.embedding_dim).shape[1])
    checks: list[tuple[str, Any, Any]] = [
        ("items.parquet rows", release.items.height, manifest.item_count),
        ("item_embeddings.npy shape", release.item_embeddings.shape, items),
        ("centroids.npy shape", release.centroids.shape, segments),
        ("segments.json entries", len(release.segments), manifest.segment_count),
        ("preprocessing.json max_length", release.preprocessing.max_length, manifest.max_length),
        ("distinct segment ids", len({s.segment_id for s in release.segments}), manifest.segment_count),
    ]
    for name, actual, expected in checks:
        if actual != expected:
            raise DamagedRelease(f"{where}: {name} is {actual}, but the manifest says {expected}")
    needed = _ITEM_COLUMNS | (set(ITEM_STATISTICS) if release.next_visit else set())
    if missing := needed - set(release.items.columns):
        raise DamagedRelease(f"{where}: items.parquet lacks {', '.join(sorted(missing))}: publish the run again")
    arrays = {"item_embeddings.npy": release.item_embeddings, "centroids.npy": release.centroids}
    arrays["statistics in items.parquet"] = release.item_tables.statistics
    for name, array in (arrays | {f"{TREND} of items.parquet": release.trend}).items():
        if array is not None and (array.dtype != np.float32 or not np.isfinite(array).all()):
            raise DamagedRelease(f"{where}: {name} must hold finite float32 numbers")
    _check_groups(release)
    if release.search_lists is not None:
        release.search_lists.check(manifest.item_count, manifest.embedding_dim + (release.trend is not None))
    for ranked in release.segment_items.values():
        listed = ranked.item_index
        if len(listed) and not 1 <= listed.min() <= listed.max() <= manifest.item_count:
            raise DamagedRelease(f"{where}: segment_items.parquet has items that are not in the catalogue")
    described = {item.item_id for s in release.segments for item in (*s.top_items, *s.particular_items)}
    if unknown := described - release.vocabulary.keys():
        raise DamagedRelease(
            f"{where}: segments.json has an item that is not in the catalogue: {min(unknown)!r}; publish the run again"
        )
    hashes, step = release.items[ITEM_HASH], 1 + release.items.height // HASH_SAMPLE
    sample = pl.concat([release.items.gather_every(step), release.items.tail(1)])
    if hashes.dtype != pl.UInt64 or hashes.null_count() or not sample.equals(with_item_hashes(sample)):
        raise DamagedRelease(f"{where}: items.parquet has wrong values of {ITEM_HASH}: publish the run again")


def _check_groups(release: Release) -> None:
    """Each item's group must be named by the row of the group's first item."""
    groups = release.items[GROUP]
    rows = np.arange(release.items.height)
    named = groups.to_numpy()
    is_row = groups.dtype == pl.Int32 and not groups.null_count() and bool(((named >= 0) & (named <= rows)).all())
    if not is_row or (named[named] != named).any():
        raise DamagedRelease(f"release {release.number}: items.parquet has wrong values of {GROUP}: publish it again")
