"""The signature of a release: `manifest.sig` beside `manifest.json`, an Ed25519 signature (RFC 8032) over its bytes.

The manifest holds the SHA-256 of every other file, so the signature speaks for the whole release. It is the 64 bytes
as they are, so that other tools make and check it as well:

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
"""Not listed in the manifest, since it is made after it."""

_MEND = "publish it again with `segrec-train publish --sign KEY.pem`"


def read_signing_key(path: Path) -> Ed25519PrivateKey:
    """The private key in a PEM file without a password. Raises `SetupError`."""
    how = "make one with `openssl genpkey -algorithm ed25519 -out KEY.pem`"
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise SetupError(f"the signing key {path} cannot be read ({error.strerror}): {how}") from error
    except TypeError as error:
        raise SetupError(f"the signing key {path} is locked by a password: give one without, or {how}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SetupError(f"the signing key {path} is no private key in PEM: {how}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SetupError(f"the signing key {path} is not an Ed25519 key: {how}")
    return key


def read_release_key(path: Path) -> Ed25519PublicKey:
    """The public key in a PEM file that releases must be signed for. Raises `SetupError`."""
    how = "make it from the signing key with `openssl pkey -in KEY.pem -pubout -out PUBLIC.pem`"
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise SetupError(f"release_key {path} cannot be read ({error.strerror}): {how}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SetupError(f"release_key {path} is no public key in PEM: {how}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SetupError(f"release_key {path} is not an Ed25519 key: {how}")
    return key


def sign_manifest(directory: Path, key: Ed25519PrivateKey) -> None:
    """Write the signature of the manifest that is in a directory. Raises OSError."""
    signature = key.sign((directory / "manifest.json").read_bytes())
    (directory / MANIFEST_SIGNATURE).write_bytes(signature)


def check_signature(directory: Path, manifest: bytes, key: Ed25519PublicKey) -> None:
    """See that the holder of the key has signed these bytes of a release's manifest. Raises `DamagedRelease`."""
    path = directory / MANIFEST_SIGNATURE
    try:
        key.verify(path.read_bytes(), manifest)
    except FileNotFoundError as error:
        raise DamagedRelease(f"{path} is missing, and this server takes signed releases alone: {_MEND}") from error
    except OSError as error:
        raise DamagedRelease(f"{path} cannot be read ({error.strerror}): {_MEND}") from error
    except InvalidSignature as error:
        raise DamagedRelease(
            f"{path} was not made for this manifest.json by the key that this server trusts (release_key): {_MEND}"
        ) from error
