"""The ablations: rows change what they name, budgets are equal, and a killed run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flamvid import config
from flamvid.data.samples import Document, Media
from flamvid.errors import ConfigError, InputError
from flamvid.models.build import read_model_config, skeleton
from flamvid.weights.load import LoadedModel, load_config
from tests.tiny import make_model, write_colours

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.append(str(TOOLS))

import ablate  # noqa: E402
from ablations import corpora, one  # noqa: E402
from ablations.one import Outcome, run_row  # noqa: E402
from ablations.rows import ROWS, Row  # noqa: E402
from ablations.scale import Scale  # noqa: E402
from ablations.table import Results, table, write_between  # noqa: E402

BY_NAME = {row.name: row for row in ROWS}
SCALE = Scale(
    updates=2,
    warmup=1,
    videos=3,
    images=2,
    documents=2,
    media=2,
    samples=8,
    held_out=6,
    grid=2,
    words=3,
)


@pytest.mark.parametrize(
    ("row", "preset"),
    [
        ("original", "flamingo-3b"),
        ("no video-text", "flamingo-3b-without-video"),
        ("no image-text", "flamingo-3b-without-images"),
        ("other image-text (LAION)", "flamingo-3b-laion"),
        ("no interleaved (M3W)", "flamingo-3b-without-m3w"),
        ("round robin", "flamingo-3b-round-robin"),
    ],
)
def test_rows_about_data_are_the_mixtures_of_the_presets(row: str, preset: str) -> None:
    stands_for = {"videos": ["VTP"], "images": ["ALIGN", "LTIP"], "documents": ["M3W"]}
    stands_for["other"] = ["LAION"]
    mixture = read_model_config(preset).mixture
    assert mixture is not None
    assert {n for c in BY_NAME[row].corpora for n in stands_for[c]} == set(mixture.weights)
    assert BY_NAME[row].mixing == mixture.mixing


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its LM's architecture, and a shard wherever the tool looks for one."""
    folder = tmp_path_factory.mktemp("ablate")
    toml = make_model(folder)
    lm = json.loads((folder / "lm" / "config.json").read_text())
    table = {k: v for k, v in lm.items() if isinstance(v, int | float | str)}
    toml.write_text(f"{toml.read_text()}\n{config.to_toml({'lm_config': table})}")
    for seed, name in enumerate((*corpora.SHARDS.values(), corpora.HELD_OUT)):
        (folder / name).parent.mkdir(exist_ok=True)
        write_colours(folder / name, 9, 4 if "msrvtt" in name else 1, seed)
    (folder / "work").mkdir()
    return folder


@pytest.fixture(scope="module")
def model(home: Path) -> LoadedModel:
    return load_config(read_model_config(str(home / "tiny.toml")), trained=False)


@pytest.fixture
def places(home: Path) -> corpora.Places:
    return corpora.Places(home, home / "no features", home / "work")


def trained(name: str) -> dict[str, int]:
    """How many parameters of each part a row of the real base trains."""
    base = read_model_config(str(TOOLS / "ablations" / "base.toml"))
    flamingo = skeleton(BY_NAME[name].change(base))
    sizes: Counter[str] = Counter()
    for key, parameter in flamingo.trained():
        sizes[key.partition(".")[0]] += parameter.numel()
    return dict(sizes)


def test_rows_of_equal_size_in_the_paper_are_of_equal_size_here() -> None:
    original = trained("original")
    for name in ("MLP resampler", "Transformer resampler"):
        assert trained(name)["resampler"] == pytest.approx(original["resampler"], rel=0.1)
    assert trained("GRAFTING")["xattn"] == pytest.approx(original["xattn"], rel=0.1)
    assert trained("no tanh gating")["xattn"] == original["xattn"] - 2 * 12  # two gates a layer


def test_rows_that_are_smaller_or_larger_in_the_paper_are_so_here() -> None:
    names = ("single in the middle", "every 4th", "every 2nd", "original")
    layers = [trained(name)["xattn"] for name in names]
    assert [round(x / layers[0]) for x in layers] == [1, 3, 6, 12]
    assert trained("VANILLA XATTN")["xattn"] < layers[-1] / 3
    sizes = [trained(f"{x}resampler")["resampler"] for x in ("small ", "large ")]
    assert sizes[0] < trained("original")["resampler"] < sizes[1]
    assert "lm" not in trained("original")
    assert trained("LM from scratch")["lm"] == trained("LM pretrained, unfrozen")["lm"] > 1e8


@given(st.integers(1, 40), st.integers(1, 12))
def test_frames_are_spread(count: int, wanted: int) -> None:
    at = corpora._spread(count, wanted)
    assert len(at) == len(set(at)) == min(count, wanted)
    assert at == sorted(at)
    assert at[0] >= 0
    assert at[-1] < count
    gaps = np.diff([-at[0] - 1, *at, 2 * count - 1 - at[-1]])  # mirrored at both ends
    assert gaps.max() - gaps.min() <= 2


def test_fields_are_means_of_neighbouring_patches() -> None:
    features = torch.randn(2, 16, 5)
    square = features.numpy().reshape(2, 2, 2, 2, 2, 5)  # T, field row, row, field column, ...
    wanted = square.mean((2, 4)).reshape(2, 4, 5)
    np.testing.assert_allclose(corpora._fields(features, 2).numpy(), wanted, atol=1e-6)


def test_a_text_stands_behind_its_own_picture() -> None:
    pairs = [Document(f"{n}", (Media(np.zeros(1)),), (f"text {n}", f"also {n}")) for n in range(7)]
    documents = corpora.interleave(pairs, 3, seed=0)
    assert [len(d.parts) for d in documents] == [6, 6]
    parts = [part for document in documents for part in document.parts]
    for n, pair in enumerate(pairs[:6]):
        assert parts[2 * n] is pair.parts[0]
        assert parts[2 * n + 1] in {f" {text}" for text in pair.texts}


def test_features_of_whole_shards_serve_as_well(
    places: corpora.Places, model: LoadedModel, tmp_path: Path
) -> None:
    """Those that `flamvid train` left and those that are made here are the same."""
    from flamvid.data.features import cache_name, compute_features, encoder_of

    def encode(pictures: list[torch.Tensor]) -> torch.Tensor:
        return model.flamingo.encode(torch.cat([model.transform(p[None]) for p in pictures]))

    shard = places.data / corpora.HELD_OUT
    compute_features(shard, tmp_path / cache_name(shard, encoder_of(model)), encode)
    (tmp_path / "work").mkdir()
    read = replace(places, features=tmp_path, work=tmp_path / "work")
    pairs = zip(*(corpora.held_out(x, SCALE, model) for x in (places, read)), strict=True)
    for made, found in pairs:
        assert (made.id, made.texts) == (found.id, found.texts)
        ours, theirs = made.parts[0], found.parts[0]
        assert isinstance(ours, Media)
        assert isinstance(theirs, Media)
        assert ours.features is not None
        assert ours.features.shape == (2, 4, 256)
        torch.testing.assert_close(ours.features, theirs.features, atol=2e-3, rtol=2e-3)


def test_epochs_hold_everything_once(places: corpora.Places, model: LoadedModel) -> None:
    corpus = corpora.training("images", places, SCALE, model, seed=0)
    keys = [k for b in islice(corpus.batches(model.prompts, 0), 8) for k in b.keys]
    assert Counter(keys[:8]) == Counter(keys[8:]) == Counter(f"m{n}" for n in range(8))
    assert keys[:8] != keys[8:]


def test_round_robin_sees_what_accumulation_sees(
    home: Path, places: corpora.Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[list[Any]]] = {}

    class Spy(one.Updater):
        def __call__(self, batches: Any) -> Any:
            seen[name].append([(b.corpus, b.keys, b.ids.tolist()) for b in batches])
            return super().__call__(batches)

    monkeypatch.setattr(one, "Updater", Spy)
    base = read_model_config(str(home / "tiny.toml"))
    for name in ("original", "round robin"):
        seen[name] = []
        run_row(BY_NAME[name], 0, base, places, SCALE, None, print)
    together, in_turn = seen["original"], seen["round robin"]
    assert [len(x) for x in together] == [3, 3]
    assert [x for update in together for x in update] == [x for (x,) in in_turn]


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_every_row_runs(row: Row, home: Path, places: corpora.Places) -> None:
    base = read_model_config(str(home / "tiny.toml"))
    if "encoder" in row.name:  # their weights are none of a test's
        row = replace(row, change=lambda config: config)
    outcome = run_row(row, 0, base, places, SCALE, lambda truth, said: float(len(said)), print)
    assert outcome.cider == 6
    assert 0 < outcome.loss < 20
    assert outcome.left_out == 0
    assert outcome.trained < outcome.parameters


def command(home: Path, *more: str) -> list[str]:
    scale = {
        "updates": 2,
        "warmup": 1,
        "samples": 6,
        "held_out": 4,
        "grid": 2,
        "media": 2,
        "words": 3,
    }
    return [
        *(sys.executable, str(TOOLS / "ablate.py"), "--no-cider", "--data", str(home)),
        *("--model", str(home / "tiny.toml"), "--features", str(home / "none")),
        *(x for key, value in scale.items() for x in ("--set", f"{key}={value}")),
        *more,
    ]


def test_a_killed_run_goes_on(home: Path, tmp_path: Path) -> None:
    names = ["original", "every 2nd", "VANILLA XATTN"]
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: begin -->\n<!-- table: end -->\nbehind\n")
    call = command(home, "--out", str(tmp_path), "--rows", *names)
    results = tmp_path / "results.jsonl"
    with subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        while not (results.exists() and results.read_bytes().count(b"\n")):
            assert first.poll() is None
            time.sleep(0.01)
        os.kill(first.pid, signal.SIGKILL)
    before = results.read_bytes()
    done = before[: before.rindex(b"\n") + 1]
    assert done.count(b"\n") < len(names)
    results.write_bytes(done + b'{"row": "every 2nd", "se')  # killed in the midst of a line
    subprocess.run([*call, "--table", str(page)], check=True, capture_output=True)
    assert results.read_bytes().startswith(done)
    lines = [line for line in results.read_text().splitlines() if line.endswith("}")]
    assert [json.loads(line)["row"] for line in lines] == names
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("behind\n")
    (line,) = [line for line in text.splitlines() if "every 2nd" in line]
    assert line.startswith("| every 2nd | 1 | ")


def outcome(loss: float, cider: float | None = None) -> Outcome:
    return Outcome(2_000_000, 1_000_000, 0.5, loss, loss, cider, 3, 0)


def test_the_table_has_means_over_seeds_and_empty_rows(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl", {"scale": 1})
    results.add("original", 0, outcome(4.0, 10.0))
    results.add("original", 1, outcome(5.0, 20.0))
    again = Results(tmp_path / "results.jsonl", {"scale": 1})
    lines = table(ROWS, again).splitlines()[2:]
    assert lines[0] == (
        "| original | 2 | 2.0 (1.0) | 0.50 | 4.500 | 15.0 | 3 | 3.2 | 1.74 | 70.7 |"
    )
    assert lines[1].split(" | ")[1:7] == ["0", "", "", "", "", ""]
    assert len(lines) == len(ROWS)
    assert not Results(tmp_path / "results.jsonl", {"scale": 2}).has("original", 0)


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks\n")
    with pytest.raises(InputError, match="put them where the table goes"):
        write_between(page, "x")
    assert page.read_text() == "no marks\n"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--rows", "originel"], "no row is called 'originel'; there are original"),
        (["--set", "updates=0"], "updates is 0; must be above 0"),
        (["--set", "update=3"], "did you mean 'updates'?"),
        (["--set", "updates"], "must be KEY=NUMBER"),
        (["--no-cider"], "has no coco/train-000.tar; give the folder of the shards"),
    ],
)
def test_bad_arguments_are_one_line(
    more: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["ablate.py", "--data", str(tmp_path), *more])
    assert ablate.main() == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert says in said


def test_a_scale_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="samples is 0"):
        Scale(samples=0)


def test_a_run_that_ends_in_its_warmup_is_refused() -> None:
    assert Scale(updates=11).warmup == 10
    with pytest.raises(ConfigError, match=r"warmup is 10; must be below updates \(10\)"):
        Scale(updates=10)
