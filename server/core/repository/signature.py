"""The signature of a release: `manifest.sig` beside `manifest.json`, an Ed25519 signature (RFC 8032) over its bytes.

The manifest contains the SHA-256 of every other file, so the signature covers the whole release. The file has the 64
raw bytes of the signature, so that other tools can create and check it:

    openssl genpkey -algorithm ed25519 -out key.pem
    openssl pkey -in key.pem -pubout -out public.pem
    openssl pkeyutl -verify -pubin -inkey public.pem -rawin -in manifest.json -sigfile manifest.sig
"""

from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from server.core.errors import DamagedRelease, SetupError

MANIFEST_SIGNATURE = "manifest.sig"
"""The manifest does not list this file, because the signature is made after the manifest."""

_REMEDY = "publish it again with `segrec-train publish --sign KEY.pem`"


def read_signing_key(path: Path) -> Ed25519PrivateKey:
    """The private key in a PEM file without a password. Raises `SetupError`."""
    remedy = "make one with `openssl genpkey -algorithm ed25519 -out KEY.pem`"
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise SetupError(f"the signing key {path} cannot be read ({error.strerror}): {remedy}") from error
    except TypeError as error:
        raise SetupError(
            f"the signing key {path} has a password: give a key without a password, or {remedy}"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SetupError(f"the signing key {path} is not a private key in PEM format: {remedy}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SetupError(f"the signing key {path} is not an Ed25519 key: {remedy}")
    return key


def read_release_key(path: Path) -> Ed25519PublicKey:
    """The public key, from a PEM file, for the signatures of releases. Raises `SetupError`."""
    remedy = "extract it from the signing key with `openssl pkey -in KEY.pem -pubout -out PUBLIC.pem`"
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise SetupError(f"release_key {path} cannot be read ({error.strerror}): {remedy}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SetupError(f"release_key {path} is not a public key in PEM format: {remedy}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SetupError(f"release_key {path} is not an Ed25519 key: {remedy}")
    return key


def sign_manifest(directory: Path, key: Ed25519PrivateKey) -> None:
    """Sign the manifest in a directory. Raises OSError."""
    signature = key.sign((directory / "manifest.json").read_bytes())
    (directory / MANIFEST_SIGNATURE).write_bytes(signature)


def check_signature(directory: Path, manifest: bytes, key: Ed25519PublicKey) -> None:
    """Check that the signature of a release fits its manifest and the key. Raises `DamagedRelease`."""
    path = directory / MANIFEST_SIGNATURE
    try:
        key.verify(path.read_bytes(), manifest)
    except FileNotFoundError as error:
        raise DamagedRelease(f"{path} is missing, and this server accepts only signed releases: {_REMEDY}") from error
    except OSError as error:
        raise DamagedRelease(f"{path} cannot be read ({error.strerror}): {_REMEDY}") from error
    except InvalidSignature as error:
        raise DamagedRelease(
            f"{path} was not made for this manifest.json by the key that this server trusts (release_key): {_REMEDY}"
        ) from error
