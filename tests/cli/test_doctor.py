"""`flamvid doctor`: broken things are named with the way out."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flamvid.ops import OPERATIONS


def rows(run: Any) -> tuple[int, dict[str, dict[str, str]]]:
    result = run("doctor", "--json")
    return result.exit_code, {row["check"]: row for row in json.loads(result.stdout)}


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLAMVID_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("flamvid.cli.doctor.quiet_libraries", lambda: None)


def test_a_sound_machine_passes(run: Any, tmp_path: Path) -> None:
    code, found = rows(run)
    assert code == 0, found
    for name in ("python", "torch", "torchvision", "decord", "ffmpeg", "timm", "cache"):
        assert found[name]["status"] == "ok", found[name]
    assert set(found["torch"]) == {"check", "status", "detail", "fix"}
    assert found["efficientnet-lite2"]["fix"] == "flamvid models pull efficientnet-lite2"
    assert not (tmp_path / "home").exists()  # looking changes nothing
    table = run("doctor").stdout.splitlines()
    assert table[0].split() == ["check", "status", "detail", "fix"]
    assert len(table) == len(found) + 1


def test_a_cache_that_cant_be_written_is_broken(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FLAMVID_HOME", str(tmp_path / "file"))
    code, found = rows(run)
    assert code == 1
    assert found["cache"]["status"] == "broken"
    assert "FLAMVID_HOME" in found["cache"]["fix"]


def test_a_decoder_that_does_not_import_is_broken(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def without(name: str, package: str | None = None) -> Any:
        if name == "decord":
            raise ImportError("libdecord.so: cannot open shared object file")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    code, found = rows(run)
    assert code == 1
    assert "libdecord.so" in found["decord"]["detail"]
    assert found["decord"]["fix"] == "pip install --force-reinstall decord2"


def test_every_operation_is_named_with_who_serves_it_and_why(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, found = rows(run)
    for op in OPERATIONS:
        who = found[op]["detail"].split(" on cpu: ")[0]
        assert who in ("kernel", "reference")
    if not torch.cuda.is_available():
        kernels = "kernel on cpu: flamvid._C is loaded"
        sdpa = "sdpa on cpu: xformers is for CUDA, not cpu"
        served = found["media_attention_forward"]["detail"].startswith("kernel")
        assert found["attention"]["detail"] == (kernels if served else sdpa)

    monkeypatch.setattr("flamvid.ops.kernels._reason", "flamvid._C does not load: no such symbol")
    _, found = rows(run)
    broken = found["media_attention_forward"]
    assert broken["status"] == "note"
    assert broken["detail"] == "reference on cpu: flamvid._C does not load: no such symbol"
    assert "--no-build-isolation" in broken["fix"]
