"""The command as a process: signals, pipes, and how quickly help is there."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import wait_for

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_the_captions_made(start: Start, tmp_path: Path, number: int) -> None:
    child = start("caption", "a.mp4", "part_slow.mp4", "b.mp4", "-v", "-o", "out.jsonl")
    wait_for(lambda: any(p.stat().st_size > 200 for p in tmp_path.glob(".out*")), child)
    assert not (tmp_path / "out.jsonl").exists()
    child.send_signal(number)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert out == b""
    assert err.splitlines()[-1] == b"flamvid: interrupted"
    assert b"Traceback" not in err
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert ["part_slow" in line for line in lines] == [False, True]
    assert not list(tmp_path.glob(".out*"))


def test_captions_appear_as_they_are_made(start: Start) -> None:
    child = start("caption", "a.mp4", "slow.mp4", "--format", "json")
    assert child.stdout is not None
    assert child.stdout.readline() == b"[\n"
    child.send_signal(signal.SIGINT)
    with child:
        rest = child.stdout.read()
    assert child.returncode == 130
    assert rest.endswith(b'"model": "fake"}\n]\n')


def test_a_closed_pipe_ends_quietly(start: Start) -> None:
    read, write = os.pipe()
    os.close(read)
    child = start("caption", "a.mp4", "b.mp4", stdout=write)
    os.close(write)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (0, b"")


def test_a_full_disk_is_one_line(start: Start) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with Path("/dev/full").open("wb") as full:
        child = start("caption", "a.mp4", "b.mp4", stdout=full)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 1
    assert err == b"flamvid: can't write to stdout (No space left on device)\n"


def test_names_that_are_no_utf8(start: Start, tmp_path: Path) -> None:
    name = b"a\xff.mp4"
    try:
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system wants UTF-8")
    child = start("caption", os.fsdecode(name), "broken.mp4", os.fsdecode(b"no\xff.mp4"))
    out, err = child.communicate(timeout=30)
    assert child.returncode == 1
    assert out.endswith(b".mp4: a dog runs\n")
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize("arguments", [["--help"], ["caption", "--help"], ["--version"]])
def test_help_is_there_without_torch(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from flamvid.cli.main import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'rich', 'decord'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "flamvid" in done.stdout


def test_the_package_is_a_command_and_loads_lazily() -> None:
    import flamvid

    done = subprocess.run(
        [sys.executable, "-m", "flamvid", "--version"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"flamvid {flamvid.__version__}\n"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = flamvid.nonsense  # type: ignore[attr-defined]


def test_a_terminal_is_told_what_is_done_and_a_pipe_is_not() -> None:
    script = "from flamvid.cli.progress import working\nwith working('reading x'): print('data')"
    command = [sys.executable, "-c", script]
    piped = subprocess.run(command, capture_output=True, check=True)
    assert (piped.stdout, piped.stderr) == (b"data\n", b"")
    terminal, end = os.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    shown = subprocess.run(command, stdout=subprocess.PIPE, stderr=end, env=environment, check=True)
    os.close(end)
    assert shown.stdout == b"data\n"
    assert b"reading x" in os.read(terminal, 1 << 16)
    os.close(terminal)


def test_a_closed_folder_is_one_line(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """pathlib raises for what may lie in it. As root, whom no folder is closed to, it is faked."""

    def closed(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", closed)
    result = run("data", "list", "closed/r.toml")
    assert (result.exit_code, result.stdout) == (1, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("flamvid: closed/r.toml: Permission denied; check")


SHAPES = """
import ctypes
from flamvid.cli.process import prepare
prepare()
import torch
from torch.nn.functional import linear

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "a b c d e f g in_use h i".split()]

told = ctypes.CDLL(None).mallinfo2
told.restype = Info
weight = torch.randn(256, 256, dtype=torch.bfloat16)
for rows in range(30, 330):
    linear(torch.randn(rows, 256, dtype=torch.bfloat16), weight)
    if rows == 130:
        before = told().in_use
print((told().in_use - before) >> 20)
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2") or not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="needs glibc and a CPU of bfloat16",
)
def test_texts_of_all_lengths_leave_nothing_behind() -> None:
    """By default torch keeps what oneDNN made for 1024 shapes: some 100 MB of these 200."""
    made = subprocess.run(
        [sys.executable, "-c", SHAPES], capture_output=True, text=True, check=True
    )
    assert int(made.stdout) < 30
