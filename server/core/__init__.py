"""The computations that `server` and `training` share: histories, features, segments, ranking, and release values.

Pure: no files, no clock, no network, and no import from the rest of `server`. `core.repository` holds what touches
files.
"""
