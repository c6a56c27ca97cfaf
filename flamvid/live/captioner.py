"""Captions of a stream that may never end: frames come in, cues go out, memory stays bounded.

Legend: T frames, N patches, F feature width, L latents, D width.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from flamvid.errors import FlamvidError, InputError
from flamvid.generate.config import GenerationConfig
from flamvid.live.alarm import Alarm, Alert
from flamvid.live.budget import Budget
from flamvid.live.cue import Cue, Kind
from flamvid.live.look import Looker
from flamvid.live.memory import Memory, MemoryConfig, Sizes
from flamvid.live.moment import Moment
from flamvid.live.policies import Policy
from flamvid.live.speaker import Said, Speaker
from flamvid.live.trigger import Bell, Change, ChangeConfig, Every
from flamvid.models.contrastive import Embedder
from flamvid.models.resampler_keys import KeyReader
from flamvid.types import Frames
from flamvid.video.events import Event, Frame, Gap
from flamvid.weights.load import LoadedModel

__all__ = ["LiveCaptioner", "LiveConfig", "Source", "sizes_of"]

_BY_FRAME = ("every", "change", "different")  # others speak when the newest frame may be old
_POLL = 0.2  # seconds after which a request or the wish to stop is heard though no frame comes


class Counts(Protocol):
    """What a stream counted."""

    @property
    def dropped(self) -> int: ...


class Source(Protocol):
    """What is watched; `flamvid.video.stream.Stream` is one."""

    name: str

    @property
    def stats(self) -> Counts: ...

    def get(self, timeout: float | None = None) -> Event | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveConfig:
    """How to watch.

    fps: frames looked at per second. every: seconds between captions; None for none by the clock.
    on_change: speak when the scene changes. when_different: speak when the mean log-probability of
    the last caption's tokens has fallen by so much, in nats; asked once a second. With none of the
    three, only when asked and at the end. question: what to answer, instead of captions. context:
    how many of the last captions, with what they were made of, stand before the next. budget:
    seconds within which a caption should come.
    """

    fps: float = 2.0
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    every: float | None = 2.0
    on_change: ChangeConfig | None = None
    when_different: float | None = None
    question: str = ""
    alerts: tuple[Alert, ...] = ()
    context: int = 0
    budget: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise InputError(f"fps is {self.fps:g}; must be above 0")
        if self.context < 0:
            raise InputError(f"context is {self.context} captions; must be at least 0")
        if self.when_different is not None and not self.when_different > 0:
            raise InputError(f"when_different is {self.when_different:g}; must be above 0 nats")
        if self.when_different is not None and self.question:
            raise InputError(
                "when_different is about captions, which a question replaces; choose one"
            )


class LiveCaptioner:
    """Watches one stream. `bell` and `stop` may be used from other threads.

    embedder: for alerts. on_frame: hears the time and the features [N,F] of every frame.
    """

    def __init__(
        self,
        model: LoadedModel,
        config: LiveConfig | None = None,
        search: GenerationConfig | None = None,
        embedder: Embedder | None = None,
    ) -> None:
        config = config or LiveConfig()
        self.model, self.config = model, config
        resampler = model.flamingo.resampler
        self.reader = KeyReader(resampler) if KeyReader.serves(resampler) else None
        if self.reader is None and config.memory.policy is Policy.DROP:
            raise InputError(
                f"the memory policy drop needs a Perceiver Resampler, but {model.config.name} has "
                f"a {resampler.config.kind}; choose window, merge or kmeans"
            )
        if model.flamingo.vision.clip is not None:
            raise InputError(
                f"{model.config.name} looks at clips, not frames; choose another model, or "
                "flamvid caption --every"
            )
        if config.alerts and embedder is None:
            raise InputError(
                f"alerts compare frames with texts, and {model.config.name} has no contrastive "
                "part for that; choose a model with one"
            )
        self.memory = Memory(config.memory, self.reader)
        self.speaker = Speaker(model, search or GenerationConfig(beams=1), config.context)
        self.budget = Budget(config.budget)
        self.every = None if config.every is None else Every(config.every)
        self.change = None if config.on_change is None else Change(config.on_change)
        self.check = None if config.when_different is None else Every(1.0)
        self.bell = Bell()
        self.on_frame: Callable[[float, Tensor], None] | None = None
        self.settled = math.inf  # when the scene that began last is to be told of
        self.last: Said | None = None  # caption, and how well it fitted what it was made of
        self.fitted = 0.0
        self.seen = self.dropped = 0  # frames looked at, and not
        self.dropped_before = 0  # in the life that a state was restored from
        self.told = 0.0  # up to where of the stream the cues are
        self.newest: Frame | None = None
        self._looker = Looker(model)
        self._stop = threading.Event()
        self.embedder = embedder
        self._alarm: Alarm | None = None
        if config.alerts and embedder is not None:
            self._alarm = Alarm(config.alerts, embedder, config.memory.recent)

    def stop(self) -> None:
        """End soon: after the caption that is being made, and a last one."""
        self._stop.set()

    def watch(self, source: Source) -> Iterator[Cue]:
        """Cues until the stream ends or `stop` is called; then one of what was not told yet.

        That one comes in front of a gap, too, and of the error with which a stream ends that is
        lost for good.
        """
        failure: FlamvidError | None = None
        while not self._stop.is_set():
            for question in self.bell.take():
                if self.newest is not None:
                    yield self._cue(source, "asked", question or self.config.question)
            try:
                event = source.get(_POLL)
            except TimeoutError:
                continue
            except FlamvidError as error:
                failure = error
                break
            if event is None:
                break
            if isinstance(event, Gap):
                yield from self._rest(source, "gap")
                yield self._gap(source, event)
            elif not self.budget.skips():
                yield from self._look(source, event)
        yield from self._rest(source, "end")
        if failure is not None:
            raise failure

    def _rest(self, source: Source, why: str) -> Iterator[Cue]:
        """A cue of what was seen and not told yet, if anything was."""
        if self.newest is not None and self._end(self.newest) > self.told + 1e-6:
            yield self._cue(source, why, self.config.question)

    def _look(self, source: Source, frame: Frame) -> Iterator[Cue]:
        features_1NF = self._looker.encode(frame.frames)
        half = 0.5 / self.config.fps
        start = max(0.0, frame.pts - half)
        moment = self.memory.add(features_1NF[0], frame.pts, start, frame.pts + half)
        self.newest, self.seen = frame, self.seen + 1
        if self.on_frame is not None:
            self.on_frame(frame.pts, features_1NF[0])
        for text, score in self._alarm.look(features_1NF) if self._alarm else ():
            yield self._made(source, Kind.ALERT, start, moment.end, text, score, "alert")
        if why := self._why(moment):
            yield self._cue(source, why, self.config.question)

    def _why(self, moment: Moment) -> str:
        """What makes it speak now, if anything does."""
        due = self.every is not None and self.every.look(moment.end)
        if self.change is not None:
            first = self.change.scene_F is None
            if self.change.look(moment.mean, moment.time) or first:
                # A scene is told of when there is something of it to see, and nothing else.
                self.memory.turn()
                self.settled = moment.start + self.change.config.least
        if moment.end >= self.settled - 1e-6:
            self.settled = math.inf
            return "change"
        if due:
            return "every"
        if self.check is not None and self.check.look(moment.end) and self._differs():
            return "different"
        return ""

    def _differs(self) -> bool:
        """Whether the last caption has become unlikely."""
        if self.last is None or self.config.when_different is None:
            return True
        fits = self.speaker.fit(self.last, *self._see())
        return fits < self.fitted - self.config.when_different

    def _see(self) -> tuple[Tensor, dict[str, float]]:
        """Latents [1,L,D] of all that is remembered, and what it is called."""
        moments = self.memory.moments()
        if self.reader is not None:
            keys = [m.keys for m in moments if m.keys is not None]
            latents_1LD = self.reader.latents(keys)
        else:
            with torch.inference_mode():
                features_TNF = torch.stack([m.features for m in moments])
                latents_1LD = self.model.flamingo.resampler(features_TNF[None])
        labels = self.model.name(torch.stack([m.mean for m in moments])[:, None])
        return latents_1LD[:, :: self.budget.stride], labels

    def _cue(self, source: Source, why: str, question: str) -> Cue:
        """Say what is seen now."""
        assert self.newest is not None  # nobody speaks before the first frame
        wanted = self.newest.wall if why in _BY_FRAME else time.time()
        greedy = self.budget.greedy and self.speaker.config.beams > 1
        shed = {"greedy": int(greedy), "latents": int(self.budget.stride > 1)}
        latents_1LD, labels = self._see()
        if question:
            said = self.speaker.answer(latents_1LD, question, greedy=greedy)
        else:
            said = self.speaker.caption(latents_1LD, labels, greedy=greedy)
            if self.check is not None:
                self.last, self.fitted = said, self.speaker.fit(said, latents_1LD, labels)
        start, end = self.told, self._end(self.newest)
        if why == "change":  # of this scene alone
            start = max(start, self.memory.recent[0].start)
        if why == "asked":
            start = min(start, self.memory.recent[0].start)
        else:
            self.told = end
        kind = Kind.ANSWER if question else Kind.CAPTION
        cue = self._made(source, kind, start, end, said.text, said.logprob, why, question, shed)
        self.budget.took(cue.wall - wanted)
        return cue

    def _gap(self, source: Source, gap: Gap) -> Cue:
        # One before which a state was restored begins at its newest frame, told to its end.
        start = min(max(gap.start, self.told), gap.end)
        self.told = max(self.told, gap.end)
        for clock in (self.every, self.check):
            if clock is not None:
                clock.skip(gap.end)
        return self._made(source, Kind.GAP, start, gap.end, "", 0.0, gap.reason)

    def _made(
        self,
        source: Source,
        kind: Kind,
        start: float,
        end: float,
        text: str,
        logprob: float,
        why: str,
        question: str = "",
        shed: dict[str, int] | None = None,
    ) -> Cue:
        if not math.isfinite(logprob):
            raise FlamvidError(
                f"the text about {source.name} at {end:g} s has the log-probability {logprob}; "
                "must be finite: try --dtype float32, or another model"
            )
        now = time.time()
        arrived = now if self.newest is None or kind is Kind.GAP else self.newest.wall
        self.dropped = self.dropped_before + source.stats.dropped + self.budget.skipped
        remembered = [*self.memory.long, *self.memory.recent]
        return Cue(
            kind=kind,
            source=source.name,
            start=start,
            end=end,
            text=text,
            logprob=logprob,
            model=self.model.config.name,
            why=why,
            question=question,
            pts=end if self.newest is None else self.newest.pts,
            wall=now,
            latency=max(0.0, now - arrived),
            seen=self.seen,
            dropped=self.dropped,
            shed={"frames": self.budget.skipped, **(shed or {"greedy": 0, "latents": 0})},
            since=remembered[0].start if remembered else start,
            frames=len(remembered),
            memory=self.memory.nbytes,
            policy=self.config.memory.policy.value,
        )

    def _end(self, frame: Frame) -> float:
        """Until when a frame stands for what is shown."""
        return frame.pts + 0.5 / self.config.fps


def sizes_of(model: LoadedModel) -> Sizes:
    """What a frame takes of memory, found out by looking at a black one."""
    side = model.config.vision.size
    black = Frames(torch.zeros(1, 3, side, side, dtype=torch.uint8), np.zeros(1), np.ones(1))
    features_NF = Looker(model).encode(black)[0]
    patches, width = features_NF.shape
    resampler = model.flamingo.resampler
    keys = KeyReader(resampler).nbytes(patches, model.dtype) if KeyReader.serves(resampler) else 0
    return Sizes(patches, width, features_NF.dtype, keys)
