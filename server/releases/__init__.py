"""Releases on disk and in memory: finds, checks, loads and unloads them, and routes requests by the traffic.

May import `adapters` and `core`; not `serving`, its sibling.
"""
