"""Answers a request: history store, encoder, nearest segment, ranking; with micro-batches and an embedding cache.

May import `adapters` and `core`; not `releases`, its sibling.
"""
