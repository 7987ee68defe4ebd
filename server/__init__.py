"""The online side: answers `Segment` and `Recommend` over gRPC, with Triton for the inference.

`cli` starts the server that `assembly` builds. The package never imports `training`, torch, scikit-learn or cuML.
"""
