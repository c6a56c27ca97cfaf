"""Cues of scripted streams: when they come, what they are of, and what they count."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flamvid.errors import DecodeError, FlamvidError, InputError
from flamvid.generate.config import Generated, GenerationConfig
from flamvid.generate.prompt import Prompt
from flamvid.live.alarm import Alarm, Alert
from flamvid.live.budget import Budget, Shed
from flamvid.live.captioner import LiveCaptioner, LiveConfig, sizes_of
from flamvid.live.cue import Cue
from flamvid.live.memory import MemoryConfig
from flamvid.live.policies import Policy
from flamvid.live.speaker import Speaker
from flamvid.live.trigger import Bell, Change, ChangeConfig, Every
from flamvid.video.events import Event, Gap
from flamvid.weights.load import LoadedModel
from tests.live.script import Script, frame, walls

SHORT = GenerationConfig(beams=1, max_tokens=6)


def watch(model: LoadedModel, events: Sequence[Event], **settings: Any) -> list[Cue]:
    return list(LiveCaptioner(model, LiveConfig(**settings), SHORT).watch(Script(events)))


def spans(cues: list[Cue]) -> list[tuple[str, float, float]]:
    return [(cue.why, cue.start, cue.end) for cue in cues]


def test_by_the_clock_and_at_the_end(model: LoadedModel) -> None:
    cues = watch(model, walls("red", "green", each=5), every=2.0)
    assert spans(cues) == [("every", 0, 2), ("every", 2, 4), ("end", 4, 5)]
    assert [cue.seen for cue in cues] == [4, 8, 10]
    assert all(cue.model == "tiny" and cue.policy == "window" for cue in cues)
    assert cues[0].text


def test_nothing_is_said_twice_at_the_end(model: LoadedModel) -> None:
    assert spans(watch(model, walls("red"), every=1.0)) == [("every", 0, 1), ("every", 1, 2)]


@pytest.mark.parametrize("policy", list(Policy))
def test_what_is_remembered_stays_under_its_cap(model: LoadedModel, policy: Policy) -> None:
    memory = MemoryConfig(policy=policy, recent=3, long=2)
    cues = watch(model, walls("red", "green", "blue", each=8), memory=memory)
    assert max(cue.memory for cue in cues) <= sizes_of(model).most(memory)
    assert cues[-1].memory > 0
    assert cues[-1].since == (10.5 if policy is Policy.WINDOW else pytest.approx(0, abs=12))


def test_a_change_of_scene_is_told_once_and_without_the_scene_before(model: LoadedModel) -> None:
    events = walls("red", "blue", each=6)
    change = ChangeConfig(high=0.001, low=0.0005)
    cues = watch(model, events, every=None, on_change=change)
    assert spans(cues) == [("change", 0, 1), ("change", 3, 4), ("end", 4, 6)]
    for cue, colour in zip(cues, ("red", "blue"), strict=False):
        [alone] = watch(model, [frame(i, colour) for i in range(2)], every=None)
        assert cue.text == alone.text
        assert cue.logprob == pytest.approx(alone.logprob, abs=1e-3)


def test_change_needs_to_settle_before_it_fires_again() -> None:
    a, b = torch.eye(4)[0], torch.eye(4)[1]
    change = Change(ChangeConfig(high=0.5, low=0.1, pace=0.5, least=0.0))
    at = [change.look(x, t / 2) for t, x in enumerate([a, a, b, a, b, a, a, a, a, a, a, b])]
    assert at == [False, False, True] + [False] * 8 + [True]


def test_it_speaks_when_the_caption_would_differ(model: LoadedModel) -> None:
    def cues(*colours: str) -> list[Cue]:
        memory = MemoryConfig(recent=2)
        events = walls(*colours, each=6)
        return watch(model, events, every=None, when_different=0.1, memory=memory)

    assert spans(cues("red", "red")) == [("different", 0, 1), ("end", 1, 6)]
    changed = cues("red", "blue")
    assert [cue.why for cue in changed][:2] == ["different", "different"]
    assert 3 < changed[1].end <= 5
    assert changed[0].text != changed[1].text


def test_on_demand(model: LoadedModel) -> None:
    live = LiveCaptioner(model, LiveConfig(every=None), SHORT)
    live.bell.ring()  # before there is anything to see: not answered
    events = Script(walls("red"))
    plain = events.get

    def get(timeout: float | None = None) -> Event | None:
        if len(events.events) == 1:
            live.bell.ring()
            live.bell.ring("what is red?")
        return plain(timeout)

    events.get = get  # type: ignore[method-assign]
    cues = list(live.watch(events))
    assert [(c.kind.value, c.why, c.question) for c in cues] == [
        ("caption", "asked", ""),
        ("answer", "asked", "what is red?"),
        ("caption", "end", ""),
    ]
    assert (cues[0].start, cues[0].end) == (0.0, 2.0)
    assert cues[1].text


def test_a_question_each_time(model: LoadedModel) -> None:
    cues = watch(model, walls("red"), every=1.0, question="Which colour?")
    assert {cue.kind.value for cue in cues} == {"answer"}
    assert {cue.question for cue in cues} == {"Which colour?"}


def test_requests_are_bounded() -> None:
    bell = Bell()
    for i in range(40):
        bell.ring(f"{i}")
    assert bell.take() == [f"{i}" for i in range(24, 40)]
    assert bell.take() == []


def test_context_continues(model: LoadedModel) -> None:
    alone = watch(model, walls("red", "blue"), every=2.0, memory=MemoryConfig(recent=2))
    after = watch(model, walls("red", "blue"), every=2.0, memory=MemoryConfig(recent=2), context=1)
    assert after[0].text == alone[0].text
    assert after[1].logprob != alone[1].logprob


def test_context_of_more_latents_is_thinned_as_a_whole(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Sequence[Tensor]] = []

    def search(prompt: Prompt, *_: object) -> list[Generated]:
        read.append(prompt.latents)
        return [Generated((7,), -1.0)]

    monkeypatch.setattr(Prompt, "search", search)
    speaker, whole = Speaker(model, SHORT, context=1), torch.randn(1, 4, 16)
    speaker.caption(whole, {})
    speaker.caption(whole[:, ::2], {})  # as a late caption reads it
    before, now = read[1]
    assert torch.equal(before, whole[:, ::2])
    assert torch.equal(now, whole[:, ::2])


def test_gaps_are_told_and_end_what_was_told(model: LoadedModel) -> None:
    late = [frame(tick, "blue") for tick in range(20, 24)]
    events = [*walls("red"), Gap(2.0, 10.0, "hung up"), *late]
    cues = watch(model, events, every=2.0)
    assert spans(cues) == [("every", 0, 2), ("hung up", 2, 10), ("every", 10, 12)]
    assert [cue.kind.value for cue in cues] == ["caption", "gap", "caption"]


def test_what_was_seen_before_a_gap_is_told_before_it(model: LoadedModel) -> None:
    events = [*walls("red", each=3), Gap(1.5, 10.0, "hung up"), frame(20, "blue")]
    cues = watch(model, events, every=60.0)
    assert spans(cues) == [("gap", 0, 1.5), ("hung up", 1.5, 10), ("end", 10, 10.5)]
    assert cues[0].text


def test_stop_says_what_was_not_told_yet(model: LoadedModel) -> None:
    live = LiveCaptioner(model, LiveConfig(every=60.0), SHORT)
    events = Script(walls("red", "green", "blue"))
    plain = events.get

    def get(timeout: float | None = None) -> Event | None:
        if len(events.events) == 5:
            live.stop()
        return plain(timeout)

    events.get = get  # type: ignore[method-assign]
    assert spans(list(live.watch(events))) == [("end", 0.0, 4.0)]


def test_a_stream_that_is_lost_ends_with_its_last_cue_and_the_error(model: LoadedModel) -> None:
    events = Script([*walls("red"), Gap(2.0, 9.0, "hung up")])
    plain = events.get

    def get(timeout: float | None = None) -> Event | None:
        if not events.events:
            raise DecodeError("script was lost")
        return plain(timeout)

    events.get = get  # type: ignore[method-assign]
    cues = LiveCaptioner(model, LiveConfig(every=60.0), SHORT).watch(events)
    assert [next(cues).why for _ in range(2)] == ["gap", "hung up"]  # as a Stream ends
    with pytest.raises(DecodeError, match="lost"):
        next(cues)


def test_latency_is_that_of_the_newest_frame(model: LoadedModel) -> None:
    events = [frame(i, "red", age=5.0) for i in range(4)]
    began = time.time()
    [cue] = watch(model, events, every=2.0)
    assert 5.0 <= cue.latency <= 5.5 + time.time() - began


def test_late_captions_shed_work_in_order_and_count_it(model: LoadedModel) -> None:
    events = [frame(i, "red", age=9.0) for i in range(40)]
    search = GenerationConfig(beams=3, max_tokens=4)
    live = LiveCaptioner(model, LiveConfig(every=1.0, budget=0.5), search)
    cues = list(live.watch(Script(events)))
    done = [(c.shed["greedy"], c.shed["latents"], c.shed["frames"]) for c in cues]
    assert [d[:2] for d in done[:3]] == [(0, 0), (1, 0), (1, 1)]
    assert done[2][2] == 0 < done[3][2]
    assert cues[-1].seen + cues[-1].shed["frames"] <= 40
    assert cues[-1].dropped == cues[-1].shed["frames"] > 20


def test_questions_while_nothing_comes_are_not_late(model: LoadedModel) -> None:
    live = LiveCaptioner(model, LiveConfig(every=None, budget=5.0), SHORT)
    events = Script([frame(0, "red", age=60.0)])
    plain, asked = events.get, iter(range(3))

    def get(timeout: float | None = None) -> Event | None:
        if not events.events and next(asked, None) is not None:
            live.bell.ring()
            raise TimeoutError
        return plain(timeout)

    events.get = get  # type: ignore[method-assign]
    cues = list(live.watch(events))
    assert [cue.why for cue in cues] == ["asked"] * 3 + ["end"]
    assert all(cue.latency >= 60.0 for cue in cues)
    assert live.budget.level is Shed.NOTHING


def test_numbers_that_are_none_end_it_in_a_line(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [Generated((7,), float("nan"))]
    monkeypatch.setattr("flamvid.live.speaker.Prompt.search", lambda *_: broken)
    with pytest.raises(FlamvidError, match="log-probability nan; must be finite"):
        watch(model, walls("red"))


def test_a_budget_takes_back_what_it_shed() -> None:
    budget = Budget(1.0)
    for _ in range(9):
        budget.took(2.0)
    assert budget.level is Shed.MOST
    assert sum(not budget.skips() for _ in range(40)) == 10
    for _ in range(3):
        budget.took(0.6)  # in time, but without time to spare
    assert budget.level is Shed.MOST
    for _ in range(12):
        budget.took(0.1)
    assert budget.level is Shed.NOTHING
    assert not any(budget.skips() for _ in range(10))


class Plain:
    """An embedder that sees which colour is strongest."""

    def frames(self, features_TNF: Tensor) -> Tensor:
        return features_TNF.mean(1)[:, :3]

    def text(self, texts: Sequence[str]) -> Tensor:
        return F.normalize(torch.stack([torch.eye(3)[len(t) - 3] for t in texts]), dim=-1)


def test_alerts_are_raised_once_until_it_calms() -> None:
    def see(*colours: int) -> list[list[tuple[str, float]]]:
        alarm = Alarm([Alert(text="red", threshold=0.9)], Plain(), frames=1)
        return [alarm.look(torch.eye(3)[c].repeat(1, 4, 1)) for c in colours]

    assert see(1, 0, 0, 1, 0) == [[], [("red", 1.0)], [], [], [("red", 1.0)]]
    # A little below the threshold it has not calmed yet.
    alarm = Alarm([Alert(text="red", threshold=0.9)], Plain(), frames=1)
    scores = (1.0, 0.85, 1.0, 0.8, 1.0)
    seen = [torch.tensor([s, math.sqrt(1 - s * s), 0.0]).repeat(1, 4, 1) for s in scores]
    assert [len(alarm.look(one)) for one in seen] == [1, 0, 0, 0, 1]


def test_alerts_are_cues_and_need_an_embedder(model: LoadedModel) -> None:
    config = LiveConfig(every=None, alerts=(Alert(text="red", threshold=1e-6),))
    live = LiveCaptioner(model, config, SHORT, Plain())
    cues = [c for c in live.watch(Script(walls("red"))) if c.kind == "alert"]
    assert [(c.text, c.why) for c in cues] in ([], [("red", "alert")])
    with pytest.raises(InputError, match="contrastive"):
        LiveCaptioner(model, config, SHORT)


def test_the_clock_keeps_its_beat_over_gaps() -> None:
    every = Every(2.0)
    assert [every.look(t) for t in (1.5, 2.0, 2.5, 9.3, 9.9, 10.0)] == [
        False,
        True,
        False,
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Every(0.0), "every is 0"),
        (lambda: Budget(float("nan")), "budget is nan"),
        (lambda: ChangeConfig(high=0.1, low=0.2), "change begins above 0.1"),
        (lambda: ChangeConfig(pace=0), "pace"),
        (lambda: Alert(text=" "), "alert is empty"),
        (lambda: Alert(text="a", threshold=1.5), "threshold"),
        (lambda: LiveConfig(fps=0), "fps is 0"),
        (lambda: LiveConfig(context=-1), "context is -1"),
        (lambda: LiveConfig(when_different=0), "when_different is 0"),
        (lambda: LiveConfig(when_different=1, question="who?"), "choose one"),
    ],
)
def test_settings_that_make_no_sense(make: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()
