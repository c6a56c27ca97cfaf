"""A general recipe from its file to a model that can be loaded, in one run and in two."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from flamvid.data.corpus import CorpusConfig
from flamvid.data.samples import Document, Media
from flamvid.data.sources import Samples
from flamvid.errors import ConfigError, InputError, SourceError, WeightsError
from flamvid.train import session
from flamvid.train.journal import read_journal
from flamvid.train.plan import Plan, read_plan
from flamvid.train.snapshot import Snapshots
from flamvid.weights.adapter import load_adapter
from flamvid.weights.load import load_model
from tests.tiny import WORDS, caption
from tests.train.recipes import write_recipe

CORPORA = """
[[corpus]]
name = "pages"
kind = "interleaved"
sources = ["pages-*.tar"]
batch = 2
size = 32

[[corpus]]
name = "clips"
kind = "frames"
sources = ["clips.tar"]
weight = 0.3
batch = 2
frames = 2
size = 32
"""
RUN = """
steps = 6
validate_every = 3
validation_batches = 2
"""


class Colours:
    """A shard of documents that name the colours of their media."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __len__(self) -> int:
        return 7

    def name(self, at: int) -> str:
        return f"{self.file}-{at}"

    def document(self, at: int) -> Document:
        media = []
        for which in (at % 3, (at + 1) % 3):
            frames = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
            frames[:, which] = 100 + at
            media.append(Media(pts=np.arange(2.0), frames=frames))
        texts = tuple(caption(WORDS[at % 3], n) for n in range(4))
        if "pages" not in Path(self.file).name:
            return Document(self.name(at), (media[0],), texts)
        return Document(self.name(at), (media[0], f" {texts[0]}", media[1], f" {texts[1]}"))


@pytest.fixture
def recipe(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def open_corpus(config: CorpusConfig, root: Path) -> Samples:
        files = [tmp_path / f"{config.name}-{n}" for n in range(2)]
        for file in files:
            file.touch()
        return Samples(Colours, [str(file) for file in files], "colours", near=14)

    monkeypatch.setattr("flamvid.data.mixture.open_corpus", open_corpus)
    return write_recipe(tmp_path / "mine.toml", tiny, CORPORA, RUN)


def run(plan: Plan, out: Path, **keys: Any) -> session.Outcome:
    return session.run(plan, out, keys.pop("resume", True), **{"log": lambda _: None, **keys})


def test_a_run_ends_in_a_model_that_loads(recipe: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    reports: list[Any] = []
    outcome = run(read_plan(recipe), tmp_path / "run", log=lines.append, watch=reports.append)
    assert outcome == session.Outcome(tmp_path / "run" / "model.toml", 6)
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert reports[-1].losses.keys() == {"pages", "clips"}
    assert sum(line.startswith("validation after") for line in lines) == 2
    assert any(line.startswith("resampler: ") for line in lines)

    loaded = dict(load_model(str(outcome.result)).flamingo.trained())
    trained, about = load_adapter(tmp_path / "run" / "adapter.safetensors")
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in trained.items())
    assert about["step"] == 6
    assert loaded["xattn.0.attn_gate"] != 0  # it began at 0

    entries = read_journal(tmp_path / "run")
    assert [e["step"] for e in entries if "loss" in e] == [1, 2, 3, 4, 5, 6]
    assert [e["step"] for e in entries if "validation" in e] == [3, 6]
    assert np.shape(entries[0]["gates"]) == (2, 2)
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert (tmp_path / "run" / best["snapshot"]).is_dir()
    # What was printed is a recipe of the same run.
    again = tmp_path / "run" / "plan.toml"
    assert read_plan(again, root=tmp_path).table() == read_plan(recipe).table()


def test_a_run_in_two_is_a_run_in_one(recipe: Path, tmp_path: Path) -> None:
    whole = run(read_plan(recipe), tmp_path / "whole").result
    plan = read_plan(recipe)

    def stop_at(step: int) -> Callable[[Any], None]:
        def watch(report: Any) -> None:
            if report.step == step:
                signal.raise_signal(signal.SIGTERM)

        return watch

    first = run(plan, tmp_path / "cut", watch=stop_at(3))
    assert first == session.Outcome(None, 4)  # the update in which the signal was seen
    second = run(plan, tmp_path / "cut").result
    assert whole is not None
    assert second is not None
    one, two = (load_adapter(path.with_name("adapter.safetensors"))[0] for path in (whole, second))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_finished_run_keeps_the_recipe_of_its_weights(recipe: Path, tmp_path: Path) -> None:
    out, lines = tmp_path / "run", list[str]()
    run(read_plan(recipe), out)
    planned = (out / "plan.toml").read_bytes()
    assert run(read_plan(recipe), out, log=lines.append).step == 6
    assert lines[0].startswith(f"{out} is finished, after 6 updates: nothing is left to train; ")
    for change, key in (
        ("optim.learning_rate=1e-3", "optim.learning_rate"),
        ("run.steps=4", "run.steps"),
        ("corpus.clips.weight=0.5", "corpus"),
    ):
        with pytest.raises(InputError, match=rf"finished.* \({key}\).*; --fresh .*run.steps"):
            run(read_plan(recipe, [change]), out)
    assert (out / "plan.toml").read_bytes() == planned
    # Nor does one that is refused change what the weights in the folder are said to be of.
    with pytest.raises(ConfigError):
        run(read_plan(recipe, ["run.steps=8", "corpus.clips.batch=3"]), out)
    assert (out / "plan.toml").read_bytes() == planned

    lines.clear()
    assert run(read_plan(recipe, ["run.steps=8"]), out, log=lines.append).step == 8
    assert f"resumed from {out / 'step-00000006'} with other settings (run.steps)" in lines
    assert read_plan(out / "plan.toml", root=tmp_path).run.steps == 8
    assert load_adapter(out / "adapter.safetensors")[1]["step"] == 8


def test_features_are_encoded_once_in_all_epochs(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flamvid.models.flamingo import Flamingo

    encoded: list[int] = []
    encode = Flamingo.encode

    def counting(self: Flamingo, pictures: torch.Tensor) -> torch.Tensor:
        encoded.append(len(pictures))
        return encode(self, pictures)

    monkeypatch.setattr(Flamingo, "encode", counting)
    plain = ["corpus.*.flip=0", "corpus.*.jitter=0"]
    run(read_plan(recipe, [*plain, "run.steps=40"]), tmp_path / "run")
    # 14 different pictures, two in each of seven documents; every corpus has the same.
    assert sum(encoded) == 14
    stale = tmp_path / "run" / "unreadable.jsonl"
    stale.touch()
    run(read_plan(recipe, plain), tmp_path / "run", resume=False)
    assert sum(encoded) == 14  # nor in another run beside the same file
    assert not stale.exists()
    run(read_plan(recipe, [*plain, "run.cache=''"]), tmp_path / "other")
    assert sum(encoded) > 28


def test_what_is_wrong_is_said_before_the_first_update(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run has no key 'step'; did you mean 'steps'"):
        read_plan(recipe, ["run.step=3"])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"can't write to .*file/run: Not a directory"):
        run(read_plan(recipe), tmp_path / "file" / "run")


def test_room_is_asked_for_what_is_not_there_yet(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, out = read_plan(recipe, ["run.keep=1"]), tmp_path / "run"
    run(plan, out)
    one = sum(f.stat().st_size for f in Snapshots(out).all()[-1].iterdir())
    # A disk that it fitted onto, as it is now: `keep`, the best and one more.
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2 * one))
    assert run(plan, out).step == 6
    with pytest.raises(InputError, match=r"has .* MB free, its snapshots take up to .* MB more"):
        run(plan, tmp_path / "other")


def test_a_result_that_cannot_be_written_is_one_line(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / "model.toml.part").mkdir(parents=True)
    with pytest.raises(WeightsError, match=r"can't write the trained model to .*Is a directory"):
        run(read_plan(recipe), out)
    assert Snapshots(out).latest() == out / "step-00000006"
    (out / "model.toml.part").rmdir()
    assert run(read_plan(recipe), out).step == 6


@pytest.mark.parametrize("name", ["plan.toml", "log.part"])
def test_a_folder_that_cannot_be_written_is_one_line(
    recipe: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(InputError, match=r"can't write to .*run: Is a directory; make room, or"):
        run(read_plan(recipe), tmp_path / "run")


def test_a_validation_that_cannot_be_read_ends_the_run(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readable = Colours.document

    def document(shard: Colours, at: int) -> Document:
        if "held out" in shard.file:
            raise SourceError(f"{shard.name(at)} is damaged")
        return readable(shard, at)

    monkeypatch.setattr(Colours, "document", document)
    with pytest.raises(SourceError, match="validation has no sample that can be read"):
        run(read_plan(recipe), tmp_path / "run")


def test_a_trial_keeps_nothing(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(shard: Colours, at: int) -> Document:
        raise SourceError(f"{shard.name(at)} is damaged")

    plan = read_plan(recipe)
    trial = session.try_out(plan, tmp_path / "run")
    monkeypatch.setattr(Colours, "document", unreadable)
    session.try_out(plan, tmp_path / "run")
    assert trial.seconds > 0
    assert trial.updates == plan.run.steps
    assert not [*tmp_path.rglob("*.jsonl"), *tmp_path.rglob("*.sqlite")]
    trained = {part.name: part.trained for part in trial.parts}
    assert trained["vision encoder"] == trained["language model"] == 0
    assert trained["resampler"] > 0


def test_low_rank_changes_end_in_a_whole_model(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    plan = read_plan(recipe, ["model.lora=2", "run.steps=4"])
    outcome = run(plan, tmp_path / "run")
    assert outcome.result == tmp_path / "run" / "model"
    found = load_model(str(outcome.result)).flamingo.lm.lm.state_dict()
    before = load_model(plan.model.name, trained=False).flamingo.lm.lm
    changed = [
        n for n, t in before.state_dict().items() if n in found and not torch.equal(t, found[n])
    ]
    assert all(found[n].shape == t.shape for n, t in before.state_dict().items() if n in found)
    assert changed or set(found).isdisjoint(before.state_dict())
    assert not any("lora" in name for name in found)


def test_fine_tuning_trains_vision_too(recipe: Path, tmp_path: Path) -> None:
    plan = read_plan(recipe, ["model.size=64", "run.steps=2"]).fine_tuned()
    outcome = run(plan, tmp_path / "run")
    assert outcome.result == tmp_path / "run" / "model"
    tuned, before = (
        load_model(name).flamingo.vision.state_dict()
        for name in (str(outcome.result), plan.model.name)
    )
    same = {name: torch.equal(tuned[name], before[name]) for name in before}
    assert not same["model.conv_stem.weight"]
    assert all(value for name, value in same.items() if "running_" in name)
