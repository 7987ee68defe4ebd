"""Reads and writes the files of the model repository for `server` and `training`: releases, traffic, audit log.

May import the other modules of `server.core`.
"""
