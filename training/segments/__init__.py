"""From user embeddings to segments: clustering, stable ids, confidence, the choice of k, and the previous release.

May import `fit`, `ranking` and what stands below them.
"""
