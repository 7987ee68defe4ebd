"""Signed releases: whose signature counts, and what is said of all others."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from server.core.errors import DamagedRelease, SetupError
from server.core.repository.read import read_manifest, read_release
from server.core.repository.signature import MANIFEST_SIGNATURE, read_release_key, read_signing_key, sign_manifest
from tests.support.releases import tiny_release
from tests.support.signing import write_keys


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path)


@pytest.fixture
def signed(tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    directory = tiny_release(tmp_path / "repository", 3)
    sign_manifest(directory, read_signing_key(keys[0]))
    return directory


def test_a_signed_release_is_good_with_the_key_and_without(signed: Path, keys: tuple[Path, Path]) -> None:
    assert read_release(signed, read_release_key(keys[1])).number == 3
    assert read_release(signed).number == 3


def _take_away(signed: Path) -> None:
    (signed / MANIFEST_SIGNATURE).unlink()


def _change_the_manifest(signed: Path) -> None:
    manifest = signed / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"hybrid_weight":0.5', '"hybrid_weight":0.6'))


def _cut(signed: Path) -> None:
    path = signed / MANIFEST_SIGNATURE
    path.write_bytes(path.read_bytes()[:-1])


def _sign_by_another(signed: Path) -> None:
    sign_manifest(signed, read_signing_key(write_keys(signed.parent.parent.parent, "another")[0]))


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (_take_away, "is missing, and this server accepts only signed releases"),
        (_change_the_manifest, "was not made for this manifest.json"),
        (_cut, "was not made for this manifest.json"),
        (_sign_by_another, "was not made for this manifest.json"),
    ],
)
def test_a_release_without_a_valid_signature_is_damaged(
    signed: Path, keys: tuple[Path, Path], harm: Callable[[Path], None], problem: str
) -> None:
    harm(signed)
    with pytest.raises(DamagedRelease, match=problem) as raised:
        read_release(signed, read_release_key(keys[1]))
    assert str(signed / MANIFEST_SIGNATURE) in str(raised.value)
    assert "segrec-train publish --sign" in str(raised.value)


def test_nothing_of_an_unsigned_manifest_is_read(signed: Path, keys: tuple[Path, Path]) -> None:
    (signed / "manifest.json").write_text("{")
    with pytest.raises(DamagedRelease, match="was not made for"):
        read_manifest(signed, read_release_key(keys[1]))


def test_a_changed_file_is_found_despite_a_valid_signature(signed: Path, keys: tuple[Path, Path]) -> None:
    (signed / "segments.json").write_text("[]")
    with pytest.raises(DamagedRelease, match=r"segments\.json is not the file that was published"):
        read_release(signed, read_release_key(keys[1]))


@pytest.mark.parametrize(
    ("read", "content", "problem"),
    [
        (read_signing_key, None, "cannot be read"),
        (read_signing_key, "rubbish", "not a private key in PEM format"),
        (read_release_key, None, "cannot be read"),
        (read_release_key, "rubbish", "not a public key in PEM format"),
    ],
)
def test_a_key_that_cannot_be_read_gives_a_clear_error(
    tmp_path: Path, read: Callable[[Path], object], content: str | None, problem: str
) -> None:
    path = tmp_path / "k.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SetupError, match=rf"k\.pem.*{problem}.*openssl"):
        read(path)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def test_the_keys_and_the_signature_are_those_of_openssl(tmp_path: Path, signed: Path) -> None:
    private, public = tmp_path / "o.pem", tmp_path / "o-public.pem"
    _openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    _openssl("pkey", "-in", private, "-pubout", "-out", public)
    sign_manifest(signed, read_signing_key(private))
    read_release(signed, read_release_key(public))
    given = ("-in", signed / "manifest.json", "-sigfile", signed / MANIFEST_SIGNATURE)
    _openssl("pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", *given)


def test_keys_of_other_kinds_and_locked_ones_are_refused(tmp_path: Path) -> None:
    private, public, locked = tmp_path / "e.pem", tmp_path / "e-public.pem", tmp_path / "locked.pem"
    _openssl("genpkey", "-algorithm", "x25519", "-out", private)
    _openssl("pkey", "-in", private, "-pubout", "-out", public)
    _openssl("genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:secret", "-out", locked)
    for read, path, problem in (
        (read_signing_key, private, "not an Ed25519 key"),
        (read_release_key, public, "not an Ed25519 key"),
        (read_signing_key, locked, "has a password"),
    ):
        with pytest.raises(SetupError, match=problem):
            read(path)
