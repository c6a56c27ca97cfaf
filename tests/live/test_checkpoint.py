"""A captioner that goes on from a file says what it would have said without the break."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from flamvid.errors import InputError
from flamvid.generate.config import GenerationConfig
from flamvid.live.captioner import LiveCaptioner, LiveConfig
from flamvid.live.checkpoint import restore, save_state
from flamvid.live.cue import Cue
from flamvid.live.memory import MemoryConfig
from flamvid.live.policies import Policy
from flamvid.live.trigger import ChangeConfig
from flamvid.weights.load import LoadedModel
from tests.live.script import Script, walls

SHORT = GenerationConfig(beams=1, max_tokens=6)


def live_of(model: LoadedModel, policy: Policy = Policy.MERGE, **changes: Any) -> LiveCaptioner:
    settings: dict[str, Any] = {
        "memory": MemoryConfig(policy=policy, recent=3, long=3),
        "every": 2.0,
        "on_change": ChangeConfig(high=0.001, low=0.0005),
        "when_different": 0.2,
        "context": 2,
    }
    return LiveCaptioner(model, LiveConfig(**(settings | changes)), SHORT)


def said(cues: list[Cue]) -> list[dict[str, Any]]:
    return [{k: v for k, v in asdict(c).items() if k not in ("wall", "latency")} for c in cues]


@pytest.mark.parametrize("policy", list(Policy))
def test_it_goes_on_as_if_nothing_had_happened(
    model: LoadedModel, policy: Policy, tmp_path: Path
) -> None:
    events = walls("red", "green", "blue", "red", each=6)
    whole = list(live_of(model, policy).watch(Script(events)))

    state = tmp_path / "state"
    first, before = live_of(model, policy), []
    for cue in first.watch(Script(events)):
        before.append(cue)
        save_state(first, state)
        if cue.end >= 6.0:
            break  # as by SIGKILL: nothing is tidied up

    second = live_of(model, policy)
    mark = restore(second, state)
    assert first.newest is not None
    assert mark.pts == first.newest.pts
    rest = Script([e for e in walls("red", "green", "blue", "red", each=6) if e.pts > mark.pts])
    after = list(second.watch(rest))
    for cue, same in zip(said([*before, *after]), said(whole), strict=True):
        logprob, wanted = cue.pop("logprob"), same.pop("logprob")
        memory, meant = cue.pop("memory"), same.pop("memory")
        assert logprob == pytest.approx(wanted, abs=1e-4)
        assert memory <= meant  # keys are worked out again when they are needed
        assert cue == same


def test_a_state_is_replaced_at_once(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, state = live_of(model), tmp_path / "state"
    list(live.watch(Script(walls("red"))))
    save_state(live, state)
    good = state.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flamvid.live.checkpoint.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_state(live, state)
    assert state.read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_nothing_to_keep_before_the_first_frame(model: LoadedModel, tmp_path: Path) -> None:
    save_state(live_of(model), tmp_path / "state")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("how", ["empty", "text", "cut", "foreign", "odd", "version"])
def test_a_file_that_is_no_state(model: LoadedModel, tmp_path: Path, how: str) -> None:
    state = tmp_path / "state"
    live = live_of(model)
    list(live.watch(Script(walls("red"))))
    save_state(live, state)
    match how:
        case "empty":
            state.write_bytes(b"")
        case "text":
            state.write_text("a dog runs " * 100)
        case "cut":
            state.write_bytes(state.read_bytes()[:-100])
        case "foreign":
            save_file({"a": torch.zeros(3)}, state)
        case "odd":
            save_file({"a": torch.zeros(3)}, state, {"flamvid live": json.dumps([1, 2])})
        case "version":
            table = {"version": 99, "of": {}}
            save_file({"a": torch.zeros(3)}, state, {"flamvid live": json.dumps(table)})
    with pytest.raises(InputError, match=r"begin anew|remove it"):
        restore(live_of(model), state)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fps": 4.0}, "fps 2.0, not 4.0"),
        ({"memory": MemoryConfig(policy=Policy.MERGE, recent=4, long=3)}, "recent 3, not 4"),
        ({"memory": MemoryConfig(policy=Policy.DROP, recent=3, long=3)}, "policy 'merge'"),
    ],
)
def test_other_settings(
    model: LoadedModel, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    live, state = live_of(model), tmp_path / "state"
    list(live.watch(Script(walls("red"))))
    save_state(live, state)
    with pytest.raises(InputError, match=says):
        restore(live_of(model, **changes), state)


def test_another_dtype(model: LoadedModel, tmp_path: Path) -> None:
    live, state = live_of(model), tmp_path / "state"
    list(live.watch(Script(walls("red"))))
    save_state(live, state)
    with pytest.raises(InputError, match="dtype 'float32', not 'bfloat16'"):
        restore(live_of(replace(model, dtype=torch.bfloat16)), state)
