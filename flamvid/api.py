"""The verbs: load a model, caption and question sources. The command line calls these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Unpack

import torch
from torch import Tensor

from flamvid.errors import InputError
from flamvid.generate.config import Generated, GenerationConfig, Search
from flamvid.generate.favour import Favour, favours_of
from flamvid.generate.memory import PromptMemory
from flamvid.generate.prompt import Prompt
from flamvid.generate.tell import OnText, Teller
from flamvid.live.look import Looker, View
from flamvid.live.seen import Example, Examples, Seen, Source, memory_of
from flamvid.live.segments import look_at_segments
from flamvid.models.draft import Draft
from flamvid.text.dialogue import recent
from flamvid.text.prompt import MEDIA, Media, Turn
from flamvid.text.shots import Shot
from flamvid.types import Caption, Frames, Segment
from flamvid.video.address import shown
from flamvid.video.isolate import warm_up
from flamvid.weights.layout import Room
from flamvid.weights.load import LoadedModel, load_model

__all__ = ["Captioner", "Chat", "Example", "OnText", "Seen", "Shot", "load"]


def load(
    model: str | PathLike[str] = "flamvid-base",
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: str | None = None,
    max_memory: Room | None = None,
    draft: bool = False,
) -> Captioner:
    """A captioner for a model by name; on a GPU where there is one, else on the CPU.

    model: a preset, the path of a model's .toml, or a folder or hub repository with a model, saved
    by flamvid or as OpenFlamingo's, Otter's or IDEFICS' authors left it.
    dtype: float32, bfloat16, float16, or int8, which stores weights in 8 bits; the model's own if
    None or "auto".
    device_map: "auto" lays a model that exceeds one device over all there are, memory and the disk,
    each tensor straight to its place. What lies in none of the devices comes there for each use: no
    two threads may then share the captioner.
    max_memory: how much of each it may take, such as {0: "20GB", "cpu": "30GB"}; nine tenths of
    what is free if None.
    draft: in float32 on a CPU, an int8 copy of the language model, of a third of its size, guesses
    ahead where one text is written at a time (`beams=1`): the text is the same, sooner.
    """
    warm_up()  # a decode child starts while the model loads
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_model(str(model), device, dtype, device_map=device_map, max_memory=max_memory)
    if draft:
        loaded = replace(loaded, draft=Draft.of(loaded.flamingo.lm, loaded.head))
    return Captioner(loaded)


@dataclass(frozen=True, slots=True)
class Captioner:
    """Describes videos and pictures. Keeps nothing between calls; threads may share one.

    Search options are the fields of `GenerationConfig`, such as `beams=1` or `temperature=0.7`.
    """

    model: LoadedModel

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model.config.name

    def caption(
        self,
        source: Source,
        *,
        frames: int | None = None,
        fps: float | None = None,
        start: float | None = None,
        end: float | None = None,
        every: float | None = None,
        window: float | None = None,
        segments: bool = False,
        prompt: str | None = None,
        shots: Sequence[Example] = (),
        decode_timeout: float | None = None,
        **search: Unpack[Search],
    ) -> list[Caption]:
        """One caption of `source`, or with `every` one for each window of time.

        frames: how many to look at (by default what suits the model), or fps: how
        many per second. start, end: the part to look at, in seconds. every, window: a caption
        every so many seconds, each of `window` seconds (by default `every`). segments: a caption
        for each scene. prompt: words that the caption begins with. shots: examples that come before
        it. decode_timeout: seconds that opening the source or reading from it may take at once; by
        default it grows with the source.
        With `returns` above 1, so many captions of each part, the likeliest first.
        """
        return list(
            self.iter_captions(
                source,
                frames=frames,
                fps=fps,
                start=start,
                end=end,
                every=every,
                window=window,
                segments=segments,
                prompt=prompt,
                shots=shots,
                decode_timeout=decode_timeout,
                **search,
            )
        )

    def iter_captions(
        self,
        source: Source,
        *,
        frames: int | None = None,
        fps: float | None = None,
        start: float | None = None,
        end: float | None = None,
        every: float | None = None,
        window: float | None = None,
        segments: bool = False,
        prompt: str | None = None,
        shots: Sequence[Example] = (),
        decode_timeout: float | None = None,
        **search: Unpack[Search],
    ) -> Iterator[Caption]:
        """As `caption`, each as soon as it is made."""
        config = GenerationConfig(**_favour_length(search))
        view = View(
            frames=frames,
            fps=fps,
            start=start,
            end=end,
            every=every,
            window=window,
            segments=segments,
            timeout=decode_timeout,
        )
        opening = prompt.strip() if prompt else ""
        before = [shot.seen for shot in shots]
        said = [(tuple(shot.seen.labels), shot.text) for shot in shots]
        memory = memory_of(shots)
        for seen in self._look(source, view, len(before)):
            ids = self.model.prompts.caption(opening, tuple(seen.labels), said)
            favours = favours_of(self.model, seen.labels)
            for made in self._continue([*before, seen], ids, config, None, favours, memory, True):
                yield self._caption(seen, made, opening)

    def ask(
        self,
        source: Source,
        question: str,
        *,
        frames: int | None = None,
        fps: float | None = None,
        start: float | None = None,
        end: float | None = None,
        shots: Sequence[Example] = (),
        decode_timeout: float | None = None,
        on_text: OnText | None = None,
        **search: Unpack[Search],
    ) -> Caption:
        """The model's answer to a question about `source`; arguments as for `caption`.

        on_text: hears of the answer piece by piece as it is made; with `beams=1`.
        """
        config = GenerationConfig(**_not_empty(search))
        view = View(frames=frames, fps=fps, start=start, end=end, timeout=decode_timeout)
        ids = self.model.prompts.question(question, [(shot.question, shot.text) for shot in shots])
        seen = next(self._look(source, view, len(shots)))
        media = [*(shot.seen for shot in shots), seen]
        made = self._continue(media, ids, config, on_text, (), memory_of(shots), True)[0]
        return self._caption(seen, made, "")

    def choose(
        self,
        source: Source,
        question: str,
        options: Sequence[str],
        *,
        frames: int | None = None,
        fps: float | None = None,
        start: float | None = None,
        end: float | None = None,
        decode_timeout: float | None = None,
    ) -> list[float]:
        """The log-probability of each option as the answer, its end included; the best is largest.

        Nothing is searched for: each option is scored as it stands (the paper's close-ended tasks).
        """
        prompts = self.model.prompts
        view = View(frames=frames, fps=fps, start=start, end=end, timeout=decode_timeout)
        ids = prompts.question(question)
        rows = [prompts.answer(question, option) for option in options]
        seen = next(self._look(source, view))
        scores = Prompt(self.model, [seen.latents], ids).score(rows)
        return [sum(score) for score in scores]

    def complete(
        self,
        *parts: Source,
        frames: int | None = None,
        decode_timeout: float | None = None,
        on_text: OnText | None = None,
        **search: Unpack[Search],
    ) -> str:
        """The text that goes on from media and text in any order, such as shots and a question.

        A `Path` is a video, a picture or a folder, a `str` is text. Each text sees the medium in
        front of it: `complete(Path("a.jpg"), "Output: a cat.", Path("b.mp4"), "Output:")`.
        """
        config = GenerationConfig(**_favour_length(search))
        view = View(frames=frames, timeout=decode_timeout)
        prompt: list[str | Media] = []
        seen: list[Seen] = []
        for part in parts:
            if isinstance(part, str):
                prompt.append(part if part[:1].isspace() else f" {part}")
                continue
            seen.append(next(self._look(part, view, len(seen))))
            prompt.append(MEDIA)
        if not seen:
            raise InputError(
                "there is no medium among the parts; give a Path to a video or picture"
            )
        made = self._continue(seen, self.model.prompts.encode(prompt), config, on_text)
        return self.model.prompts.decode(made[0].ids)

    def see(
        self,
        source: str | PathLike[str],
        *,
        frames: int | None = None,
        fps: float | None = None,
        start: float | None = None,
        end: float | None = None,
        decode_timeout: float | None = None,
    ) -> Seen:
        """Look at a source once; what this gives stands for the source in the other verbs."""
        view = View(frames=frames, fps=fps, start=start, end=end, timeout=decode_timeout)
        return next(self._look(source, view))

    def examples(
        self,
        shots: Sequence[Shot],
        *,
        frames: int | None = None,
        fps: float | None = None,
        decode_timeout: float | None = None,
    ) -> list[Example]:
        """Look at the sources of shots, once for all that is captioned or asked with them.

        The list keeps what the language model made of them, so that it reads them once, too.
        frames, fps: as of what comes after them.
        """
        out = []
        for place, shot in enumerate(shots):
            view = View(
                frames=frames, fps=fps, start=shot.start, end=shot.end, timeout=decode_timeout
            )
            seen = next(self._look(shot.source, view, place))
            out.append(Example(seen, shot.text, shot.question))
        return Examples(out)

    def chat(self, **search: Unpack[Search]) -> Chat:
        """A conversation about media, which it keeps in mind."""
        return Chat(self, GenerationConfig(**_not_empty(search)))

    def encode(self, frames: Frames) -> Tensor:
        """Frozen features [T,N,F] of decoded frames; of a video encoder, of its moments."""
        return Looker(self.model).encode(frames)

    def _look(self, source: Source, view: View, place: int = 0) -> Iterator[Seen]:
        """What the view shows of a source that is number `place` among the media of a text."""
        if isinstance(source, Seen):
            if view != View():
                raise InputError(
                    f"{source.source} was looked at before; say which part when it is seen"
                )
            yield source
            return
        looker = Looker(self.model)
        parts = look_at_segments(looker, source, view) if view.segments else None
        for segment, features_TNF in parts or looker.look(source, view):
            yield self.recall(shown(source), segment, features_TNF, place)

    @torch.inference_mode()
    def recall(self, source: str, segment: Segment, features_TNF: Tensor, place: int = 0) -> Seen:
        """What was looked at before and is kept as features, such as a store's.

        place: its number among the media of a text.
        """
        features = features_TNF.to(self.model.device, self.model.dtype)
        at = torch.tensor([place])
        latents_1LD = self.model.flamingo.resampler(features[None], places=at)
        return Seen(source, segment, latents_1LD, self.model.name(features))

    def _continue(
        self,
        seen: Sequence[Seen],
        ids: Sequence[int],
        config: GenerationConfig,
        on_text: OnText | None = None,
        favours: Sequence[Favour] = (),
        memory: PromptMemory | None = None,
        shots: bool = False,
    ) -> list[Generated]:
        """The texts after a prompt with these media, the best first.

        shots: what the memory is to keep is those that the prompt begins with, and not all of it.
        """
        teller = Teller(self.model.prompts, on_text) if on_text else None
        again = self.model.prompts.shots_end(ids) if shots else 0
        prompt = Prompt(self.model, [one.latents for one in seen], ids, memory, again)
        texts = prompt.search(config, favours, teller)
        if teller is not None:
            teller.end()
        return texts

    def _caption(self, seen: Seen, made: Generated, opening: str) -> Caption:
        return Caption(
            source=seen.source,
            start=seen.segment.start,
            end=seen.segment.end,
            text=f"{opening} {self.model.prompts.decode(made.ids)}".strip(),
            logprob=made.logprob,
            model=self.name,
        )


class Chat:
    """An interleaved conversation: show media, say something, hear the answer; turn after turn."""

    def __init__(self, captioner: Captioner, config: GenerationConfig) -> None:
        self.captioner, self.config = captioner, config
        self.seen: list[Seen] = []
        self.turns: list[Turn] = []
        self.left_out = 0  # turns that the language model had no more room for
        self._new = 0  # media shown since the last turn
        self._memory = PromptMemory()

    def show(
        self, source: str | PathLike[str], start: float | None = None, end: float | None = None
    ) -> Seen:
        """Look at a picture, or at a video or a part of it; the next question comes after it."""
        view = View(start=start, end=end)
        seen = next(self.captioner._look(source, view, len(self.seen)))
        self.seen.append(seen)
        self._new += 1
        return seen

    def say(self, question: str, on_text: OnText | None = None) -> str:
        """The answer to a question about what was shown; `on_text` hears of it as it is made.

        Where nothing was shown yet, the language model answers by itself. The oldest turns are left
        out, with the media that they are about, once there is no room.
        """
        prompts, positions = (
            self.captioner.model.prompts,
            self.captioner.model.flamingo.lm.positions,
        )
        room = None if positions is None else positions - self.config.max_tokens
        turns, gone = recent(prompts, [*self.turns, Turn(self._new, question)], room)
        seen, ids = self.seen[gone:], prompts.dialogue(turns)
        made = self.captioner._continue(seen, ids, self.config, on_text, memory=self._memory)[0]
        answer = prompts.decode(made.ids)
        self.left_out += len(self.turns) + 1 - len(turns)
        self.turns = [*turns[:-1], replace(turns[-1], answer=answer)]
        self.seen, self._new = seen, 0
        return answer

    def forget(self) -> None:
        """Begin anew."""
        self.seen.clear()
        self.turns.clear()
        self._new = 0
        self._memory = PromptMemory()


def _favour_length(search: Search) -> Search:
    """The settings that captions are searched with unless told otherwise."""
    return {"length_penalty": 1.0, **search}


def _not_empty(search: Search) -> Search:
    """The settings that answers are searched with unless told otherwise: silence is none."""
    return {"min_tokens": 1, **search}
