"""K-means behind one call, `fit.fit`: scikit-learn, cuML or Dask do the work.

May import `runs`, `config`, `errors` and `metrics`; no torch.
"""
