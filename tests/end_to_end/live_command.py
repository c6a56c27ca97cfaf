"""`flamvid live` as a process of its own, whose files are read for as long as it writes them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil

from tests.video.numbered import FFMPEG

Cue = dict[str, Any]

PATIENCE = 60.0  # seconds until a test is given up: the machine may be busy
ROOT = Path(__file__).parents[2]

_GROWTH = 32e6  # bytes; of a leak of frames or sockets there would be more

_CLOCK = r"(\d\d+):(\d\d):(\d\d)[.,](\d{3})"
_BLOCK = re.compile(rf"(?:(\d+)\n{_CLOCK} --> {_CLOCK}\n[^\n]+\n|NOTE gap [^\n]+\n)\n")


def parse_jsonl(data: bytes) -> list[Cue]:
    """Cues in order, one to a line, the last line whole."""
    assert not data or data.endswith(b"\n"), f"half a line: {data[-80:]!r}"
    cues = [json.loads(line) for line in data.splitlines()]
    told = 0.0
    for cue in cues:
        assert cue["start"] <= cue["end"]
        if cue["kind"] == "gap" or cue["why"] != "asked":
            assert cue["start"] >= told - 1e-6, cue
            told = cue["end"]
    return cues


def parse_subtitles(data: bytes, head: str) -> list[tuple[float, float]]:
    """When each cue is shown; their numbers rise. Gaps in WebVTT are notes."""
    text = data.decode()
    assert text.startswith(head)
    at, number, times = len(head), 0, []
    while at < len(text):
        block = _BLOCK.match(text, at)
        assert block, f"no whole cue: {text[at : at + 200]!r}"
        at = block.end()
        if block[1]:
            assert int(block[1]) > number
            number = int(block[1])
            start, end = (
                round(int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000, 3)
                for h, m, s, ms in (block.groups()[1:5], block.groups()[5:9])
            )
            assert start <= end
            times.append((start, end))
    return times


class LiveCommand:
    """Runs until the block ends. `files` are parsed again and again; so is what it takes of memory.

    source, options: of the command. Its cues go to out.jsonl, out.vtt and out.srt in `folder`.
    program: the module to run; another may be `flamvid` with something changed.
    """

    def __init__(
        self,
        folder: Path,
        model: Path,
        source: str,
        *options: str,
        stdin: int | None = None,
        program: str = "flamvid",
    ) -> None:
        self.jsonl, self.vtt, self.srt = (
            folder / f"out.{kind}" for kind in ("jsonl", "vtt", "srt")
        )
        sinks = [f"--sink={path}" for path in (self.jsonl, self.vtt, self.srt)]
        command = [sys.executable, "-m", program, "live", source, *options, *sinks]
        self.process = subprocess.Popen(
            [*command, f"--model={model}"],
            stdin=stdin or subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        self.rss: list[int] = []  # bytes, with each cue
        self._failure: AssertionError | None = None
        self._over = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._reader.join()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    @property
    def cues(self) -> list[Cue]:
        """All so far that are whole: a reader can meet a line while it is being written."""
        have = self.jsonl.read_bytes() if self.jsonl.exists() else b""
        return parse_jsonl(have[: have.rfind(b"\n") + 1])

    @property
    def gaps(self) -> list[Cue]:
        """Those that tell of a gap."""
        return [cue for cue in self.cues if cue["kind"] == "gap"]

    def until(self, happened: Callable[[list[Cue]], bool]) -> float:
        """Wait for cues; how many seconds that took."""
        began = time.monotonic()
        while not happened(self.cues):
            if self.process.poll() is not None:
                raise AssertionError(f"it has ended: {self.process.communicate()[1]}")
            assert time.monotonic() - began < PATIENCE, self.cues[-3:]
            time.sleep(0.05)
        return time.monotonic() - began

    def until_captions(self, count: int = 2) -> float:
        """Wait until so many more follow whatever came last."""
        before = len(self.cues)
        return self.until(
            lambda cues: sum(cue["kind"] == "caption" for cue in cues[before:]) >= count
        )

    def until_gap(self) -> float:
        """Wait until one more is told of, and a caption follows it; how long the gap took."""
        before = len(self.gaps)

        def goes_on(cues: list[Cue]) -> bool:
            kinds = [cue["kind"] for cue in cues]
            return kinds.count("gap") > before and kinds[-1] == "caption"

        return self.until(goes_on)

    def children(self) -> list[psutil.Process]:
        """Its ffmpeg."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: int | None = None) -> int:
        """The exit status, after a signal or by itself; checks all that holds for every end.

        `took` says after how many seconds it came, `log` what was on stderr.
        """
        children, began = self.children(), time.monotonic()
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE)
        self.took = time.monotonic() - began
        self._over.set()
        self._reader.join()
        if self._failure:
            raise self._failure
        assert out == ""
        assert all(line.startswith("flamvid: ") for line in err.splitlines()), err
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive, "its ffmpeg is left behind"
        self.log = err
        if number != signal.SIGKILL:
            self._check_memory()
        self.check_files()
        if "not delivered" not in err:
            self.check_same()
        return self.process.returncode

    def check_files(self) -> None:
        """ffmpeg reads the subtitles without complaint, and finds all of them."""
        for path, head in ((self.srt, ""), (self.vtt, "WEBVTT\n\n")):
            read = [FFMPEG, "-hide_banner", "-loglevel", "warning", "-i", path, "-f", "srt", "-"]
            done = subprocess.run(read, capture_output=True, check=False)
            assert (done.returncode, done.stderr) == (0, b"")
            assert done.stdout.count(b" --> ") == len(parse_subtitles(path.read_bytes(), head)) > 0

    def check_same(self) -> None:
        """All three files tell the same."""
        cues, notes = self.cues, self.vtt.read_text().count("NOTE gap")
        times = [shown(cue) for cue in cues]
        assert parse_subtitles(self.srt.read_bytes(), "") == times
        times = [shown(cue) for cue in cues if cue["kind"] != "gap"]
        assert parse_subtitles(self.vtt.read_bytes(), "WEBVTT\n\n") == times
        assert notes == len(cues) - len(times)

    def _check_memory(self) -> None:
        """Once warm, it takes no more; the last is left out, as the interpreter ends beside it."""
        warm = self.rss[len(self.rss) // 3 : -1]
        assert not warm or max(warm) - warm[0] < _GROWTH, [n // 10**6 for n in self.rss]

    def _read(self) -> None:
        me, known = psutil.Process(self.process.pid), 0
        while not self._over.wait(0.02):
            try:
                if len(cues := self.cues) > known:
                    known = len(cues)
                    self.rss.append(me.memory_info().rss)
                    parse_subtitles(self.srt.read_bytes(), "")
                    parse_subtitles(self.vtt.read_bytes(), "WEBVTT\n\n")
            except AssertionError as error:
                self._failure = error
                return
            except psutil.NoSuchProcess:
                return


def shown(cue: Cue) -> tuple[float, float]:
    """When a subtitle is: to the millisecond, and long enough to be seen."""
    return round(cue["start"], 3), round(max(cue["end"], cue["start"] + 0.1), 3)
