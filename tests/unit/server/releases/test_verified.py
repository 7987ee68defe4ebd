"""Verified copies of signed releases: what is copied, what is refused, and who may write them."""

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.core.errors import DamagedRelease, SetupError
from server.core.repository.layout import MODEL_NAME
from server.core.repository.read import read_release
from server.core.repository.signature import sign_manifest
from server.releases.verified import VerifiedReleases
from tests.support.releases import tiny_release

KEY = Ed25519PrivateKey.generate()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A repository with the signed release 1."""
    sign_manifest(tiny_release(tmp_path / "repository", 1), KEY)
    return tmp_path / "repository" / MODEL_NAME


@pytest.fixture
def verified(tmp_path: Path, source: Path) -> VerifiedReleases:
    return VerifiedReleases(source, tmp_path / "verified", KEY.public_key())


def copied(verified: VerifiedReleases) -> set[str]:
    return {path.name for path in (verified.repository / MODEL_NAME).iterdir()}


def test_what_is_read_later_is_what_was_checked(verified: VerifiedReleases, source: Path) -> None:
    assert verified.read(1).number == 1
    copy = verified.repository / MODEL_NAME / "1"
    assert {path.name for path in copy.iterdir()} == {path.name for path in (source / "1").iterdir()}
    (source / "1" / ".#manifest.json").symlink_to("an editor's lock")  # hides nothing, and is not copied
    (source / "1" / "centroids.npy").write_bytes(b"changed")
    assert verified.read(1).number == 1
    assert "centroids.npy" in {path.name for path in copy.iterdir()}
    assert not list((verified.repository / ".staging").iterdir())


@pytest.mark.parametrize("name", ["model.onnx", "items.parquet"])
def test_a_changed_file_is_not_copied(verified: VerifiedReleases, source: Path, name: str) -> None:
    file = source / "1" / name
    for content in (file.read_bytes()[:-1] + b"?", file.read_bytes() + b"?", b""):
        file.write_bytes(content)
        with pytest.raises(DamagedRelease, match=f"{name} is not the file that was published"):
            verified.read(1)
    assert copied(verified) == {"config.pbtxt"}


def test_unsigned_releases_and_unlisted_files_are_refused(verified: VerifiedReleases, source: Path) -> None:
    (source / "1" / "extra.py").write_text("")
    for read in (verified.read, lambda number: read_release(source / str(number))):  # also without a key
        with pytest.raises(DamagedRelease, match=r"holds extra\.py, which its manifest does not list"):
            read(1)
    (source / "1" / "extra.py").unlink()
    (source / "1" / "manifest.sig").unlink()
    with pytest.raises(DamagedRelease, match=r"manifest\.sig is missing"):
        verified.read(1)
    assert copied(verified) == {"config.pbtxt"}


def test_a_damaged_copy_and_a_new_release_of_the_same_number_are_copied_again(
    verified: VerifiedReleases, source: Path, tmp_path: Path
) -> None:
    verified.read(1)
    sign_manifest(tiny_release(tmp_path / "other", 1, items=60), KEY)
    (source / "1").rename(source / "old")
    (tmp_path / "other" / MODEL_NAME / "1").rename(source / "1")
    assert verified.read(1).manifest.item_count == 60


def test_the_copies_of_releases_that_are_gone_are_removed(
    verified: VerifiedReleases, source: Path, tmp_path: Path
) -> None:
    verified.read(1)
    verified.forget(1)
    assert copied(verified) == {"1", "config.pbtxt"}, "the release may be loaded again"
    (source / "1").rename(source / "gone")
    again = VerifiedReleases(source, tmp_path / "verified", KEY.public_key())
    assert copied(again) == {"config.pbtxt"}


def test_a_directory_that_others_may_write_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(SetupError, match="can be written by others"):
        VerifiedReleases(source, tmp_path / "open", KEY.public_key())
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot be written"):
        VerifiedReleases(source, tmp_path / "file", KEY.public_key())


def test_triton_gets_the_configuration_of_this_version(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "verified" / MODEL_NAME / "config.pbtxt"
    for _ in range(2):
        again = VerifiedReleases(source, tmp_path / "verified", KEY.public_key())
        assert again.config_path == target
        assert 'backend: "onnxruntime"' in target.read_text()
        target.write_text("left over from an earlier version")
    mode = os.stat(tmp_path / "verified").st_mode & 0o777
    assert mode == 0o700
