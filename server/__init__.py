"""The online side: answers `Segment` and `Recommend` over gRPC."""
