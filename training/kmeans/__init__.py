"""K-means behind one call, `fit.fit_kmeans`: settings choose the engine, the engine finds centroids.

May import `runs`, `config`, `errors` and `metrics`; no torch.
"""
