"""The verbs on whole libraries: index videos into a store, and search it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from os import PathLike
from pathlib import Path

from torch import Tensor

from flamvid import video
from flamvid.api import Captioner, load
from flamvid.errors import InputError, SourceError, StoreError
from flamvid.index.cluster import Cluster, claimed, index_on_cluster, merge_left_over
from flamvid.index.content import on_disk
from flamvid.index.encoder import FrameEncoder
from flamvid.index.indexer import Describe, IndexConfig, Listener, index_videos
from flamvid.index.manifest import Shard
from flamvid.index.manifest import sources as spelled_out
from flamvid.index.search import Filter, Hit, search_windows
from flamvid.index.sieve import Sieve
from flamvid.index.stats import Stats
from flamvid.index.watch import Look, watched
from flamvid.index.windows import check, open_windows
from flamvid.models.contrastive import mean_vector
from flamvid.store import FeatureStore, Provenance
from flamvid.store.maintain import provenance_of
from flamvid.store.places import gone
from flamvid.types import Caption, Segment
from flamvid.video.sample import Uniform

__all__ = [
    "Cluster",
    "Filter",
    "Hit",
    "IndexConfig",
    "Listener",
    "Shard",
    "Stats",
    "index",
    "index_on_ray",
    "search",
]

_log = logging.getLogger("flamvid.library")

_LOOKED_AT = 8  # frames of a clip that is searched for


def index(
    sources: str | PathLike[str] | Iterable[str | PathLike[str]],
    store: str | PathLike[str],
    *,
    model: str | Captioner = "flamvid-base",
    captions: bool = False,
    batch: int | None = None,
    shard: Shard | None = None,
    watch: float | None = None,
    listener: Listener | None = None,
    config: IndexConfig | None = None,
    stats: Stats | None = None,
) -> Stats:
    """Index videos into a feature store, which is made if there is none; what it has is left alone.

    sources: videos, folders, globs, lists and tars, as `flamvid index` takes them; none of them
    with `config.retry`: all that failed for this reason. captions: also say what each shows, and
    those that are there without. batch: frames that are encoded at once. shard: only this part.
    watch: look for new files every so many seconds, and never return. stats: counted in, for who
    looks at it meanwhile. A source that fails is named in the store's ledger, and the others go on.
    """
    captioner = load(model) if isinstance(model, str) else model
    config, stats = config or IndexConfig(), stats or Stats()
    found = listed(sources, store, config, shard, watch)
    stats.total = len(found) if isinstance(found, list) else None
    return index_videos(
        found,
        store,
        FrameEncoder(captioner.model, batch),
        config,
        describe=describer(captioner) if captions else None,
        listener=listener,
        stats=stats,
    )


def listed(
    sources: str | PathLike[str] | Iterable[str | PathLike[str]],
    store: str | PathLike[str],
    config: IndexConfig,
    shard: Shard | None = None,
    watch: float | None = None,
) -> Iterable[str | Look]:
    """What `index` is asked for, spelled out: a list, or an iterator of what may have no end."""
    names = [str(s) for s in ([sources] if isinstance(sources, str | PathLike) else sources)]
    found: Iterable[str | Look]
    if watch is not None and (not names or "-" in names):
        raise InputError("what is watched must be files, folders or lists; standard input is none")
    if names:
        found = watched(names, watch) if watch is not None else spelled_out(names)
    else:
        found = [f.source for f in FeatureStore(store).failures() if config.tries_again(f.reason)]
    if shard is not None:
        found = (source for source in found if isinstance(source, Look) or source in shard)
    return found if watch is not None or "-" in names else list(found)


def index_on_ray(
    sources: str | PathLike[str] | Iterable[str | PathLike[str]],
    store: str | PathLike[str],
    cluster: Cluster | None = None,
    *,
    model: str = "flamvid-base",
    device: str | None = None,
    dtype: str | None = None,
    captions: bool = False,
    batch: int | None = None,
    shard: Shard | None = None,
    config: IndexConfig | None = None,
    listener: Listener | None = None,
    stats: Stats | None = None,
) -> Stats:
    """As `index`, by the tasks of a Ray cluster; each of its processes loads the model once.

    What a run before this one handed over and did not live to merge is merged first.
    """
    with claimed(Path(store)):
        merge_left_over(Path(store))
        config, stats = config or IndexConfig(), stats or Stats()
        found = [str(source) for source in listed(sources, store, config, shard)]
        stats.total = len(found)
        held = None
        if Path(store).exists():
            held = str(store), provenance_of(Path(store))
            new = Sieve(FeatureStore(store), stats, config.tries_again, captions).unseen
            found = [source for source in found if new(source)]
            stats.found = stats.over
        again = replace(config, retry="")
        work = partial(_index_part, model, device, dtype, captions, batch, again, held)
        return index_on_cluster(found, Path(store), work, cluster or Cluster(), listener, stats)


def _index_part(
    model: str,
    device: str | None,
    dtype: str | None,
    captions: bool,
    batch: int | None,
    config: IndexConfig,
    held: tuple[str, Provenance] | None,
    sources: Sequence[str],
    store: Path,
) -> Stats:
    """One task's share; errors other than a source's own are those of the whole run.

    held: the store that it is to join, and what made the features there.
    """
    captioner = _loaded(model, device, dtype)
    encoder = FrameEncoder(captioner.model, batch)
    if held is not None:
        _check_part(*held, encoder.provenance(config.sampled, config.dtype))
    describe = describer(captioner) if captions else None
    return index_videos(sources, store, encoder, config, describe=describe)


def _check_part(path: str, held: Provenance, made: Provenance) -> None:
    """StoreError where a part could not be merged, before it is made."""
    held.check(made, path)
    if held.chunk_frames != made.chunk_frames:
        raise StoreError(
            f"{path} has chunks of {held.chunk_frames} frames, not {made.chunk_frames} as parts "
            "would; index without --engine ray, or give another --store"
        )


_loaded = cache(load)  # a process of the cluster does many tasks


def _captioner(model: str | Captioner | Callable[[], Captioner]) -> Captioner:
    if isinstance(model, str):
        return load(model)
    return model if isinstance(model, Captioner) else model()


def _vector_of(
    source: str, encoder: FrameEncoder, start: float | None, end: float | None
) -> Tensor:
    """The search vector [E] of [start, end) of a file."""
    with on_disk(source) as path, video.open_recorded(path, size=encoder.decode_size) as opened:
        at = Uniform(_LOOKED_AT).indices(opened.pts, opened.durations, start, end)
        pixels = encoder.shrink(opened.read(at.tolist()).pixels)
    return mean_vector(encoder.encode(pixels)[1])


def describer(captioner: Captioner) -> Describe:
    """Captions of a whole video, by features of its frames."""

    def describe(source: str, length: float, features_TNF: Tensor) -> Sequence[Caption]:
        return captioner.caption(captioner.recall(source, Segment(0.0, length), features_TNF))

    return describe


def search(
    store: str | PathLike[str] | FeatureStore,
    query: str | None = None,
    *,
    like: str | PathLike[str] | None = None,
    start: float | None = None,
    end: float | None = None,
    top: int = 10,
    window: float = 4.0,
    every: float | None = None,
    chosen: Filter | None = None,
    approximate: str | None = None,
    effort: int | None = None,
    model: str | Captioner | Callable[[], Captioner] = "flamvid-base",
) -> list[Hit]:
    """The parts of a store's videos that are most like a text, or a picture or clip; best first.

    query: what is to be seen; or like: a file that shows it, of which [start, end) counts. window,
    every: seconds that a hit is long, and that one begins (by default half a window). chosen: which
    videos are searched. approximate, effort: by a FAISS index of this kind (`Approximate`), for
    stores whose exact search takes too long. The store may be written meanwhile: what it holds now
    is searched. The first search of a store takes longer, to cut it into windows. model: loaded, or
    what loads it, which is asked for when all else is known to be right.
    """
    if (query is None) == (like is None):
        raise InputError("give a text to search for, or a picture or clip, and not both")
    if query is not None and not query.strip():
        raise InputError("the text to search for is empty; say what is to be seen")
    if top < 1:
        raise InputError(f"top is {top}; must be at least 1")
    if like is None and (start is not None or end is not None):
        raise InputError("start and end are of a clip to search like; give one (like), or neither")
    if approximate is None and effort is not None:
        raise InputError(f"effort is {effort} without an approximate index; choose ivf or hnsw too")
    store = store if isinstance(store, FeatureStore) else FeatureStore(store)
    held = store.provenance
    check(store.path, held, window, window / 2 if every is None else every)
    if like is not None and gone(str(like)):
        raise SourceError(f"{like} does not exist; check the path")
    captioner = _captioner(model)
    encoder = FrameEncoder(captioner.model)
    if held.embedder and held.embedder != encoder.embedder.name:
        raise InputError(
            f"{store.path} was indexed for search by {held.embedder}, not by "
            f"{encoder.embedder.name}; "
            "give the --model that it was indexed with"
        )
    windows = open_windows(store, window, every)
    if query is not None:
        vector = encoder.embedder.text([query])[0]
    else:
        assert like is not None
        vector = _vector_of(str(like), encoder, start, end)
    vector = vector.float().cpu()
    if approximate is None or not len(windows):
        return search_windows(windows, vector, top, chosen)
    from flamvid.index.approximate import Approximate

    index = Approximate(windows, approximate, effort)
    if _log.isEnabledFor(logging.INFO):  # it takes some exact searches
        share = index.recall(index.sample(20))
        _log.info("%s at effort %d finds %.3f of the 10 nearest", approximate, effort, share)
    return index.search(vector, top, chosen)
