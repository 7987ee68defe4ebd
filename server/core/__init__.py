"""What both sides compute alike: histories, features, segments, ranking, the values of a release.

Pure: no files, no clock, no network, and no import from the rest of `server`. `core.repository` holds what touches
files.
"""
