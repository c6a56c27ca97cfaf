"""`flamvid doctor`: what works here, what does not, and what to do about it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from flamvid.cli.failure import FAILED, guarded, one_line
from flamvid.cli.progress import quiet_libraries

__all__ = ["Check", "Status", "doctor"]

_SPACE = 2_000_000_000  # bytes: the parts of flamvid-base, and what it takes to convert them


class Status(StrEnum):
    """ok; note: works, but differently; broken: captioning can't work."""

    ok = "ok"
    note = "note"
    broken = "broken"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    check: str
    status: Status
    detail: str
    fix: str = ""


@guarded
def doctor(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> int:
    """Check what flamvid stands on, each with the way to fix it.

    The exit code is 1 if something is broken that captions need.
    """
    quiet_libraries()
    rows = examine()
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        _print(rows)
    return FAILED if any(row.status is Status.broken for row in rows) else 0


def examine() -> list[Check]:
    """All checks; one that fails in a way nobody thought of is a broken row, not a traceback."""
    out: list[Check] = []
    for check in (_python, _torch, _torchvision, _decord, _ffmpeg, *_libraries(), _xformers):
        out.append(_safely(check))
    out += [_safely(check) for check in (*_operations(), _attention, _cache)]
    try:
        out += _parts()
    except Exception as error:
        out.append(Check("models", Status.broken, one_line(str(error)), "reinstall flamvid"))
    return out


def _safely(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:
        name = getattr(check, "__name__", "check").lstrip("_")
        detail = one_line(f"{type(error).__name__}: {error}")
        return Check(name, Status.broken, detail, f"reinstall it: pip install --force {name}")


def _python() -> Check:
    detail = f"{platform.python_version()} ({sys.executable})"
    return Check("python", Status.ok, detail)


def _torch() -> Check:
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        where = f"CUDA {torch.version.cuda}: {', '.join(sorted(names))}"
    else:
        where = f"CPU, {torch.get_num_threads()} threads"
    return Check("torch", Status.ok, f"{torch.__version__}, {where}")


def _torchvision() -> Check:
    importlib.import_module("torchvision.transforms.v2")  # fails when built for another torch
    return Check("torchvision", Status.ok, importlib.metadata.version("torchvision"))


def _decord() -> Check:
    try:
        module = importlib.import_module("decord")
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        return Check("decord", Status.broken, reason, "pip install --force-reinstall decord2")
    package = "decord2" if _version("decord2") else "decord"
    version = _version(package) or getattr(module, "__version__", "of unknown version")
    return Check("decord", Status.ok, f"{package} {version}")


def _ffmpeg() -> Check:
    fix = "pip install imageio-ffmpeg, or install ffmpeg"
    exe: str | None
    try:
        exe = str(importlib.import_module("flamvid.video.probe").ffmpeg_exe())
    except Exception:
        exe = shutil.which("ffmpeg")
    if not exe:
        return Check("ffmpeg", Status.broken, "no binary found", fix)
    try:
        done = subprocess.run([exe, "-version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return Check("ffmpeg", Status.broken, one_line(f"{exe}: {error}"), fix)
    words = done.stdout.split()
    if done.returncode != 0 or len(words) < 3:
        return Check("ffmpeg", Status.broken, f"{exe} -version exits {done.returncode}", fix)
    return Check("ffmpeg", Status.ok, f"{words[2]} ({exe})")


def _libraries() -> list[Callable[[], Check]]:
    """Those of which only the version matters here: importing them all would take seconds."""

    def check(package: str, needed: bool, use: str) -> Callable[[], Check]:
        def run() -> Check:
            if version := _version(package):
                return Check(package, Status.ok, version)
            status = Status.broken if needed else Status.note
            return Check(package, status, f"absent: {use}", f"pip install {package}")

        return run

    return [
        check("transformers", True, "runs the language model"),
        check("timm", True, "runs the vision encoder"),
        check("av", True, "describes files, and reads some"),
        check("ffmpeg-python", True, "reads containers and streams"),
        check("lmdb", False, "keeps stores of features"),
        check("pytorchvideo", False, "gives clip samplers and video encoders"),
    ]


def _xformers() -> Check:
    version = _version("xformers")
    if not _cuda():
        have = f"{version} installed" if version else "absent"
        return Check("xformers", Status.ok, f"{have}, not used: it is for CUDA, and there is none")
    if not version:
        return Check("xformers", Status.note, "absent: CUDA does without", "pip install xformers")
    return Check("xformers", Status.ok, f"{version} installed, for half precision on CUDA")


def _operations() -> list[Callable[[], Check]]:
    """Who serves each operation here, and why; a module that does not load is worth a fix."""

    def check(op: str) -> Callable[[], Check]:
        def run() -> Check:
            ops = _ops()
            device = "cuda" if _cuda() else "cpu"
            served = ops.implementation(op, device)
            detail = f"{served.name} on {device}: {served.why}"
            if "does not load" in served.why:
                fix = "pip install --no-build-isolation --force-reinstall --no-deps flamvid"
                return Check(op, Status.note, detail, fix)
            asked = os.environ.get("FLAMVID_KERNELS") == "0"
            return Check(
                op, Status.note if asked else Status.ok, detail, "unset FLAMVID_KERNELS" * asked
            )

        return run

    return [
        check(op)
        for op in (
            "media_index",
            "media_attention_forward",
            "media_attention_backward",
            "latent_attention",
            "causal_attention",
            "linear_few",
            "linear_many",
            "linear_int8",
            "widen_int8",
            "feed_few",
            "cross_few",
            "self_few",
            "token_loss_",
        )
    ]


def _attention() -> Check:
    import torch

    ops = _ops()
    if not _cuda():
        served = ops.attention_backend("cpu")
        return Check("attention", Status.ok, f"{served.name} on cpu: {served.why}")
    served = ops.attention_backend("cuda", torch.bfloat16)
    detail = f"{served.name} on cuda in half precision: {served.why}; sdpa in full precision"
    return Check("attention", Status.ok, detail)


def _ops() -> Any:
    with warnings.catch_warnings():  # what does not load is a row of the report, not a warning
        warnings.simplefilter("ignore", RuntimeWarning)
        return importlib.import_module("flamvid.ops")


def _cache() -> Check:
    from flamvid.weights import hub

    folder = hub.cache_dir()
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    fix = "set FLAMVID_HOME to a folder that can be written"
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        reason = f"{folder} can't be written ({error.strerror})"
        return Check("cache", Status.broken, reason, fix)
    free = shutil.disk_usage(there).free
    detail = f"{folder}, {free / 1e9:.1f} GB free"
    if free < _SPACE:
        return Check("cache", Status.note, detail, f"free {_SPACE / 1e9:.0f} GB, or {fix}")
    return Check("cache", Status.ok, detail)


def _parts() -> list[Check]:
    """The parts of the default model, and its own weights."""
    from flamvid.cli.models import presets
    from flamvid.weights import hub

    cached = {status.name: status.cached for status in hub.available()}
    preset = presets()["flamvid-base"]
    out = []
    for part in preset.parts:
        if cached.get(part, False):
            out.append(Check(part, Status.ok, "in the cache"))
        else:
            fix = f"flamvid models pull {part}"
            out.append(Check(part, Status.note, "not in the cache, fetched when needed", fix))
    if Path(preset.adapter).is_file():
        size = Path(preset.adapter).stat().st_size / 1e6
        return [*out, Check(preset.name, Status.ok, f"{preset.adapter} ({size:.1f} MB)")]
    missing = f"{preset.adapter} is missing"
    return [*out, Check(preset.name, Status.note, missing, "reinstall flamvid, or give --model")]


def _cuda() -> bool:
    try:
        import torch
    except Exception:
        return False
    return bool(torch.cuda.is_available())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _print(rows: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {Status.ok: "green", Status.note: "yellow", Status.broken: "bold red"}
    table = Table("check", "status", "detail", "fix", box=None, pad_edge=False)
    for row in rows:
        status = Text(row.status, style=colours[row.status])
        table.add_row(Text(row.check), status, Text(row.detail), Text(row.fix))
    Console(width=None if sys.stdout.isatty() else 1000).print(table)
