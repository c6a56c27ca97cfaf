"""`flamvid live` as a process: a tiny model, real streams, real signals, files that stay valid."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest
from typer.testing import CliRunner

from flamvid.cli.live_output import CueEncoder, open_sink
from flamvid.cli.main import app
from flamvid.cli.output import Format
from flamvid.cli.stdin import check_stdin, stdin_lines
from flamvid.errors import InputError
from flamvid.live.cue import Cue, Kind
from flamvid.live.trigger import Bell
from tests.processes import wait_for
from tests.tiny import make_model

Live = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minute of a picture that moves."""
    path = tmp_path_factory.mktemp("clip") / "long.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi"]
    command += ["-i", "testsrc2=s=64x48:r=10:d=60", "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, check=True)
    return path


@pytest.fixture
def live(tiny: Path) -> Iterator[Live]:
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: object, **options: Any) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "flamvid", "live", f"--model={tiny}", "--max-tokens=4"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        child = subprocess.Popen(
            [*words, *map(str, arguments)], text=True, env=environment, **pipes
        )
        started.append(child)
        return child

    yield begin
    for child in started:
        if child.poll() is None:
            child.kill()
        child.communicate()


def cues(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_recording_to_its_end(live: Live, clip: Path, tmp_path: Path) -> None:
    targets = [tmp_path / f"a.{kind}" for kind in ("vtt", "srt", "jsonl")]
    sinks = [f"--sink={target}" for target in targets]
    child = live(clip, "--every=20s", "--memory=merge", "--max-memory=2MB", *sinks, "-o", "-")
    out, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    assert [line[:28] for line in out.splitlines()] == [
        "0:00:00.000-0:00:20.000 " + out.splitlines()[0][24:28],
        "0:00:20.000-0:00:40.000 " + out.splitlines()[1][24:28],
        "0:00:40.000-0:01:00.000 " + out.splitlines()[2][24:28],
    ]
    assert re.search(r"memory merge: \d+ recent frames, \d+ places behind them, at most \d", errors)
    made = cues(targets[2])
    assert [cue["why"] for cue in made] == ["every"] * 3
    assert max(cue["memory"] for cue in made) <= 2_000_000
    assert (made[-1]["seen"], made[-1]["dropped"]) == (120, 0)
    assert targets[0].read_text().startswith("WEBVTT\n\n1\n00:00:00.000 --> 00:00:20.000\n")
    assert targets[1].read_text().count(" --> ") == 3


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_signals_end_it_after_a_last_cue(
    live: Live, clip: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "a.jsonl"
    # A shell that runs tests in the background ignores SIGINT, and children inherit that.
    usual = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    child = live(clip, "--realtime", "--every=1s", "--fps=4", f"--sink={out}", **usual)
    wait_for(lambda: len(cues(out)) >= 2, child)
    child.send_signal(number)
    assert child.wait(20) == 130
    made = cues(out)
    assert made[-1]["why"] in ("end", "every")
    assert made[-1]["end"] >= made[-1]["pts"]
    assert all(a["end"] == b["start"] for a, b in pairwise(made))


def test_killed_and_resumed(live: Live, clip: Path, tmp_path: Path) -> None:
    out, vtt, state = tmp_path / "a.jsonl", tmp_path / "a.vtt", tmp_path / "state"
    flags = ["--every=1s", "--fps=4", f"--sink={out}", f"--sink={vtt}", f"--state={state}"]
    child = live(clip, "--realtime", *flags)
    wait_for(lambda: len(cues(out)) >= 3 and state.exists(), child)
    child.kill()
    child.wait()
    before = cues(out)
    with out.open("a") as file:
        file.write('{"kind": "capt')  # as if it had died while it wrote
    child = live(clip, *flags)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    made = cues(out)
    assert made[: len(before)] == before
    assert made[-1]["end"] == 60.0
    ends = [cue["end"] for cue in made]
    assert ends == sorted(ends)
    assert made[len(before)]["seen"] > before[0]["seen"]
    text = vtt.read_text()
    assert text.count("WEBVTT") == 1
    numbers = [int(n) for n in re.findall(r"^(\d+)\n\d\d:", text, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.slow
def test_lines_on_stdin_ask(live: Live, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    child = live(
        clip,
        "--realtime",
        "--on-demand",
        f"--sink={out}",
        "--state",
        tmp_path / "s",
        stdin=subprocess.PIPE,
    )
    assert child.stdin is not None
    time.sleep(1.0)
    deadline = time.monotonic() + 60
    while not cues(out) and time.monotonic() < deadline:
        child.stdin.write("\nwhat moves?\n")
        child.stdin.flush()
        time.sleep(0.5)
    child.terminate()
    assert child.wait(20) == 130  # though it waits for another line
    kinds = [(cue["kind"], cue["question"]) for cue in cues(out) if cue["why"] == "asked"]
    assert ("caption", "") in kinds
    assert ("answer", "what moves?") in kinds


@pytest.mark.slow
def test_a_closed_reader_is_no_failure(live: Live, clip: Path) -> None:
    child = live(clip, "--every=1s")
    assert child.stdout is not None
    child.stdout.readline()
    child.stdout.close()
    assert child.wait(60) == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--every=0"], "--every is '0'; must be a time above 0"),
        (["--latency-budget=fast"], "--latency-budget is 'fast'"),
        (["--max-memory=lots"], "--max-memory is 'lots'"),
        (["--window=0"], "--window is 0"),
        (["--fps=0"], "--fps is 0"),
        (["--window=inf"], "--window is inf"),
        (["--queue=0"], "--queue is 0"),
        (["--record=/dev/null/parts"], "can't be recorded to"),
        (["--sink=no/such/a.vtt"], "--sink is no/such/a.vtt, but the folder"),
        (["--sink=."], "--sink is ., a folder"),
        (["--sink=a.csv"], "a.csv ends in .csv, which is no format"),
        (["--sink=a.json"], "a stream never closes; choose jsonl"),
        (["--sink=sse:port"], "must be sse:PORT or sse:HOST:PORT"),
        (["--state=."], "--state is ., a folder"),
        (["--ask= "], "--ask is empty"),
        (["--on-demand", "-"], "--on-demand reads stdin"),
    ],
)
def test_bad_options(flags: list[str], says: str) -> None:
    words = ["live", *flags] if flags[-1] == "-" else ["live", *flags, "a.mp4"]
    result = CliRunner().invoke(app, words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_sink_that_is_the_source_is_refused(clip: Path) -> None:
    before = clip.stat().st_size
    result = CliRunner().invoke(app, ["live", str(clip), f"--sink={clip}"])
    assert result.exit_code == 2
    assert "which is a source" in result.stderr
    assert clip.stat().st_size == before


def test_a_source_that_is_wrong_empties_no_file(tiny: Path, tmp_path: Path) -> None:
    kept = tmp_path / "a.vtt"
    kept.write_text("WEBVTT\n\nyesterday's\n")
    words = ["live", str(tmp_path / "none.mp4"), f"--model={tiny}", f"--sink={kept}"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert "none.mp4" in result.stderr
    assert "yesterday's" in kept.read_text()


def test_a_closed_stdin_can_not_be_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(InputError, match="reads stdin, which is closed"):
        check_stdin("--on-demand")


def test_lines_of_any_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = tmp_path / "lines"
    given.write_bytes("who\n\xff?\n".encode("latin-1") + b"x" * 9000)
    with given.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert [line[:5] for line in stdin_lines()] == ["who\n", "\ufffd?\n", *["xxxxx"] * 3]


def test_a_resumed_file_counts_whole_cues(tmp_path: Path) -> None:
    path = tmp_path / "a.srt"
    sink = open_sink(str(path), None, Bell(), resume=False)
    sink.put(a_cue())
    sink.put(a_cue())
    path.write_bytes(path.read_bytes()[:-5])  # as if it had died while it wrote
    sink = open_sink(str(path), None, Bell(), resume=True)
    sink.put(a_cue())
    assert re.findall(r"^\d+$", path.read_text(), re.MULTILINE) == ["1", "2"]


def a_cue(**changes: Any) -> Cue:
    fields: dict[str, Any] = {
        "source": "s",
        "start": 1.0,
        "end": 3.0,
        "text": "a dog --> <b>",
        "model": "m",
        "why": "every",
        "pts": 2.75,
        "wall": 0.0,
    }
    return Cue(**(fields | changes))


def test_every_format_has_a_place_for_gaps_and_alerts() -> None:
    gap = a_cue(kind=Kind.GAP, text="", why="hung up -->\nbad")
    vtt = CueEncoder(Format.vtt)
    assert vtt.head == "WEBVTT\n\n"
    assert vtt.encode(gap) == "NOTE gap from 1.000 s to 3.000 s: hung up -> bad\n\n"
    assert vtt.encode(a_cue()).startswith("1\n00:00:01.000 --> 00:00:03.000\n")
    assert "a dog --&gt; &lt;b&gt;" in vtt.encode(a_cue())
    srt = CueEncoder(Format.srt, number=7)
    assert srt.encode(gap) == ("8\n00:00:01,000 --> 00:00:03,000\n[no picture: hung up -> bad]\n\n")
    assert CueEncoder(Format.text).encode(a_cue(kind=Kind.ALERT, text="fire")) == (
        "0:00:01.000-0:00:03.000 [alert] fire\n"
    )
    assert json.loads(CueEncoder(Format.jsonl).encode(gap))["kind"] == "gap"
    with pytest.raises(InputError, match="choose jsonl"):
        CueEncoder(Format.json)


def test_caption_watches_what_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def run(source: str, where: Any, wanted: Any, text: Any, verbose: bool) -> int:
        seen.append((source, wanted, text.beams))
        return 0

    monkeypatch.setattr("flamvid.cli.live_run.run", run)
    url = "rtsp://127.0.0.1:1/cam"
    flags = ["--every=4", "--frames=8", "-o", "a.vtt"]
    assert CliRunner().invoke(app, ["caption", url, *flags]).exit_code == 0
    [(source, wanted, beams)] = seen
    assert (source, beams) == (url, 3)
    assert (wanted.every, wanted.window, wanted.fps, wanted.sinks) == (4.0, 4.0, 2.0, ("a.vtt",))
    for more in ("--prompt=in it", "--segments"):
        result = CliRunner().invoke(app, ["caption", url, more])
        assert result.exit_code == 2
        assert "never ends" in result.stderr
