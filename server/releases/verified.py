"""Copies of signed releases, in a directory that only the server writes.

Whoever may write the model repository could change a release after its signature was checked, or put files beside it
that Triton runs: a `config.pbtxt` that names another backend, or a stub. So with a release key the server copies what
is signed, hashes it on the way, writes `config.pbtxt` itself, and Triton reads these copies and nothing else.
"""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from server.core.errors import DamagedRelease, SetupError
from server.core.release import FileRecord, Release
from server.core.repository.layout import MODEL_NAME, write_config
from server.core.repository.read import check_listed, read_manifest, read_release
from server.core.repository.signature import MANIFEST_SIGNATURE

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_STAGING = ".staging"
_CHUNK_BYTES = 1 << 20
_WRITABLE_BY_OTHERS = 0o022


class VerifiedReleases:
    """Reads releases through verified copies. Triton's model repository is `repository`.

    `source` is the directory of the releases, `repository` that of the copies, which others can read if `is_readable`.
    Raises `SetupError` when `repository` cannot be made, or can be written by others.
    """

    def __init__(self, source: Path, repository: Path, key: Ed25519PublicKey, *, is_readable: bool = False) -> None:
        self.repository = repository
        self._source = source
        self._root = repository / MODEL_NAME
        self._staging = repository / _STAGING
        self._key = key
        try:
            repository.mkdir(mode=0o755 if is_readable else 0o700, parents=True, exist_ok=True)
            status = repository.stat()
            if status.st_uid != os.geteuid() or status.st_mode & _WRITABLE_BY_OTHERS:
                raise SetupError(
                    f"verified_directory {repository} can be written by others than the server's user: give the server "
                    "a directory of its own"
                )
            self._root.mkdir(exist_ok=True)
            self.config_path = write_config(repository)
            for copy in self._root.glob("[1-9]*"):
                self.forget(int(copy.name))
        except OSError as error:
            raise SetupError(f"verified_directory {repository} cannot be written: {error.strerror}") from error

    def read(self, number: int) -> Release:
        """Check a release, copy it unless that was done before, and read the copy. Raises `DamagedRelease`."""
        source, copy = self._source / str(number), self._root / str(number)
        manifest = read_manifest(source, self._key)
        try:
            check_listed(source, manifest)
            if not _is_copy_of(copy, source):
                self._copy(source, copy, manifest.files)
        except OSError as error:
            raise DamagedRelease(f"release {source} cannot be copied to {self.repository}: {error.strerror}") from error
        return read_release(copy, self._key)

    def forget(self, number: int) -> None:
        """Remove the copy of an unloaded release that is no longer in the model repository."""
        if not (self._source / str(number)).exists():
            shutil.rmtree(self._root / str(number), ignore_errors=True)

    def _copy(self, source: Path, copy: Path, files: dict[str, FileRecord]) -> None:
        """Copy what the manifest lists; the copy appears whole or not at all."""
        self._staging.mkdir(exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=self._staging)) / copy.name
        try:
            staged.mkdir()
            for name in (MANIFEST, MANIFEST_SIGNATURE):
                (staged / name).write_bytes((source / name).read_bytes())
            for name, record in files.items():
                _copy_file(source / name, staged / name, record)
            if copy.exists():  # an earlier release of the same number, or a damaged copy
                copy.rename(staged.with_name("earlier"))
            staged.rename(copy)
        finally:
            shutil.rmtree(staged.parent, ignore_errors=True)
        log.info("release %s was verified and copied to %s", copy.name, self.repository)


def _is_copy_of(copy: Path, source: Path) -> bool:
    """Whether a copy has the manifest of its source; `read_release` checks its files."""
    try:
        return (copy / MANIFEST).read_bytes() == (source / MANIFEST).read_bytes()
    except OSError:
        return False


def _copy_file(source: Path, copy: Path, record: FileRecord) -> None:
    """Copy a file, and raise `DamagedRelease` unless what was copied is what the manifest records."""
    digest, size = hashlib.sha256(), 0
    with copy.open("xb") as file:
        for chunk in _chunks(source, record.size_bytes):
            digest.update(chunk)
            size += len(chunk)
            file.write(chunk)
    if size != record.size_bytes or digest.hexdigest() != record.sha256:
        raise DamagedRelease(f"{source} is not the file that was published (size or SHA-256 differs): copy it again")


def _chunks(path: Path, size: int) -> Iterator[bytes]:
    """The content of a file in pieces, up to one byte beyond `size`."""
    with path.open("rb") as file:
        left = size + 1
        while left and (chunk := file.read(min(_CHUNK_BYTES, left))):
            left -= len(chunk)
            yield chunk
