"""One request: from the history store through the encoder to an answer; micro-batches and the embedding cache.

May import `adapters` and `core`; not `releases`, its sibling.
"""
