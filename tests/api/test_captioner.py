"""The verbs on a tiny model: every kind of source, parts of time, and the same text every time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import flamvid
from flamvid import api, video
from flamvid.api import Captioner
from flamvid.errors import ConfigError, InputError, SourceError
from flamvid.generate.config import Generated, Search
from flamvid.generate.engine import GenerationConfig, generate
from flamvid.models.labels import Labels
from flamvid.ops import media_index
from flamvid.types import Caption
from flamvid.video.sample import Uniform
from tests.tiny import picture


def save(path: Path, rgb: tuple[int, int, int]) -> Path:
    Image.fromarray(picture(rgb, 48)).save(path)
    return path


def said(captions: list[Caption]) -> list[tuple[str, float]]:
    return [(made.text, made.logprob) for made in captions]


def test_a_clip(captioner: Captioner, clip: Path) -> None:
    [made] = captioner.caption(clip)
    assert (made.source, made.model, made.start) == (str(clip), "tiny", 0.0)
    assert made.end == pytest.approx(6.0)
    assert made.text == " ".join(made.text.split()) != ""
    assert made.logprob < 0
    assert captioner.caption(str(clip)) == [made]


def test_a_still_and_a_folder(captioner: Captioner, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for i, rgb in enumerate([(200, 0, 0), (0, 0, 200), (0, 200, 0)]):
        save(tmp_path / "frames" / f"{i}.png", rgb)
    [still] = captioner.caption(tmp_path / "frames" / "0.png")
    [folder] = captioner.caption(tmp_path / "frames")
    assert (still.start, still.end) == (0.0, 0.0)
    assert (folder.start, folder.end) == (0.0, 3.0)  # a second each
    assert still.logprob != folder.logprob
    # A folder of one picture shows what the picture shows.
    (tmp_path / "one").mkdir()
    save(tmp_path / "one" / "0.png", (200, 0, 0))
    assert said(captioner.caption(tmp_path / "one")) == said([still])


def test_what_is_seen_changes_what_is_said(captioner: Captioner, tmp_path: Path) -> None:
    colours = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}
    texts = {captioner.caption(save(tmp_path / "a.png", rgb))[0].text for rgb in colours.values()}
    assert len(texts) == 3


def test_every_window_is_captioned_as_if_alone(captioner: Captioner, clip: Path) -> None:
    captions = captioner.caption(clip, every=2, window=3)
    assert [(c.start, c.end) for c in captions] == [(0, 3), (2, 5), (4, pytest.approx(6))]
    for made in captions:
        [alone] = captioner.caption(clip, start=made.start, end=made.end)
        assert (alone.text, alone.start) == (made.text, made.start)
        assert alone.logprob == pytest.approx(made.logprob, abs=1e-4)
    assert len({c.text for c in captions}) == 3


def test_windows_follow_on_each_other_unless_told(captioner: Captioner, clip: Path) -> None:
    captions = captioner.caption(clip, every=2.5, start=0.5, end=5)
    assert [(c.start, c.end) for c in captions] == [(0.5, 3.0), (3.0, 5.0)]


def test_a_still_is_one_window(captioner: Captioner, tmp_path: Path) -> None:
    file = save(tmp_path / "a.png", (9, 99, 200))
    assert captioner.caption(file, every=2) == captioner.caption(file)


def test_captions_come_one_by_one(captioner: Captioner, clip: Path) -> None:
    stream = captioner.iter_captions(clip, every=2)
    first = next(stream)
    assert [first, *stream] == captioner.caption(clip, every=2)


def test_a_part_shows_only_that_part(captioner: Captioner, clip: Path, tmp_path: Path) -> None:
    parts = [captioner.caption(clip, start=s, end=s + 2)[0] for s in (0, 2, 4)]
    assert len({part.text for part in parts}) == 3
    # Frames of one colour: how many of them are looked at says nothing new but time.
    assert said(captioner.caption(clip, end=2, frames=2)) == said(
        captioner.caption(clip, end=2, fps=1)
    )


@pytest.mark.parametrize("frames", [1, 3, 40])
def test_the_frames_asked_for_are_those_that_are_seen(
    captioner: Captioner, clip: Path, frames: int
) -> None:
    # By hand and at once, while the captioner reads 32 at a time.
    model = captioner.model
    with video.open(clip, size=(64, 64)) as source:
        at = Uniform(frames).indices(source.pts, source.durations)
        features = captioner.encode(source.read(at.tolist()))
    assert features.shape == (frames, 4, 256)
    ids = torch.tensor([model.prompts.caption()])
    index = media_index(ids, model.prompts.media_id)
    latents = model.flamingo.resample(features[None, None])
    [best] = generate(model.flamingo, latents, ids, index, model.prompts.end_id, GenerationConfig())
    [made] = captioner.caption(clip, frames=frames)
    assert made.text == model.prompts.decode(best.ids)
    assert made.logprob == pytest.approx(best.logprob, abs=1e-3)


def test_a_prompt_says_what_the_encoder_is_sure_of(captioner: Captioner, clip: Path) -> None:
    labels = Labels(1, 0.0)
    model = replace(captioner.model, labels=labels)
    with video.open(clip, size=(64, 64)) as source:
        at = Uniform(4).indices(source.pts, source.durations)
        features = captioner.encode(source.read(at.tolist()))
    [label] = model.name(features)
    assert label in labels.words
    opening = model.prompts.caption("a", [label])
    ids = torch.tensor([opening])
    latents = model.flamingo.resample(features[None, None])
    index = media_index(ids, model.prompts.media_id)
    [best] = generate(model.flamingo, latents, ids, index, model.prompts.end_id, GenerationConfig())
    [made] = Captioner(model).caption(clip, prompt="a")
    assert made.logprob == pytest.approx(best.logprob, abs=1e-3)
    # Without labels it says something else.
    [plain] = captioner.caption(clip, prompt="a")
    assert plain.logprob != pytest.approx(made.logprob, abs=1e-3)
    # A share that nothing reaches leaves the prompt as it was.
    assert Captioner(replace(model, labels=Labels(1, 1.0))).caption(clip, prompt="a") == [plain]


def test_a_caption_gains_by_what_the_encoder_is_sure_of(captioner: Captioner, clip: Path) -> None:
    plain = Captioner(replace(captioner.model, labels=Labels(1, 0.0)))
    [(label, share)] = plain.see(clip).labels.items()
    look = replace(plain.model.config.vision, label_worth=200 / share, label_sure=0.0)
    model = replace(plain.model, config=replace(plain.model.config, vision=look))
    [made] = Captioner(model).caption(clip, max_tokens=60)
    [without] = plain.caption(clip, max_tokens=60)
    assert label in made.text
    assert label not in without.text
    # What it reports is how likely the text is, without the gain.
    assert made.logprob < without.logprob + 100


def test_as_many_frames_as_trained_unless_told(captioner: Captioner, clip: Path) -> None:
    assert captioner.caption(clip) == captioner.caption(clip, frames=4)
    assert said(captioner.caption(clip)) != said(captioner.caption(clip, frames=5))


@pytest.mark.parametrize("keywords", [{}, {"beams": 1}, {"seed": 7}, {"every": 1.5}])
def test_the_same_again_is_the_same_text(
    captioner: Captioner, clip: Path, keywords: dict[str, Any]
) -> None:
    before = captioner.caption(clip, **keywords)
    captioner.caption(clip, beams=2, start=4)  # nothing stays behind
    torch.manual_seed(99)
    assert captioner.caption(clip, **keywords) == before


def test_threads_share_a_captioner(captioner: Captioner, tmp_path: Path) -> None:
    files = [save(tmp_path / f"{i}.png", (60 * i, 0, 200)) for i in range(4)]
    alone = [captioner.caption(file) for file in files]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(captioner.caption, files * 3)) == alone * 3


@torch.inference_mode()
def test_a_batch_says_what_each_says_alone(captioner: Captioner, tmp_path: Path) -> None:
    model, files = captioner.model, []
    for i in range(4):
        files.append(save(tmp_path / f"{i}.png", (60 * i, 0, 200)))
    features = []
    for file in files:
        with video.open(file, size=(64, 64)) as source:
            features.append(captioner.encode(source.read([0])))
    latents = model.flamingo.resample(torch.stack(features)[:, None])
    ids = torch.tensor([model.prompts.caption()]).repeat(4, 1)
    index = media_index(ids, model.prompts.media_id)
    batch = generate(model.flamingo, latents, ids, index, model.prompts.end_id, GenerationConfig())
    for file, best in zip(files, batch, strict=True):
        [alone] = captioner.caption(file)
        assert model.prompts.decode(best.ids) == alone.text
        assert best.logprob == pytest.approx(alone.logprob, abs=1e-3)


def test_a_caption_goes_on_from_its_prompt(captioner: Captioner, clip: Path) -> None:
    [made] = captioner.caption(clip, prompt="  the wall ")
    assert made.text.startswith("the wall ")
    assert made.text != "the wall " + captioner.caption(clip)[0].text
    assert said(captioner.caption(clip, prompt=" ")) == said(captioner.caption(clip))


def test_search_settings_reach_the_search(captioner: Captioner, clip: Path) -> None:
    tokens = [captioner.caption(clip, beams=1, max_tokens=n)[0] for n in (1, 2, 12)]
    assert tokens[0].logprob > tokens[1].logprob > tokens[2].logprob
    greedy, wide = (
        [captioner.caption(clip, start=s, beams=b, max_tokens=9)[0].logprob for s in (0, 2, 4)]
        for b in (1, 8)
    )
    assert any(w > g + 0.1 for g, w in zip(greedy, wide, strict=True))


def test_a_question_is_not_a_caption(captioner: Captioner, clip: Path) -> None:
    answer = captioner.ask(clip, "what colour?")
    assert (answer.start, answer.end) == (0, pytest.approx(6))
    assert said([answer]) != said([captioner.ask(clip, "what shape?")])
    assert said([answer]) != said([captioner.ask(clip, "what colour?", start=4)])
    assert answer == captioner.ask(clip, " what colour? ")


@pytest.mark.parametrize(
    ("keywords", "complaint"),
    [
        ({"frames": 4, "fps": 1.0}, "both frames and fps"),
        ({"window": 2.0}, "window is 2.0 without every"),
        ({"frames": 0}, "frames is 0; must be at least 1"),
        ({"fps": 0.0}, "fps is 0.0; must be above 0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"beams": 0}, "beams is 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"every": 0.0}, "every is 0.0|window is 0.0"),
        ({"every": -1.0}, "is -1.0 s; must be above 0"),
        ({"start": 6.5}, r"start is 6.5 s; must be in \[0, 6.000\)"),
        ({"start": -1.0}, "start is -1 s"),
        ({"start": 3.0, "end": 2.0}, "end is 2 s; must come after the start"),
        ({"prompt": "a <end> b"}, "special tokens"),
    ],
)
def test_settings_that_break_a_rule(
    captioner: Captioner, clip: Path, keywords: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        captioner.caption(clip, **keywords)


def test_sources_that_cannot_be_read(captioner: Captioner, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video " * 100)
    for name in ("none.mp4", "text.mp4"):
        with pytest.raises(SourceError, match=name):
            captioner.caption(tmp_path / name)
    with pytest.raises(SourceError, match="without frames"):
        captioner.caption(tmp_path)
    with pytest.raises(InputError, match="question is empty"):
        captioner.ask(tmp_path / "none.mp4", " ")


def test_a_model_is_loaded_by_name() -> None:
    assert flamvid.load is api.load
    with pytest.raises(ConfigError, match="no model is called 'flamvid-bsae'"):
        flamvid.load("flamvid-bsae")


def test_half_precision_says_much_the_same(captioner: Captioner, tmp_path: Path) -> None:
    [toml] = Path(captioner.model.config.adapter).parent.glob("*.toml")
    half = flamvid.load(str(toml), device="cpu", dtype="bfloat16")
    file = save(tmp_path / "a.png", (9, 99, 200))
    one, other = (c.caption(file, beams=1, max_tokens=1)[0] for c in (captioner, half))
    assert other.logprob == pytest.approx(one.logprob, abs=0.3)


def test_a_draft_changes_no_text(captioner: Captioner, clip: Path) -> None:
    [toml] = Path(captioner.model.config.adapter).parent.glob("*.toml")
    drafted = flamvid.load(str(toml), device="cpu", draft=True)
    calls: list[int] = []
    drafted.model.flamingo.lm.register_forward_pre_hook(lambda *_: calls.append(1))
    for how in ({"beams": 1}, {"beams": 1, "temperature": 2.0}, {"beams": 3}):
        mine, theirs = (c.caption(clip, **how, max_tokens=30) for c in (drafted, captioner))
        assert [made.text for made in mine] == [made.text for made in theirs]
    chats = [c.chat(beams=1, max_tokens=30) for c in (drafted, captioner)]
    del calls[:]
    for talk in chats:
        talk.show(clip)
    for question in ("What colour?", "And now?"):
        mine, theirs = (talk.say(question) for talk in chats)
        assert mine == theirs
    assert len(calls) < 30
    with pytest.raises(InputError, match="these are bfloat16 on cpu; give dtype fp32"):
        flamvid.load(str(toml), device="cpu", dtype="bfloat16", draft=True)


def test_a_source_is_looked_at_once_and_asked_often(captioner: Captioner, clip: Path) -> None:
    seen = captioner.see(clip, frames=3, start=1)
    assert seen.latents.shape == (1, 4, 16)
    assert captioner.caption(seen) == captioner.caption(clip, frames=3, start=1)
    asked = captioner.ask(seen, "What colour?")
    assert asked == captioner.ask(clip, "What colour?", frames=3, start=1)
    with pytest.raises(InputError, match="was looked at before"):
        captioner.caption(seen, frames=3)


def test_several_captions_of_a_part_come_best_first(captioner: Captioner, clip: Path) -> None:
    captions = captioner.caption(clip, every=3, beams=4, returns=3, length_penalty=0.0)
    assert [made.start for made in captions] == [0.0] * 3 + [3.0] * 3
    first = captions[:3]
    assert first == sorted(first, key=lambda made: -made.logprob)
    assert captioner.caption(clip, every=3, beams=4, length_penalty=0.0) == captions[::3]


def test_an_answer_is_told_as_it_is_made(captioner: Captioner, clip: Path) -> None:
    pieces: list[str] = []
    answer = captioner.ask(clip, "What colour?", beams=1, on_text=pieces.append)
    assert len(pieces) > 1
    assert "".join(pieces) == answer.text


def test_an_answer_that_ends_within_a_letter_is_told_to_its_end(
    captioner: Captioner, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = captioner.model.prompts.encode_text(" né")[:-1]

    def search(*_: Any, on_token: Any, **__: Any) -> list[list[Generated]]:
        for token in ids:
            on_token(0, token)
        return [[Generated(tuple(ids), -1.0)]]

    # What is written is then not the weights' affair.
    monkeypatch.setattr("flamvid.generate.prompt.search", search)
    pieces: list[str] = []
    answer = captioner.ask(clip, "What colour?", beams=1, on_text=pieces.append)
    assert "".join(pieces) == answer.text == "n\ufffd"


def test_a_choice_is_the_likeliest_answer(captioner: Captioner, clip: Path) -> None:
    options = ["red", "a green wall", "blue"]
    scores = captioner.choose(clip, "What colour?", options)
    assert all(score < 0 for score in scores)
    # Each is as likely as it is alone.
    for option, score in zip(options, scores, strict=True):
        assert captioner.choose(clip, "What colour?", [option]) == [pytest.approx(score, abs=1e-4)]


def test_a_search_option_that_is_none_is_named(captioner: Captioner, clip: Path) -> None:
    with pytest.raises(TypeError, match="beam_count"):
        captioner.caption(clip, beam_count=3)  # type: ignore[call-arg]
    assert set(Search.__annotations__) == {f.name for f in fields(GenerationConfig)}
