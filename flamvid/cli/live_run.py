"""A stream watched from the command line: what the options say, carried out until it ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from flamvid.cli import options as opt
from flamvid.cli.caption import load
from flamvid.cli.failure import FAILED, INTERRUPTED, OutputError, log_to_stderr, report, say
from flamvid.cli.live_output import check_sinks, open_sink
from flamvid.cli.output import Format
from flamvid.cli.progress import progress, quiet_libraries
from flamvid.cli.stdin import check_stdin, stdin_lines
from flamvid.errors import FlamvidError, InputError
from flamvid.video.record import Record

if TYPE_CHECKING:
    from flamvid.api import Captioner
    from flamvid.live.captioner import LiveCaptioner, LiveConfig
    from flamvid.live.keep import Keeper
    from flamvid.live.sinks import Sink
    from flamvid.video.stream import Stream

__all__ = ["LiveOptions", "Memory", "run"]

_EVERY = 2.0  # seconds between captions, where nothing else makes it speak
_MOST = 1e6  # frames a second, or seconds of a window: more is a slip


class Memory(StrEnum):
    """As `flamvid.live.policies.Policy`, which imports torch."""

    window = "window"
    merge = "merge"
    kmeans = "kmeans"
    drop = "drop"


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveOptions:
    """What the options say, durations in seconds and sizes in bytes."""

    fps: float = 2.0
    every: float | None = None
    on_change: bool = False
    when_different: float | None = None
    on_demand: bool = False
    memory: Memory = Memory.window
    window: float | None = None
    long: int = 8
    max_memory: int | None = None
    context: int = 0
    ask: str = ""
    alerts: tuple[str, ...] = ()
    alert_threshold: float = 0.25
    budget: float | None = None
    sinks: tuple[str, ...] = ("-",)
    format: Format | None = None
    state: Path | None = None
    record: Path | None = None
    store: Path | None = None
    realtime: bool = False
    timeout: float = 15.0
    queue: int = 8
    hwaccel: str | None = None

    def __post_init__(self) -> None:
        for name in ("window", "fps"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= _MOST:
                raise InputError(f"--{name} is {value:g}; must be above 0 and at most {_MOST:g}")
        if self.state is not None and self.state.is_dir():
            raise InputError(f"--state is {self.state}, a folder; give the name of a file")
        if self.queue < 1:
            raise InputError(f"--queue is {self.queue}; must be at least 1")

    @property
    def by_clock(self) -> float | None:
        """Seconds between captions; two where nothing else makes it speak."""
        other = self.on_change or self.when_different is not None or self.on_demand
        return self.every if self.every is not None or other else _EVERY


def run(
    source: str,
    where: opt.ModelOptions,
    wanted: LiveOptions,
    text: opt.TextOptions,
    verbose: bool,
) -> int:
    """Watch a source until it ends or is interrupted."""
    if wanted.on_demand and source == "-":
        raise InputError("--on-demand reads stdin, and so does the source -; give only one of them")
    if wanted.on_demand:
        check_stdin("--on-demand")
    check_sinks(wanted.sinks, source, wanted.format)
    record = Record(wanted.record) if wanted.record else None
    if wanted.store is not None:
        from flamvid.store.writer import check_target

        check_target(wanted.store)
    log_to_stderr()
    quiet_libraries()
    config = _config(wanted)
    with progress(1) as bar:
        captioner = load(where, bar, verbose)
    watcher = _captioner(captioner, config, wanted, text)

    from flamvid.live.checkpoint import restore
    from flamvid.video.stream import open_stream

    resumes = wanted.state is not None and wanted.state.exists()
    after = restore(watcher, wanted.state) if resumes and wanted.state else None
    with ExitStack() as stack:
        stopped = stack.enter_context(_stopping(watcher))
        try:
            stream = stack.enter_context(
                open_stream(
                    source,
                    fps=wanted.fps,
                    size=captioner.model.transform.decode_size,
                    timeout=wanted.timeout,
                    queue=wanted.queue,
                    realtime=wanted.realtime,
                    hwaccel=wanted.hwaccel,
                    record=record,
                    after=after,
                )
            )
            # After the stream: an address that is wrong must not empty a file.
            sinks = [
                open_sink(target, wanted.format, watcher.bell, resume=resumes)
                for target in wanted.sinks
            ]
            if wanted.store is not None:
                sinks.append(_keeper(watcher, source, wanted.store))
            stack.callback(_tell_lost, sinks)  # once all are closed
            for sink in sinks:
                stack.callback(sink.close)
            if wanted.on_demand:
                threading.Thread(target=_listen, args=(watcher,), daemon=True).start()
            _deliver(watcher, stream, sinks, wanted.state)
        except (OutputError, InputError):
            raise
        except FlamvidError as error:
            report(error, source)
            return INTERRUPTED if stopped() else FAILED
    return INTERRUPTED if stopped() else 0


def _deliver(watcher: LiveCaptioner, stream: Stream, sinks: list[Sink], state: Path | None) -> None:
    """Every cue to every sink, and what is known after it to the state."""
    from flamvid.live.checkpoint import save_state

    complained = False
    for cue in watcher.watch(stream):
        for sink in sinks:
            sink.put(cue)
        if state is None:
            continue
        try:
            save_state(watcher, state)
        except OSError as error:  # a full disk is no reason to stop watching
            if not complained:
                say(f"flamvid: can't write the state {state} ({error.strerror})")
            complained = True


def _tell_lost(sinks: list[Sink]) -> None:
    for sink in sinks:
        if sink.lost:
            say(f"flamvid: {sink.lost} cues were not delivered")


def _config(wanted: LiveOptions) -> LiveConfig:
    """What the options say, checked before a model is loaded, which says how much is remembered."""
    from flamvid.live.alarm import Alert
    from flamvid.live.captioner import LiveConfig
    from flamvid.live.memory import MemoryConfig
    from flamvid.live.policies import Policy
    from flamvid.live.trigger import ChangeConfig
    from flamvid.video.live_graph import Wishes

    Wishes(hwaccel=wanted.hwaccel)
    return LiveConfig(
        fps=wanted.fps,
        memory=MemoryConfig(policy=Policy(wanted.memory.value), long=wanted.long),
        every=wanted.by_clock,
        on_change=ChangeConfig() if wanted.on_change else None,
        when_different=wanted.when_different,
        question=wanted.ask,
        alerts=tuple(Alert(text=t, threshold=wanted.alert_threshold) for t in wanted.alerts),
        context=wanted.context,
        budget=wanted.budget,
    )


def _captioner(
    captioner: Captioner, config: LiveConfig, wanted: LiveOptions, text: opt.TextOptions
) -> LiveCaptioner:
    """The live captioner that the options describe, its cap said on stderr."""
    from flamvid.generate.config import GenerationConfig
    from flamvid.live.captioner import LiveCaptioner, sizes_of
    from flamvid.live.policies import Policy
    from flamvid.weights.embed import load_embedder

    model = captioner.model
    usual = model.config.frames or model.config.resampler.frames or 1
    recent = usual if wanted.window is None else max(1, round(wanted.window * wanted.fps))
    memory = replace(config.memory, recent=recent)
    sizes = sizes_of(model)
    if wanted.max_memory is not None:
        memory = sizes.within(memory, wanted.max_memory)
    behind = "" if memory.policy is Policy.WINDOW else f", {memory.long} places behind them"
    say(
        f"flamvid: memory {memory.policy}: {memory.recent} recent frames{behind}, at most "
        f"{sizes.most(memory) / 1e6:.1f} MB (the model and what is being decoded aside)"
    )
    config = replace(config, memory=memory)
    search = GenerationConfig(**text.search())
    embedder = load_embedder(model) if wanted.alerts or wanted.store else None
    return LiveCaptioner(model, config, search, embedder)


def _keeper(watcher: LiveCaptioner, source: str, path: Path) -> Keeper:
    """What appends to a store all that the watcher sees and says."""
    from flamvid.live.captioner import sizes_of
    from flamvid.live.keep import Keeper
    from flamvid.video.address import shown
    from flamvid.weights.provenance import provenance_of

    fps, embedder = watcher.config.fps, watcher.embedder
    sizes = sizes_of(watcher.model)
    made = provenance_of(
        watcher.model,
        f"fps {fps:g}",
        patches=sizes.patches,
        width=sizes.width,
        embedder=embedder,
    )
    keeper = Keeper(path, made, shown(source), fps, embedder=embedder)
    watcher.on_frame = keeper.add
    return keeper


@contextmanager
def _stopping(watcher: LiveCaptioner) -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM end it after a last caption; at once before there is anything to say,
    and when they come a second time."""
    caught: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        if caught or watcher.newest is None:
            raise KeyboardInterrupt
        caught.append(signum)
        watcher.stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listen(watcher: LiveCaptioner) -> None:
    """Each line of stdin asks for a caption, or for the answer to what it says."""
    with contextlib.suppress(OSError):
        for line in stdin_lines():
            watcher.bell.ring(line)
