"""How much each caption agrees with the others of the same media.

MSR-VTT has 20 captions a clip, some careless. Drawing captions in proportion to their consensus
(Phan et al. 2017, arXiv 1712.09532, use CIDEr as the weight) trains on what people agree on.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

__all__ = ["consensus"]

Grams = tuple[str, ...]


def consensus(captions: Sequence[Sequence[str]]) -> list[list[float]]:
    """For each caption of each media, its mean tf-idf n-gram cosine with the others (n = 1..4)."""
    counted = [[_grams(caption) for caption in group] for group in captions]
    documents: Counter[Grams] = Counter()
    for group in counted:
        documents.update({gram for grams in group for gram in grams})
    log_total = math.log(max(len(captions), 2))
    return [_agreement(group, documents, log_total) for group in counted]


def _grams(caption: str) -> Counter[Grams]:
    words = caption.lower().split()
    return Counter(tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1))


def _agreement(
    group: list[Counter[Grams]], documents: Counter[Grams], log_total: float
) -> list[float]:
    vectors: list[list[dict[Grams, float]]] = []
    for grams in group:
        by_order: list[dict[Grams, float]] = [{} for _ in range(4)]
        for gram, count in grams.items():
            weight = count * max(log_total - math.log(documents[gram]), 0.0)
            by_order[len(gram) - 1][gram] = weight
        for vector in by_order:
            norm = math.sqrt(sum(w * w for w in vector.values())) or 1.0
            for gram in vector:
                vector[gram] /= norm
        vectors.append(by_order)

    # A caption's mean cosine with the others is its product with their sum.
    totals: list[defaultdict[Grams, float]] = [defaultdict(float) for _ in range(4)]
    for by_order in vectors:
        for total, vector in zip(totals, by_order, strict=True):
            for gram, weight in vector.items():
                total[gram] += weight
    scores = []
    for by_order in vectors:
        score = 0.0
        for total, vector in zip(totals, by_order, strict=True):
            score += sum(w * (total[g] - w) for g, w in vector.items())
        scores.append(score / (4 * max(len(group) - 1, 1)))
    return scores
