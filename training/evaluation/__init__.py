"""How good a run is: metrics on held-out events beside baselines, comparisons of runs, probes of user embeddings.

May import `segments` and what stands below it.
"""
