"""`flamvid data`: a recipe goes in; lists, samples, problems and shards come out."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from flamvid.cli.main import app
from tests.tiny import encode, picture, write_tar

RECIPE = """
[[corpus]]
name = "stills"
kind = "images"
sources = ["s-*.tar"]
size = 16

[[validation]]
name = "held-out"
kind = "images"
sources = ["v.tar"]
size = 16
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command, in a folder with a recipe and its data: 3 and 2 stills, and 2 held out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLAMVID_HOME", str(tmp_path / ".cache"))
    monkeypatch.setattr("flamvid.cli.data.quiet_libraries", lambda: None)
    (tmp_path / "r.toml").write_text(RECIPE)
    for name, shades in (("s-0", (1, 2, 3)), ("s-1", (4, 5)), ("v", (6, 7))):
        write_stills(tmp_path / f"{name}.tar", shades)
    return lambda *arguments: CliRunner().invoke(app, ["data", *map(str, arguments)])


def write_stills(path: Path, shades: tuple[int, ...]) -> None:
    members = []
    for n, shade in enumerate(shades):
        data = encode(picture((shade, 0, 0)))
        members += [(f"{n}.webp", data), (f"{n}.txt", f"shade {shade}".encode())]
    write_tar(path, members)


def test_list(run: Callable[..., Result]) -> None:
    rows = json.loads(run("list", "r.toml", "--json").stdout)
    assert [(r["split"], r["corpus"], r["files"], r["samples"]) for r in rows] == [
        ("train", "stills", 2, 5),
        ("validation", "held-out", 1, 2),
    ]
    lines = run("list", "r.toml").stdout.splitlines()
    assert lines[1].split() == ["train", "stills", "images", "2", "5", "8", "1.0"]


def test_show(run: Callable[..., Result]) -> None:
    lines = [json.loads(line) for line in run("show", "r.toml", "-n", 4).stdout.splitlines()]
    assert [line["sample"] for line in lines[:4]] == [
        *(f"s-0.tar#{n}" for n in range(3)),
        "s-1.tar#0",
    ]
    assert len(lines) == 6
    assert lines[0]["parts"] == [{"frames": [1, 3, 16, 16], "pts": [0.0]}]
    assert lines[3]["captions"] == ["shade 4"]
    only = run("show", "r.toml", "--corpus", "held-out").stdout.splitlines()
    assert [json.loads(line)["split"] for line in only] == ["validation"] * 2


def test_show_names_a_sample_that_cant_be_read_and_goes_on(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    write_tar(tmp_path / "s-0.tar", [("a.webp", b"RIFF"), ("a.txt", b"a")])
    result = run("show", "r.toml", "--corpus", "stills")
    assert result.exit_code == 1
    assert [json.loads(line)["captions"] for line in result.stdout.splitlines()] == [
        ["shade 4"],
        ["shade 5"],
    ]
    [line] = result.stderr.splitlines()
    assert "train stills: s-0.tar#a: s-0.tar#a.webp is no image" in line


def test_verify_finds_nothing_where_all_is_well(run: Callable[..., Result]) -> None:
    result = run("verify", "r.toml")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "train stills: 5 samples are good" in result.stderr


def test_verify_names_each_problem_on_one_line(run: Callable[..., Result], tmp_path: Path) -> None:
    write_stills(tmp_path / "s-1.tar", (4, 2))  # 2 is in s-0 already
    other = [("z.webp", encode(picture((2, 0, 0)))), ("z.txt", b"another caption of it")]
    write_tar(tmp_path / "s-4.tar", other)
    write_stills(tmp_path / "v.tar", (6, 3))  # 3 is trained on
    (tmp_path / "s-2.tar").write_bytes(b"no tar" * 200)
    write_tar(tmp_path / "s-3.tar", [("a.webp", b"RIFF"), ("a.txt", b"a"), ("b.txt", b"b")])
    result = run("verify", "r.toml")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    wanted = [
        "train stills: s-1.tar#1: is a duplicate of s-0.tar#1",
        "train stills: s-2.tar: s-2.tar is no whole tar file",
        "train stills: s-3.tar#a: s-3.tar#a.webp is no image",
        "train stills: s-3.tar#b: b has txt; images were expected",
        "validation held-out: v.tar#1: leaks: it is in train stills: s-0.tar#2",
    ]
    assert len(lines) == len(wanted)
    for line, start in zip(lines, wanted, strict=True):
        assert line.startswith(start)
    assert "train stills: 5 samples are good" in result.stderr
    assert "5 problems" in result.stderr


def test_a_video_leaks_whatever_is_said_of_it_and_whichever_part_is_shown(
    run: Callable[..., Result],
) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i"]
    for name, source in (("a", "testsrc"), ("b", "testsrc2")):
        subprocess.run([*command, f"{source}=s=64x48:r=5:d=9", f"{name}.mp4"], check=True)
    shutil.copy("a.mp4", "copy.mp4")
    Path("t.csv").write_text("video,start,end,caption\na.mp4,0,3,one\na.mp4,0,3,uno\n")
    Path("v.csv").write_text("video,start,end,caption\ncopy.mp4,5,8,two\nb.mp4,0,3,one\n")
    tables = [
        f'[[{split}]]\nname = "m"\nkind = "manifest"\nsources = ["{file}.csv"]\n'
        for split, file in (("corpus", "t"), ("validation", "v"))
    ]
    Path("m.toml").write_text("".join(tables))
    result = run("verify", "m.toml")
    [line] = result.stdout.splitlines()
    assert line == "validation m: v.csv#copy.mp4@5-8: leaks: it is in train m: t.csv#a.mp4@0-3"
    assert "train m: 2 samples are good" in result.stderr
    assert "validation m: 1 samples are good" in result.stderr


def test_images_that_pages_lack_are_counted(run: Callable[..., Result]) -> None:
    Path("r.webp").write_bytes(encode(picture((9, 0, 0))))
    pages = [["r.webp", "gone.webp"], ["gone.webp", "gone.webp"], [None, None], [None, "b.webp"]]
    Path("b.webp").write_bytes(b"RIFF")
    lines = [json.dumps({"texts": ["one", *[None] * 2], "images": [None, *x]}) for x in pages]
    Path("p.jsonl").write_text("\n".join(lines))
    Path("p.toml").write_text(
        '[[corpus]]\nname = "p"\nkind = "interleaved"\nsources = ["p.jsonl"]\n'
    )
    result = run("verify", "p.toml")
    lacking, damaged = result.stdout.splitlines()
    assert lacking == "train p: p.jsonl#1: 1 has none of its 2 images"
    assert damaged.startswith("train p: p.jsonl#3: b.webp")
    assert "train p: 2 samples are good; 1 images of pages are missing" in result.stderr
    result = run("pack", "p.toml", "-o", "out")
    assert result.exit_code == 1
    assert "p.jsonl#1: 1 has none of its 2 images" in result.stderr
    assert "p.jsonl#3: 3 has none of its 1 images" in result.stderr
    assert "train p: 2 samples are packed; 1 images of pages are missing" in result.stderr


def test_packed_stills_are_the_same_stills(run: Callable[..., Result]) -> None:
    result = run("pack", "r.toml", "-o", "out", "--per-shard", 2)
    made = [f"out/train/stills-0000{n}.tar" for n in range(3)]
    assert result.stdout.splitlines() == [*made, "out/validation/held-out-00000.tar"]
    with tarfile.open(made[0]) as tar:
        assert [m.name for m in tar] == [
            f"00000000{n}.{suffix}" for n in range(2) for suffix in ("json", "webp")
        ]
        copy = tar.extractfile("000000001.webp")
        assert copy is not None
        assert copy.read() == encode(picture((2, 0, 0)))
    Path("p.toml").write_text(RECIPE.replace("s-*.tar", "out/train/*.tar"))
    lines = run("show", "p.toml", "--corpus", "stills", "-n", 9).stdout.splitlines()
    assert [json.loads(x)["captions"] for x in lines] == [[f"shade {n}"] for n in range(1, 6)]


def test_pictures_of_every_kind_are_there_after_packing(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    red, blue = (Image.new("RGB", (16, 16), name) for name in ("red", "blue"))
    members = []
    for kind in ("gif", "mpo", "jpeg", "png", "bmp", "tiff", "webp"):
        data = io.BytesIO()
        more = {"save_all": True, "append_images": [blue]} if kind in ("gif", "mpo") else {}
        red.save(data, kind, **more)
        name = kind if kind == "gif" else "jpg"  # the web calls all of them so
        members += [(f"{kind}.{name}", data.getvalue()), (f"{kind}.txt", kind.encode())]
    cut = data.getvalue()[:-40]
    write_tar(tmp_path / "s-0.tar", [*members, ("cut.webp", cut), ("cut.txt", b"cut")])
    (tmp_path / "s-1.tar").unlink()
    result = run("pack", "r.toml", "-o", "out", "--corpus", "stills")
    line, count = result.stderr.splitlines()
    assert "train stills: s-0.tar#cut: " in line
    assert count == "flamvid: train stills: 7 samples are packed"
    Path("p.toml").write_text(RECIPE.replace("s-*.tar", "out/train/*.tar"))
    shown = run("show", "p.toml", "--corpus", "stills", "-n", 9).stdout.splitlines()
    kinds = [json.loads(line)["captions"][0] for line in shown]
    assert kinds == ["gif", "mpo", "jpeg", "png", "bmp", "tiff", "webp"]


def test_shards_that_are_there_already_are_not_mixed_with_others(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    older = tmp_path / "out" / "validation" / "held-out-00007.tar"
    older.parent.mkdir(parents=True)
    older.write_bytes(b"")
    result = run("pack", "r.toml", "-o", "out")
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert "has shards of held-out already (held-out-00007.tar); remove them" in line
    assert [f for f in (tmp_path / "out").rglob("*") if f.is_file()] == [older]


def test_packed_clips_and_pages(run: Callable[..., Result]) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i"]
    subprocess.run([*command, "testsrc=s=64x48:r=5:d=9", "clip.mp4"], check=True)
    Path("m.csv").write_text("video,start,end,caption\nclip.mp4,2,5,a test\ngone.mp4,,,none\n")
    Path("r.webp").write_bytes(encode(picture((9, 0, 0))))
    Path("b.webp").write_bytes(b"RIFF")  # what half of the web's addresses give
    table = {"texts": ["one", None, None, "two"], "images": [None, "b.webp", "r.webp", None]}
    Path("p.jsonl").write_text(json.dumps(table))
    tables = "".join(
        f'[[corpus]]\nname = "{name}"\nkind = "{kind}"\nsources = ["{source}"]\n'
        for name, kind, source in (("m", "manifest", "m.csv"), ("p", "interleaved", "p.jsonl"))
    )
    Path("r2.toml").write_text(tables)
    result = run("pack", "r2.toml", "-o", "out")
    assert result.exit_code == 1
    assert "train m: m.csv#gone.mp4: " in result.stderr
    kinds = tables.replace('"manifest"', '"frames"')
    packed = kinds.replace("m.csv", "out/train/m-*.tar").replace("p.jsonl", "out/train/p-*.tar")
    Path("packed.toml").write_text(packed)
    clip, page = map(json.loads, run("show", "packed.toml").stdout.splitlines())
    assert clip["parts"] == [{"frames": [3, 3, 48, 64], "pts": [0.0, 1.0, 2.0]}]
    assert clip["captions"] == ["a test"]
    assert [part if isinstance(part, str) else "media" for part in page["parts"]] == [
        *("one", "media", " two"),
    ]
    # The whole video can be packed as it is; the part of one can't.
    Path("m.csv").write_text("video,start,end,caption\nclip.mp4,2,5,a test\nclip.mp4,,,whole\n")
    result = run("pack", "r2.toml", "-o", "whole", "--corpus", "m", "--videos")
    assert "is a part of a video" in result.stderr
    with tarfile.open("whole/train/m-00000.tar") as tar:
        copy = tar.extractfile("000000000.mp4")
        assert copy is not None
        assert copy.read() == Path("clip.mp4").read_bytes()


def test_a_shard_that_can_t_be_written_is_one_line(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("")
    result = run("pack", "r.toml", "-o", "out")
    assert result.exit_code == 1
    assert "can't write to out" in result.stderr


@pytest.mark.parametrize(
    ("recipe", "options", "complaint"),
    [
        (None, (), "no such file"),
        ("", (), "has no [[corpus]] table; a recipe must say what to train on"),
        ("[data]\n", (), "has no [[corpus]] table; this is for corpora, and a recipe with [data]"),
        (RECIPE.replace("sources = [\"v", "source = [\"v"), (), "did you mean 'sources'"),
        (RECIPE.replace("s-*.tar", "t-*.tar"), (), "no file matches 't-*.tar' in ."),
        (RECIPE, ("--corpus", "other"), "--corpus is 'other'; r.toml has held-out, stills"),
        (RECIPE, ("--data", "gone"), "--data is gone, which is no folder"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["list", "show", "verify"])
def test_what_is_wrong_is_said_on_one_line(
    run: Callable[..., Result],
    command: str,
    recipe: str | None,
    options: tuple[str, ...],
    complaint: str,
) -> None:
    if recipe is None:
        Path("r.toml").unlink()
    else:
        Path("r.toml").write_text(recipe)
    if command == "list" and "--corpus" in options:
        return
    result = run(command, "r.toml", *options)
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert complaint in line


def test_a_corpus_of_nothing_is_a_problem(run: Callable[..., Result]) -> None:
    """As it is to training, whichever command looks."""
    write_tar(Path("none.tar"), [])
    table = '[[corpus]]\nname = "c"\nkind = "images"\nsources = ["none.tar"]\n'
    Path("none.toml").write_text(table)
    for command in ("list", "verify"):
        result = run(command, "none.toml")
        assert result.exit_code in (1, 2)
        said = result.stdout + result.stderr  # of verify, a problem is data
        assert "none.tar" in said
        assert "holds no samples" in said
