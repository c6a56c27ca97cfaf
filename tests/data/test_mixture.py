"""Mixtures: what each update holds, wherever and however often it was stopped."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from flamvid.data import sources
from flamvid.data.collate import Bad, Batch
from flamvid.data.corpus import CorpusConfig
from flamvid.data.ledger import Ledger
from flamvid.data.mixture import Mixture
from flamvid.data.pack import pack
from flamvid.data.sources import open_corpus
from flamvid.data.verify import verify
from flamvid.errors import ConfigError, SourceError
from flamvid.text.prompt import PromptFormat
from tests.data.conftest import corpus
from tests.tiny import encode, picture, write_tar

Update = tuple[Batch, ...]


@pytest.fixture
def corpora(tmp_path: Path) -> list[CorpusConfig]:
    """Pairs of 23 in three shards, and 10 texts."""
    at = 0
    for shard, count in enumerate((10, 4, 9)):
        members = []
        for _ in range(count):
            members += [(f"{at}.webp", encode(picture((at * 10, 0, 0)))), (f"{at}.txt", b"red")]
            at += 1
        write_tar(tmp_path / f"s-{shard}.tar", members)
    lines = "\n".join(json.dumps({"text": f"text {n}"}) for n in range(10))
    (tmp_path / "t.jsonl").write_text(lines)
    return [corpus("images", "s-*.tar", batch=4, shuffle=6), corpus("text", "t.jsonl", batch=3)]


def same(one: Update, other: Update) -> bool:
    tensors = [(x.ids, x.targets, x.attend_next, x.frames) for x in one]
    others = [(x.ids, x.targets, x.attend_next, x.frames) for x in other]
    return [x.keys for x in one] == [x.keys for x in other] and all(
        a is b or (a is not None and b is not None and torch.equal(a, b))
        for x, y in zip(tensors, others, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def mixture(corpora: list[CorpusConfig], prompts: PromptFormat, root: Path, **more: Any) -> Mixture:
    return Mixture(corpora, prompts, root=root, seed=7, **more)


def test_every_epoch_has_every_sample_once(
    corpora: list[CorpusConfig], prompts: PromptFormat, tmp_path: Path
) -> None:
    updates = mixture(corpora, prompts, tmp_path)
    assert updates.samples == {"images": 23, "text": 10}
    seen = [key for _ in range(23) for key in next(updates)[0].keys]  # 4 epochs of 23
    for epoch in range(4):
        assert sorted(map(int, seen[epoch * 23 : epoch * 23 + 23])) == list(range(23))
    assert seen[:23] != seen[23:46]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mixing", ["accumulate", "round-robin"])
def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(
    corpora: list[CorpusConfig], prompts: PromptFormat, tmp_path: Path, workers: int, mixing: str
) -> None:
    whole = mixture(corpora, prompts, tmp_path, mixing=mixing)
    wanted = [next(whole) for _ in range(12)]
    parts: list[Update] = []
    state: dict[str, Any] = {}
    for length in (5, 1, 6):
        part = mixture(corpora, prompts, tmp_path, mixing=mixing, workers=workers)
        if state:
            part.load_state_dict(json.loads(json.dumps(state)))
        parts += [next(part) for _ in range(length)]
        state = part.state_dict()
    assert all(same(a, b) for a, b in zip(wanted, parts, strict=True))
    assert {len(update) for update in wanted} == ({2} if mixing == "accumulate" else {1})


def test_reading_ahead_takes_no_random_number(
    corpora: list[CorpusConfig], prompts: PromptFormat, tmp_path: Path
) -> None:
    """Or the first update after a snapshot would drop out others than it did before."""
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    next(mixture(corpora, prompts, tmp_path, workers=1))
    assert torch.rand(1) == wanted


@pytest.mark.parametrize("workers", [0, 2])
def test_no_epoch_changes_a_picture_as_another_does(
    corpora: list[CorpusConfig], prompts: PromptFormat, tmp_path: Path, workers: int
) -> None:
    jittered = replace(corpora[0], batch=23, jitter=0.4)
    updates = mixture([jittered], prompts, tmp_path, workers=workers)
    looks = []
    for _ in range(4):
        [batch] = next(updates)
        assert batch.frames is not None
        looks.append(batch.frames[batch.keys.index("20")])
    assert not any(torch.equal(one, other) for one, other in combinations(looks, 2))


def test_round_robin_takes_turns(
    corpora: list[CorpusConfig], prompts: PromptFormat, tmp_path: Path
) -> None:
    turns = mixture(corpora, prompts, tmp_path, mixing="round-robin")
    together = mixture(corpora, prompts, tmp_path)
    for _ in range(3):
        both = next(together)
        assert same((both[0],), next(turns))
        assert same((both[1],), next(turns))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_batch_and_any_number_goes_on_from_any(
    corpora: list[CorpusConfig], prompts: PromptFormat, tmp_path: Path, world: int
) -> None:
    alone = mixture(corpora, prompts, tmp_path)
    ranks = [mixture(corpora, prompts, tmp_path, rank=r, world=world) for r in range(world)]
    for _ in range(4):
        one, parts = next(alone), [next(rank) for rank in ranks]
        for at in range(2):
            assert one[at].keys == tuple(key for part in parts for key in part[at].keys)
    assert all(rank.state_dict() == alone.state_dict() for rank in ranks)
    resumed = mixture(corpora, prompts, tmp_path)
    resumed.load_state_dict(ranks[-1].state_dict())
    assert same(next(alone), next(resumed))


def test_validation_draws_nothing(
    corpora: list[CorpusConfig], prompts: PromptFormat, tmp_path: Path
) -> None:
    one, other = (
        Mixture(corpora, prompts, root=tmp_path, seed=seed, augment=False) for seed in (1, 2)
    )
    assert same(next(one), next(other))
    assert not any(batch.attend_next.any() for batch in next(one))


def test_a_process_with_workers_can_end(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "text"}')
    script = f"""
from pathlib import Path
from flamvid.text.prompt import PromptFormat
from tests.data.conftest import corpus
from tests.data.test_mixture import mixture
from tests.tiny import make_tokenizer
prompts = PromptFormat(make_tokenizer(), 1, 2, 3)
updates = mixture([corpus("text", "t.jsonl")], prompts, Path({str(tmp_path)!r}), workers=2)
print(len(next(updates)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"1\n", b"")


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_samples_are_named_once_and_left_out(
    prompts: PromptFormat, tmp_path: Path, workers: int
) -> None:
    members = []
    for n in range(10):
        data = encode(picture((n, 0, 0)))
        members += [(f"{n}.webp", b"RIFF" if n in (3, 7) else data), (f"{n}.txt", b"red")]
    write_tar(tmp_path / "s.tar", members)
    ledger = tmp_path / "bad.jsonl"
    config = corpus("images", "s.tar", batch=5, max_bad=2)
    updates = mixture([config], prompts, tmp_path, ledger=ledger, workers=workers)
    seen = Counter(key for _ in range(4) for key in next(updates)[0].keys)  # two epochs
    assert seen == {str(n): 2 for n in range(10) if n not in (3, 7)}
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert sorted(line["sample"].rpartition("#")[2] for line in lines) == ["3", "7"]
    assert all(line["corpus"] == "images" and "s.tar" in line["reason"] for line in lines)
    state = updates.state_dict()
    assert len(state["bad"]["images"]) == 2
    next(mixture([config], prompts, tmp_path, ledger=ledger))  # as after a kill
    assert len(ledger.read_text().splitlines()) == 2

    strict = corpus("images", "s.tar", batch=5, max_bad=1)
    limited = mixture([strict], prompts, tmp_path)
    with pytest.raises(SourceError, match="2 samples can't be read, max_bad is 1"):
        [*zip(range(2), limited, strict=False)]


def test_what_two_processes_met_is_counted_once() -> None:
    config = corpus("images", "s.tar", max_bad=2)
    ledgers = [Ledger(None, [config], {"images": 9}, later=True) for _ in range(2)]
    for ledger, names in zip(ledgers, ("ab", "bc"), strict=True):
        ledger.add("images", [Bad(name, "damaged") for name in names])
    ledgers[0].share([*ledgers[0].news, ("images", "b", "damaged")])
    assert ledgers[0].known == {"images": ["a", "b"]}
    assert not ledgers[0].news
    with pytest.raises(SourceError, match="3 samples can't be read, max_bad is 2; the last is c"):
        ledgers[0].share(ledgers[1].news)


def test_a_ledger_that_cannot_be_written_stops_no_run(
    prompts: PromptFormat, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tar(tmp_path / "s.tar", [("0.webp", b"RIFF"), ("0.txt", b"red"),
              ("1.webp", encode(picture((1, 0, 0)))), ("1.txt", b"red")])  # fmt: skip
    config = corpus("images", "s.tar", batch=2)
    [batch] = next(mixture([config], prompts, tmp_path, ledger=tmp_path))  # a folder
    assert batch.keys == ("1",)
    [record] = caplog.records
    assert "Is a directory; it lacks" in record.getMessage()
    assert "s.tar#0" in record.getMessage()


def test_a_shard_that_is_gone_is_bad_samples(
    corpora: list[CorpusConfig], prompts: PromptFormat, tmp_path: Path
) -> None:
    """Disks are unmounted while a run of days goes on; and a shard may be written anew."""
    ledger = tmp_path / "bad.jsonl"
    config = replace(corpora[0], max_bad=5)
    updates = mixture([config], prompts, tmp_path, ledger=ledger)
    for samples in updates._updates.samples:
        samples._shards.clear()
    (tmp_path / "s-1.tar").unlink()  # of 4 samples
    red = encode(picture((1, 0, 0)))
    members = [(f"{n}.{kind}", data) for n in range(8) for kind, data in
               (("webp", red), ("txt", b"red"))]  # fmt: skip
    write_tar(tmp_path / "s-2.tar", members)  # of 9 before
    keys = [key for _ in range(6) for key in next(updates)[0].keys]
    assert len(keys) in (18, 19)  # an epoch, and the first of the next
    lines = [json.loads(line)["sample"] for line in ledger.read_text().splitlines()]
    assert sorted(line.rpartition("/")[2] for line in lines) == [
        *(f"s-1.tar#{n}" for n in range(4)),
        "s-2.tar#8",
    ]


def test_half_a_character_is_no_end_of_a_run(prompts: PromptFormat, tmp_path: Path) -> None:
    """JSON may hold a lone surrogate, which neither a tokenizer nor UTF-8 takes."""
    half = "a \ud800 dog"
    (tmp_path / "r.webp").write_bytes(encode(picture((9, 0, 0))))
    tables = {
        "text": {"text": half},
        "manifest": {"video": "r.webp", "caption": half},
        "interleaved": {"texts": [half, None], "images": [None, "r.webp"]},
    }
    for name, table in tables.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(table))
    corpora = [corpus(name, f"{name}.jsonl", batch=1) for name in tables]
    for batch in next(mixture(corpora, prompts, tmp_path)):
        assert batch.keys
        assert not batch.bad
    for config in corpora:
        assert not list(verify({"train": [config]}, tmp_path))
    for config in corpora[1:]:
        assert [type(made) for made in pack(config, tmp_path, tmp_path / "out")] == [type(tmp_path)]


def test_a_batch_of_bad_samples_alone_has_nothing_scored(
    prompts: PromptFormat, tmp_path: Path
) -> None:
    good = [("b.webp", encode(picture((9, 0, 0)))), ("b.txt", b"red")]
    write_tar(tmp_path / "s.tar", [("a.webp", b"RIFF"), ("a.txt", b"red"), *good])
    updates = mixture([corpus("images", "s.tar", batch=1)], prompts, tmp_path)
    [batch] = [batch for (batch,) in (next(updates), next(updates)) if batch.bad]
    assert batch.keys == ()
    assert len(batch.bad) == 1
    assert (batch.targets == -100).all()


def test_a_corpus_without_a_good_sample_is_none(prompts: PromptFormat, tmp_path: Path) -> None:
    """However few they are: nothing would be learnt, and nobody told."""
    broken = [(f"{n}.{kind}", b"RIFF") for n in range(3) for kind in ("webp", "txt")]
    write_tar(tmp_path / "s.tar", broken)
    updates = mixture([corpus("images", "s.tar", batch=2)], prompts, tmp_path)
    next(updates)
    with pytest.raises(SourceError, match=r"corpus .*none of its 3 samples can be read"):
        next(updates)


def test_videos_are_decoded_in_workers(prompts: PromptFormat, tmp_path: Path, clip: Path) -> None:
    write_tar(tmp_path / "v.tar", [("a.mp4", clip.read_bytes()), ("a.txt", b"grey")])
    config = corpus("videos", "v.tar", batch=2)
    [here] = next(mixture([config], prompts, tmp_path))
    [there] = next(mixture([config], prompts, tmp_path, workers=1))
    assert here.frames is not None
    assert here.frames.shape == (2, 1, 8, 3, 16, 16)
    assert not torch.equal(here.frames[0], here.frames[1])  # two epochs, two places in the clip
    assert same((here,), (there,))


def test_features_of_a_cache(prompts: PromptFormat, tmp_path: Path) -> None:
    from flamvid.data.features import compute_features

    captions = json.dumps({"captions": ["red"]}).encode()
    members = []
    for n in range(3):
        for t in range(n + 1):
            members.append((f"{n}.f{t}.webp", encode(picture((n * 10 + t, 0, 0)))))
        members.append((f"{n}.json", captions))
    shard = write_tar(tmp_path / "s.tar", members)
    compute_features(
        shard,
        tmp_path / "f.safetensors",
        lambda pictures: torch.stack([p[:, :2, 0].float().T for p in pictures]),
    )
    config = corpus("features", "f.safetensors", batch=3)
    [batch] = next(mixture([config], prompts, tmp_path, augment=False))
    assert batch.frames is None
    assert batch.features is not None
    assert batch.frame_counts is not None
    assert batch.features.shape == (3, 1, 3, 2, 3)
    assert batch.frame_counts[:, 0].tolist() == [1, 2, 3]
    assert batch.features[2, 0, :, 0, 0].tolist() == [20, 21, 22]


def test_a_state_of_other_data_is_refused(
    corpora: list[CorpusConfig], prompts: PromptFormat, tmp_path: Path
) -> None:
    state = mixture(corpora, prompts, tmp_path).state_dict()
    (tmp_path / "s-1.tar").unlink()
    with pytest.raises(ConfigError, match=r"since the run was stopped \(corpus images\)"):
        mixture(corpora, prompts, tmp_path).load_state_dict(state)


def test_a_state_of_as_many_other_samples_is_refused(
    corpora: list[CorpusConfig], prompts: PromptFormat, tmp_path: Path
) -> None:
    state = mixture(corpora, prompts, tmp_path).state_dict()
    shutil.copytree(tmp_path, tmp_path / "moved")
    mixture(corpora, prompts, tmp_path / "moved").load_state_dict(state)
    (tmp_path / "s-1.tar").rename(tmp_path / "s-9.tar")  # is another in the order of files
    with pytest.raises(ConfigError, match=r"since the run was stopped \(corpus images\)"):
        mixture(corpora, prompts, tmp_path).load_state_dict(state)


def test_turns_go_on_in_their_order_alone(
    corpora: list[CorpusConfig], prompts: PromptFormat, tmp_path: Path
) -> None:
    state = mixture(corpora, prompts, tmp_path, mixing="round-robin").state_dict()
    with pytest.raises(ConfigError, match="since the run was stopped"):
        mixture(corpora[::-1], prompts, tmp_path, mixing="round-robin").load_state_dict(state)


def test_rules(corpora: list[CorpusConfig], prompts: PromptFormat, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mixing is 'both'"):
        mixture(corpora, prompts, tmp_path, mixing="both")
    with pytest.raises(ConfigError, match="batch is 3 for 4 processes"):
        mixture(corpora, prompts, tmp_path, world=4)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"kind": "movies"}, "kind is 'movies'"),
        ({"sources": "a.tar"}, "must be a list"),
        ({"sources": ()}, "sources is empty"),
        ({"batch": 0}, "batch is 0; must be above 0"),
        ({"flip": 1.5}, r"flip is 1\.5; must be in \[0, 1\]"),
        ({"resize": "stretch"}, "resize is 'stretch'"),
        ({"max_bad": -1}, "must not be negative"),
        ({"max_tokens": 2}, "must be 3 or more"),
        ({"fill": (1.0, 2.0, 0.0)}, "three numbers"),
    ],
)
def test_rules_of_a_corpus(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=f"corpus c: .*{complaint}"):
        CorpusConfig(**{"name": "c", "kind": "images", "sources": ("a.tar",)} | settings)


def test_a_shard_is_opened_about_once_an_epoch(
    prompts: PromptFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shard in range(80):
        texts = [(f"{n}.txt", f"text {shard} {n}".encode()) for n in range(5)]
        write_tar(tmp_path / f"t-{shard:02}.tar", texts)
    opened: Counter[str] = Counter()
    real = sources.TarShard

    def counting(address: str, config: CorpusConfig) -> sources.TarShard:
        opened[address] += 1
        return real(address, config)

    config = corpus("text", "t-*.tar", batch=8, shuffle=20, lanes=8)
    open_corpus(config, tmp_path)  # from here on the counts are known
    monkeypatch.setattr(sources, "TarShard", counting)
    updates = mixture([config], prompts, tmp_path)
    assert sum(len(next(updates)[0].keys) for _ in range(50)) == 400
    assert len(opened) == 80
    assert max(opened.values()) <= 2
