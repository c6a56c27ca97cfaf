"""Folders, globs, lists and tars, spelled out."""

from __future__ import annotations

import errno
import io
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamvid.errors import InputError
from flamvid.index.manifest import Shard, sources
from tests.tiny import write_tar


def touch(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [str(folder / name) for name in names]


def test_folder_in_natural_order(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", ".hidden.mp4", ".git/x.mp4", "poster.jpg")
    wanted = touch(tmp_path, "clip2.mp4", "clip10.MKV", "sub dir/a.webm")
    assert list(sources([str(tmp_path)])) == wanted


def test_glob(tmp_path: Path) -> None:
    wanted = touch(tmp_path, "a/1.mp4", "b/2.mp4")
    assert list(sources([f"{tmp_path}/*/*.mp4"])) == wanted
    with pytest.raises(InputError, match="no file matches"):
        list(sources([f"{tmp_path}/*.avi"]))


def test_glob_of_folders(tmp_path: Path) -> None:
    """They are walked, as they are where the shell spells the glob out; `**` has all in it."""
    wanted = touch(tmp_path, "lib/a/1.mp4", "lib/a/deep/2.mp4", "lib/b/3.mp4")
    assert list(sources([f"{tmp_path}/lib/*"])) == wanted
    assert list(sources([f"{tmp_path}/lib/**"])) == wanted


def test_links_that_lead_back(tmp_path: Path) -> None:
    """Each folder is walked once; a folder elsewhere is walked by its link."""
    [inside] = touch(tmp_path, "lib/a/1.mp4")
    touch(tmp_path, "elsewhere/2.mp4")
    (tmp_path / "lib" / "a" / "up").symlink_to("..")
    (tmp_path / "lib" / "a" / "here").symlink_to(".")
    (tmp_path / "lib" / "b").symlink_to("../elsewhere")
    assert list(sources([f"{tmp_path}/lib"])) == [inside, f"{tmp_path}/lib/b/2.mp4"]


def test_what_can_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder is named and passed over, a list is an error; root may read all, so it is acted."""
    wanted = touch(tmp_path, "lib/b.mp4")
    touch(tmp_path, "lib/a/1.mp4", "list.txt")
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("lib/a"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "scandir", scandir)
    assert list(sources([f"{tmp_path}/lib"])) == wanted
    assert f"{tmp_path}/lib/a can't be listed (Permission denied)" in caplog.text
    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(InputError, match=r"list\.txt can't be read \(Permission denied\)"):
        list(sources([f"{tmp_path}/list.txt"]))


def test_names_with_a_hash(tmp_path: Path) -> None:
    """They are samples in a tar only where a tar is meant."""
    wanted = touch(tmp_path, "take #1/a#2.mp4")
    for argument in ("take #1", "take #1/a#2.mp4", "*/a#*.mp4"):
        assert list(sources([f"{tmp_path}/{argument}"])) == wanted
    (tmp_path / "list#1.txt").write_text("x.mp4")
    assert list(sources([f"{tmp_path}/list#1.txt"])) == [f"{tmp_path}/x.mp4"]
    assert list(sources([f"{tmp_path}/s.tar#a[1].mp4"])) == [f"{tmp_path}/s.tar#a[1].mp4"]
    with pytest.raises(InputError, match="does not exist"):
        list(sources([f"{tmp_path}/none#1.mp4"]))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "# ours\na b.mp4\n\n{base}/ü.mp4\nhttp://host/c.mp4\n"),
        ("LIST.TXT", "# ours\na b.mp4\n{base}/ü.mp4\nhttp://host/c.mp4\n"),
        ("LIST.CSV", 'id,path\n1,a b.mp4\n2,"{base}/ü.mp4"\n3,http://host/c.mp4\n'),
        ("list.csv", 'id,path\n1,a b.mp4\n2,"{base}/ü.mp4"\n3,http://host/c.mp4\n'),
        (
            "list.jsonl",
            '{{"video": "a b.mp4"}}\n{{"source": "{base}/ü.mp4", "x": 1}}\n'
            '{{"url": "http://host/c.mp4"}}\n',
        ),
    ],
)
def test_lists(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text.format(base=tmp_path), encoding="utf-8")
    found = list(sources([str(tmp_path / name)]))
    assert found == [f"{tmp_path}/a b.mp4", f"{tmp_path}/ü.mp4", "http://host/c.mp4"]


def test_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = io.StringIO('a.mp4\n{"path": "/b.mp4"}\n')
    assert list(sources(["-"], lines)) == [f"{tmp_path}/a.mp4", "/b.mp4"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "id,name\n1,x\n", "line 2 of .* names no source"),
        ("a.jsonl", '{"path": "x.mp4"}\n{oops\n', "line 2 of .* is no JSON"),
        ("a.txt", "a\0b.mp4\n", "zero byte"),
    ],
)
def test_wrong_lists(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=says):
        list(sources([str(tmp_path / name)]))


def test_no_such_name() -> None:
    with pytest.raises(InputError, match="does not exist"):
        list(sources(["nowhere.mp4"]))


def test_shard_of_videos(tmp_path: Path) -> None:
    members = [("a.mp4", b"1"), ("a.json", b"{}"), ("b.mp4", b"2"), ("b.json", b"{}")]
    tar = write_tar(tmp_path / "s.tar", members)
    assert list(sources([str(tmp_path)])) == [f"{tar}#a.mp4", f"{tar}#b.mp4"]


def test_broken_tar_is_left_to_the_ledger(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(b"no tar at all" * 100)
    assert list(sources([str(tmp_path)])) == [str(tmp_path / "s.tar")]


@settings(max_examples=30)
@given(st.lists(st.text(min_size=1), max_size=20), st.integers(1, 7))
def test_shards_part_all(names: list[str], count: int) -> None:
    parts = [[n for n in names if n in Shard(i, count)] for i in range(count)]
    assert Counter(name for part in parts for name in part) == Counter(names)


@pytest.mark.parametrize("text", ["3/3", "-1/3", "1", "a/b", "1/0"])
def test_wrong_shard(text: str) -> None:
    with pytest.raises(InputError, match="must be I/N"):
        Shard.parse(text)
