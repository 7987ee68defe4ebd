"""The files of the model repository, which `server` and `training` share: releases, signatures, traffic, audit.

May import the rest of `server.core`.
"""
