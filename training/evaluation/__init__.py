"""Evaluation of a run: ranking metrics beside baselines, comparisons of runs, and probes of the user embeddings.

May import `segments` and the packages below it.
"""
