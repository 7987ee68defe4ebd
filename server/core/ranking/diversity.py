"""Variety: trades scores against the similarity of items."""

import numpy as np
from numpy.typing import NDArray


def diverse_places(
    scores: NDArray[np.float64], vectors: NDArray[np.float32], diversity: float, count: int
) -> NDArray[np.intp]:
    """The places of at most `count` of R items with `scores` (R,) and embeddings `vectors` (R, D), in order.

    Maximal marginal relevance (Carbonell & Goldstein 1998): scores are scaled to 0..1 over the items; similarity is the
    largest cosine to a chosen item. `diversity` is 0 (scores alone) to 1.
    """
    if not len(scores):
        return np.empty(0, np.intp)
    relevance = (scores - scores.min()) / (np.ptp(scores) or 1.0)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    similarity = np.full(len(scores), -1.0)
    is_left = np.ones(len(scores), bool)
    chosen = []
    for _ in range(min(count, len(scores))):
        marginal = (1.0 - diversity) * relevance - diversity * np.maximum(similarity, 0.0)
        best = int(np.argmax(np.where(is_left, marginal, -np.inf)))
        is_left[best] = False
        chosen.append(best)
        similarity = np.maximum(similarity, vectors @ vectors[best])
    return np.array(chosen, np.intp)
