"""How a long memory stays within its places: four ways, each bounded and deterministic.

Legend: N patches, F feature width, X moments, K clusters.
"""

from __future__ import annotations

from enum import StrEnum
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from flamvid.live.moment import Moment, joined, similarity, without

__all__ = ["Drop", "KMeans", "Merge", "Policy", "Tidy", "Window", "tidy_of"]

_ROUNDS = 8  # of Lloyd's algorithm, at most
_STATIC = 0.85  # the cosine at which a patch shows what its place showed before
_THINNEST = 4  # frames that may share the patches of one, under `drop`


class Policy(StrEnum):
    """What becomes of frames that leave the recent window."""

    WINDOW = "window"  # they are forgotten
    MERGE = "merge"  # the two neighbours that are most alike become one, as in MovieChat
    KMEANS = "kmeans"  # clusters, weighted by their frames, as in Flash-VStream and streaming DVC
    DROP = "drop"  # patches that show nothing new are dropped, as in TimeChat-Online


class Tidy(Protocol):
    """Keeps a list of moments within `places`.

    extra: how many moments more there may be between two calls. patches: how many frames' worth
    of patches they hold at most, as a share of the places.
    """

    places: int
    extra: int

    def __call__(self, moments: list[Moment]) -> list[Moment]: ...


class Window:
    """Nothing is kept."""

    def __init__(self, places: int = 0) -> None:
        self.places, self.extra = 0, 0

    def __call__(self, moments: list[Moment]) -> list[Moment]:
        return []


class Merge:
    """The two neighbours in time that are most alike become one, until all have a place."""

    def __init__(self, places: int) -> None:
        self.places, self.extra = places, 0

    def __call__(self, moments: list[Moment]) -> list[Moment]:
        moments = list(moments)
        while len(moments) > self.places:
            pairs = pairwise(moments)
            alike = [similarity(a.mean, b.mean) for a, b in pairs]
            at = alike.index(max(alike)) if alike else 0  # the earliest of equals
            moments[at : at + 2] = [joined(moments[at : at + 2])]
        return moments


class KMeans:
    """Clusters of moments, each weighted by its frames; in the order of their mean times.

    A cluster begins at the moment that is farthest from all that have begun (Gonzalez 1985), the
    first at the heaviest: the content is the seed. A few moments are gathered before they are
    clustered: one at a time could never begin a cluster of its own.
    """

    def __init__(self, places: int) -> None:
        self.places, self.extra = places, max(1, places // 2)

    def __call__(self, moments: list[Moment]) -> list[Moment]:
        if len(moments) <= self.places + self.extra:
            return moments
        points_XF = torch.stack([m.mean.float() for m in moments])
        weight_X = points_XF.new_tensor([float(m.frames) for m in moments])
        cluster_X = _clusters(points_XF, weight_X, self.places).tolist()
        groups = [
            [m for m, c in zip(moments, cluster_X, strict=True) if c == k]
            for k in sorted(set(cluster_X))
        ]
        made = [group[0] if len(group) == 1 else joined(group) for group in groups]
        return sorted(made, key=lambda m: m.time)


def _clusters(points_XF: Tensor, weight_X: Tensor, most: int) -> Tensor:
    """The cluster of each point, int64 [X], by weighted k-means from seeds far apart."""
    seeds = [int(weight_X.argmax())]
    far_X = (points_XF - points_XF[seeds[0]]).square().sum(1)
    while len(seeds) < most:
        seeds.append(int(far_X.argmax()))
        far_X = torch.minimum(far_X, (points_XF - points_XF[seeds[-1]]).square().sum(1))
    centres_KF = points_XF[seeds]
    cluster_X = torch.full((len(points_XF),), -1, device=points_XF.device)
    for _ in range(_ROUNDS):
        nearest_X = torch.cdist(points_XF, centres_KF).argmin(1)
        if torch.equal(nearest_X, cluster_X):
            break
        cluster_X = nearest_X
        member_KX = F.one_hot(cluster_X, most).t() * weight_X
        total_K1 = member_KX.sum(1, keepdim=True)
        means_KF = member_KX @ points_XF / total_K1.clamp_min(1e-9)
        centres_KF = torch.where(total_K1 > 0, means_KF, centres_KF)
    return cluster_X


class Drop:
    """Patches are dropped that look as their place did when it last changed; then the oldest.

    So many frames' worth of patches are kept as there are places, of up to four times as many
    frames. A frame that shows nothing new adds its time to the one before it.
    """

    def __init__(self, places: int) -> None:
        self.places, self.extra = places * _THINNEST, 0
        self.whole = places
        self.shown_NF: Tensor | None = None  # the last that changed, at each place

    def __call__(self, moments: list[Moment]) -> list[Moment]:
        *kept, new = moments
        N = len(new.features)
        if self.shown_NF is None or len(self.shown_NF) != N:
            self.shown_NF, changed_N = new.features.clone(), None
        else:
            alike_N = F.cosine_similarity(new.features.float(), self.shown_NF.float(), dim=1)
            changed_N = alike_N < _STATIC
            self.shown_NF[changed_N] = new.features[changed_N]
        if changed_N is None or bool(changed_N.all()):
            kept.append(new)
        elif bool(changed_N.any()) or not kept:
            kept.append(without(new, changed_N))
        else:
            kept[-1] = _longer(kept[-1], new)
        budget = self.whole * N
        while len(kept) > self.places or sum(len(m.features) for m in kept) > budget:
            del kept[0]
        return [m for m in kept if len(m.features)]


def _longer(moment: Moment, after: Moment) -> Moment:
    """A moment that lasted on through one in which nothing changed."""
    total = moment.frames + after.frames
    return Moment(
        moment.features,
        moment.mean,
        moment.time,
        moment.start,
        after.end,
        total,
        moment.keys,
    )


def tidy_of(policy: Policy, places: int) -> Tidy:
    """The policy, with so many places."""
    kinds: dict[Policy, type[Window] | type[Merge] | type[KMeans] | type[Drop]] = {
        Policy.WINDOW: Window,
        Policy.MERGE: Merge,
        Policy.KMEANS: KMeans,
        Policy.DROP: Drop,
    }
    return kinds[policy](places)
