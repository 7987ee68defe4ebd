"""Releases in memory: found in the repository, checked and loaded, chosen for a call by traffic, drained.

May import `adapters` and `core`; not `serving`, its sibling.
"""
