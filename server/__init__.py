"""The online side: answers `Segment` and `Recommend` over gRPC with Triton doing the inference.

`cli` starts what `assembly` puts together. It never imports `training`, torch, scikit-learn or cuML.
"""
