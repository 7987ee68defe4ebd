"""Compressed bytes that are the same in every process: pytest names tests by them."""

import gzip


def gz(data: bytes) -> bytes:
    """`data` as gzip, without the time."""
    return gzip.compress(data, mtime=0)
