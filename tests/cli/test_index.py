"""`flamvid index` and `flamvid search` as they are typed, with a tiny model."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import imageio_ffmpeg
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from flamvid import library
from flamvid.cli.main import app
from flamvid.index import cluster
from flamvid.index.cluster import Cluster, Work
from flamvid.index.stats import Stats
from flamvid.index.watch import watched
from flamvid.store import FeatureStore
from tests.index.library_files import make_library
from tests.tiny import make_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli index")
    make_library(folder / "videos")
    make_model(folder)
    return folder


@pytest.fixture(autouse=True)
def home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAMVID_HOME", str(folder / "home"))


def run(folder: Path, *arguments: object) -> Result:
    words = [str(a) for a in arguments]
    return CliRunner().invoke(app, [*words, "--model", str(folder / "tiny.toml"), "--device=cpu"])


@pytest.fixture(scope="module")
def store(folder: Path) -> Path:
    store = folder / "lib.lmdb"
    result = run(folder, "index", folder / "videos", "--store", store, "--fps=2")
    assert result.exit_code == 1  # one of them is no video
    assert f"{folder}/videos/broken.mp4 is no video" in result.stderr
    report = json.loads(result.stdout)
    assert (report["indexed"], report["failed"], report["duplicates"]) == (6, 1, 1)
    return store


def test_again(folder: Path, store: Path) -> None:
    result = run(folder, "index", folder / "videos", "--store", store, "--fps=2")
    assert result.exit_code == 1
    assert "1 sources failed before" in result.stderr
    assert json.loads(result.stdout)["present"] == 6
    retried = run(folder, "index", "--retry-failed", "--reason=lost", "--store", store, "--fps=2")
    assert (retried.exit_code, json.loads(retried.stdout)["total"]) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no source is given"),
        (["x", "--reason=decode"], "without --retry-failed"),
        (["x", "--shard=2/2"], "must be I/N"),
        (["--retry-failed", "--reason=decodes"], "must be one of source, decode"),
        (["x", "--fps=2", "--frames=3"], "exclude each other"),
        (["x", "--fps=0"], "fps is 0"),
        (["x", "--watch=-1"], "--watch is -1"),
        (["-", "--watch=1"], "does not go with -"),
        (["x", "--workers=-1"], "workers is -1"),
        (["x", "--address=here"], "without --engine ray"),
        (["nowhere.mp4"], "nowhere.mp4 does not exist"),
    ],
)
def test_usage(folder: Path, arguments: list[str], says: str) -> None:
    result = run(folder, "index", *arguments, "--store", folder / "other.lmdb")
    assert result.exit_code == 2
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (folder / "other.lmdb").exists()


def test_a_folder_without_a_video(folder: Path, tmp_path: Path) -> None:
    result = run(folder, "index", tmp_path, "--store", tmp_path / "none.lmdb")
    assert (result.exit_code, json.loads(result.stdout)["found"]) == (0, 0)
    assert result.stderr.startswith("flamvid: nothing was indexed: no video is there")


def test_interrupted(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a watch always ends: the counts come all the same, and what there is can be used."""

    def sleep(seconds: float) -> None:
        if len(FeatureStore(store)) == 2:
            raise KeyboardInterrupt

    store = tmp_path / "s.lmdb"
    monkeypatch.setattr(library, "watched", partial(watched, sleep=sleep))
    sub = folder / "videos" / "sub dir"
    result = run(folder, "index", sub / "white*", sub / "lime*", "--store", store, "--watch=1")
    assert result.exit_code == 130
    assert json.loads(result.stdout)["indexed"] == 2
    assert result.stderr == "flamvid: interrupted\n"


def test_ray_says_nothing_on_stdout(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_part(
        work: Work, sources: Sequence[str], parts: Path, given: Cluster
    ) -> Iterator[tuple[Stats, Path]]:
        print("(raylet) a node died")
        yield cluster._task(work, sources, str(parts / "0.lmdb")), parts / "0.lmdb"

    monkeypatch.setattr(cluster, "_run", one_part)
    store = tmp_path / "s.lmdb"
    result = run(folder, "index", folder / "videos", "--store", store, "--engine=ray")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["indexed"] == 6
    assert "a node died" in result.stderr
    assert f"{folder}/videos/broken.mp4 is no video" in result.stderr


def test_hits(folder: Path, store: Path, tmp_path: Path) -> None:
    like = folder / "videos" / "sub dir" / "white 5.mp4"
    result = run(folder, "search", store, "--like", like, "--format=json", "--top=3")
    assert result.exit_code == 0
    best = json.loads(result.stdout)[0]
    assert best["video"] == str(like)
    assert best["play"] == f"{like}#t={best['start']:g},{best['end']:g}"

    command = shlex.split(best["cut"])
    command[0] = imageio_ffmpeg.get_ffmpeg_exe()
    subprocess.run([*command, "-loglevel", "error"], check=True, cwd=tmp_path)
    [made] = tmp_path.glob("*.mp4")
    said = subprocess.run([command[0], "-i", made], capture_output=True, text=True, check=False)
    assert f"Duration: 00:00:0{best['end'] - best['start']:.0f}" in said.stderr

    text = run(folder, "search", store, "--like", like, "--path", "*red*")
    assert "red 0.mp4#t=0,1" in text.stdout
    assert "white" not in text.stdout


def test_sheets(folder: Path, store: Path, tmp_path: Path) -> None:
    like = folder / "videos" / "blue 2.mp4"
    page, sheet = tmp_path / "hits.html", tmp_path / "hits.png"
    for target in (page, sheet):
        result = run(folder, "search", store, "--like", like, "--top=3", "-o", target)
        assert (result.exit_code, result.stdout) == (0, "")
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,/9j/") == 3
    assert f"{like.as_uri()}#t=" in text
    with Image.open(sheet) as picture:
        assert picture.size == (3 * 320, 180 + 34)
        red, green, blue = picture.getpixel((160, 90))
    assert blue > 200 > 60 > max(red, green)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["a dog"], 2, "no heads that read a text"),
        ([" "], 2, "is empty"),
        ([], 2, "give a text"),
        (["a dog", "--after=soon"], 2, "must be a date"),
        (["a dog", "--format=png"], 2, "give --output"),
        (["a dog", "--output=a.csv"], 2, "end its name in .json, .jsonl, .html, .png or .txt"),
        (["--like=nowhere.mp4"], 1, "nowhere.mp4 does not exist"),
        (["--like={red}", "--top=0"], 2, "top is 0"),
        (["--like={red}", "--top=0", "--approximate=ivf"], 2, "top is 0"),
        (["--like={red}", "--window=0"], 2, "window is 0"),
        (["a dog", "--start=3"], 2, "are of a clip"),
        (["--like={red}", "--effort=3"], 2, "without an approximate index"),
    ],
)
def test_search_usage(
    folder: Path, store: Path, arguments: list[str], code: int, says: str
) -> None:
    red = str(folder / "videos" / "red 0.mp4")
    result = run(folder, "search", store, *(a.replace("{red}", red) for a in arguments))
    assert result.exit_code == code
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("search none.lmdb dog", "can't open the store none.lmdb"),
        ("search text.lmdb dog", "text.lmdb is no feature store"),
        ("search {store} dog --window=0", "window is 0.0 s; must be above 0"),
        ("search {store} --like=none.mp4", "none.mp4 does not exist"),
        ("search {store} dog -o none/hits.html", "the folder none does not exist"),
        ("index none.mp4", "none.mp4 does not exist"),
        ("index . --store=text.lmdb", "text.lmdb is no feature store"),
        ("index . --store=none/s.lmdb", "the folder none does not exist"),
        ("live a.mp4 --store=text.lmdb", "text.lmdb is no feature store"),
        ("live a.mp4 --store=none/s.lmdb", "the folder none does not exist"),
        ("live a.mp4 --context=-1", "context is -1 captions"),
        ("live a.mp4 --memory=merge --long=0", "the long memory has 0 places"),
        ("live a.mp4 --alert=fire --alert-threshold=2", "the threshold of an alert is 2"),
        ("live a.mp4 --hwaccel=A!", "hwaccel is 'A!'"),
    ],
)
def test_what_is_wrong_is_told_before_a_model_is_loaded(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, says: str
) -> None:
    """There is no such model, which would be the complaint."""
    monkeypatch.chdir(tmp_path)
    Path("text.lmdb").write_text("no store")
    arguments = [word.replace("{store}", str(store)) for word in words.split()]
    result = CliRunner().invoke(app, [*arguments, "--model=no-such-model"])
    assert result.exit_code in (1, 2)
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_videos_of_a_store_are_listed(folder: Path, store: Path) -> None:
    """By what `store rm` takes."""
    listed = CliRunner().invoke(app, ["store", "list", str(store)])
    held = FeatureStore(store)
    wanted = {video: held[video].record for video in held}
    rows = [line.split("  ") for line in listed.stdout.splitlines()]
    assert {video: path for video, _, path in rows} == {v: r.path for v, r in wanted.items()}
    assert [path for *_, path in rows] == sorted(path for *_, path in rows)
    as_json = CliRunner().invoke(app, ["store", "list", str(store), "--json"])
    assert {row["id"]: row["duration"] for row in json.loads(as_json.stdout)} == {
        video: record.duration for video, record in wanted.items()
    }


def test_no_store(folder: Path) -> None:
    result = run(folder, "search", folder / "none.lmdb", "a dog")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
