"""The verbs: load a model, caption and question sources. The command line calls these."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flamvid import video
from flamvid.errors import InputError
from flamvid.generate.engine import GenerationConfig, generate
from flamvid.live.spread import Spread
from flamvid.ops import media_index
from flamvid.text.prompt import MEDIA, Media
from flamvid.types import Caption, Frames, Segment
from flamvid.video.address import shown
from flamvid.video.isolate import warm_up
from flamvid.video.live import LiveSource
from flamvid.video.sample import Fps, Uniform, windows
from flamvid.weights.load import LoadedModel, load_model

__all__ = ["Captioner", "load"]

_READ_AT_ONCE = 32  # frames in memory, however many are asked for
_LIVE_FPS = 2.0  # of a stream that is looked at until it ends
_MOST_OF_LIVE = 128  # frames of it that are kept when --fps asks for all


def load(
    model: str | PathLike[str] = "flamvid-base",
    device: str | None = None,
    dtype: str | None = None,
    device_map: str | None = None,
) -> Captioner:
    """A captioner for a model by name; on a GPU where there is one, else on the CPU.

    model: a preset, the path of a model's .toml, or a folder or hub repository with a saved model.
    dtype: float32, bfloat16, float16, or int8, which stores weights in 8 bits; the model's own if
    None.
    device_map: "auto" lays a model that exceeds one device over all there are.
    """
    warm_up()  # a decode child starts while the model loads
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Captioner(load_model(str(model), device, dtype, device_map=device_map))


@dataclass(frozen=True, slots=True)
class Captioner:
    """Describes videos and pictures. Keeps nothing between calls; threads may share one."""

    model: LoadedModel

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model.config.name

    def caption(
        self,
        source: str | PathLike[str],
        *,
        frames: int | None = None,
        fps: float | None = None,
        start: float | None = None,
        end: float | None = None,
        every: float | None = None,
        window: float | None = None,
        beams: int = 3,
        max_tokens: int = 20,
        prompt: str | None = None,
        length_penalty: float = 1.0,
        temperature: float = 0.0,
        seed: int = 0,
        decode_timeout: float | None = None,
    ) -> list[Caption]:
        """One caption of `source`, or with `every` one for each window of time.

        frames: how many to look at (by default what suits the model), or fps: how
        many per second. start, end: the part to look at, in seconds. every, window: a caption
        every so many seconds, each of `window` seconds (by default `every`). prompt: words that
        the caption begins with. temperature: above 0, and with 1 beam, words are drawn at random,
        from the `seed`. decode_timeout: seconds that opening the source or reading from it
        may take at once; by default it grows with the source.
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
                beams=beams,
                max_tokens=max_tokens,
                prompt=prompt,
                length_penalty=length_penalty,
                temperature=temperature,
                seed=seed,
                decode_timeout=decode_timeout,
            )
        )

    def iter_captions(
        self,
        source: str | PathLike[str],
        *,
        frames: int | None = None,
        fps: float | None = None,
        start: float | None = None,
        end: float | None = None,
        every: float | None = None,
        window: float | None = None,
        beams: int = 3,
        max_tokens: int = 20,
        prompt: str | None = None,
        length_penalty: float = 1.0,
        temperature: float = 0.0,
        seed: int = 0,
        decode_timeout: float | None = None,
    ) -> Iterator[Caption]:
        """As `caption`, each as soon as it is made."""
        search = GenerationConfig(
            beams=beams,
            max_tokens=max_tokens,
            length_penalty=length_penalty,
            temperature=temperature,
            seed=seed,
        )
        opening = prompt.strip() if prompt else ""
        for segment, features in self._look(
            source, frames, fps, start, end, every, window, decode_timeout
        ):
            ids = self.model.prompts.caption(opening, self.model.name(features))
            yield self._generate(source, segment, features, ids, search, opening)

    def ask(
        self,
        source: str | PathLike[str],
        question: str,
        *,
        frames: int | None = None,
        fps: float | None = None,
        start: float | None = None,
        end: float | None = None,
        beams: int = 3,
        max_tokens: int = 20,
        length_penalty: float = 0.0,
        temperature: float = 0.0,
        seed: int = 0,
        decode_timeout: float | None = None,
    ) -> Caption:
        """The model's answer to a question about `source`; arguments as for `caption`."""
        search = GenerationConfig(
            beams=beams,
            max_tokens=max_tokens,
            length_penalty=length_penalty,
            temperature=temperature,
            seed=seed,
        )
        ids = self.model.prompts.question(question)
        segment, features = next(
            self._look(source, frames, fps, start, end, None, None, decode_timeout)
        )
        return self._generate(source, segment, features, ids, search, "")

    def complete(
        self,
        *parts: str | PathLike[str],
        frames: int | None = None,
        beams: int = 3,
        max_tokens: int = 20,
        length_penalty: float = 1.0,
        temperature: float = 0.0,
        seed: int = 0,
        decode_timeout: float | None = None,
    ) -> str:
        """The text that goes on from media and text in any order, such as shots and a question.

        A `Path` is a video, a picture or a folder, a `str` is text. Each text sees the medium in
        front of it: `complete(Path("a.jpg"), "Output: a cat.", Path("b.mp4"), "Output:")`.
        """
        search = GenerationConfig(
            beams=beams,
            max_tokens=max_tokens,
            length_penalty=length_penalty,
            temperature=temperature,
            seed=seed,
        )
        prompt: list[str | Media] = []
        seen: list[Tensor] = []
        for part in parts:
            if isinstance(part, str):
                prompt.append(part if part[:1].isspace() else f" {part}")
                continue
            look = self._look(part, frames, None, None, None, None, None, decode_timeout)
            seen.append(next(look)[1])
            prompt.append(MEDIA)
        if not seen:
            raise InputError(
                "there is no medium among the parts; give a Path to a video or picture"
            )
        return self._continue(seen, self.model.prompts.encode(prompt), search)[0]

    def encode(self, frames: Frames) -> Tensor:
        """Frozen features [T,N,F] of decoded frames."""
        pictures = self.model.transform(frames.pixels)
        return self.model.flamingo.encode(pictures.to(self.model.device, self.model.dtype))

    def _look(
        self,
        source: str | PathLike[str],
        frames: int | None,
        fps: float | None,
        start: float | None,
        end: float | None,
        every: float | None,
        window: float | None,
        timeout: float | None,
    ) -> Iterator[tuple[Segment, Tensor]]:
        """The parts of the source that get a text each, and features [T,N,F] of their frames."""
        if frames is not None and fps is not None:
            raise InputError("both frames and fps are given; choose one")
        if window is not None and every is None:
            raise InputError(f"window is {window} without every; give every as well")
        config = self.model.config
        usual = config.frames or config.resampler.frames or 1
        sampling = Fps(fps) if fps is not None else Uniform(usual if frames is None else frames)
        with video.open_source(source, size=self._decode_size(), timeout=timeout) as opened:
            if isinstance(opened, LiveSource):
                yield from self._watch(
                    opened, sampling, Segment(start or 0.0, end or math.inf), every, window
                )
                return
            length = float(opened.pts[-1] + opened.durations[-1])
            parts = [Segment(start or 0.0, length if end is None else min(end, length))]
            if every is not None and length > 0:
                parts = windows(
                    length, every if window is None else window, every, start or 0.0, end
                )
            for part in parts:
                at = sampling.indices(opened.pts, opened.durations, part.start, part.end).tolist()
                chunks = [at[i : i + _READ_AT_ONCE] for i in range(0, len(at), _READ_AT_ONCE)]
                yield part, torch.cat([self.encode(opened.read(chunk)) for chunk in chunks])

    def _watch(
        self,
        live: LiveSource,
        sampling: Uniform | Fps,
        part: Segment,
        every: float | None,
        window: float | None,
    ) -> Iterator[tuple[Segment, Tensor]]:
        """As `_look` on what can only be read forward, in bounded memory: windows as they end."""
        if every is None:
            most = sampling.n if isinstance(sampling, Uniform) else _MOST_OF_LIVE
            rate = sampling.rate if isinstance(sampling, Fps) else _LIVE_FPS
            yield self._watch_whole(live, rate, most, part)
            return
        size = every if window is None else window
        rate = sampling.rate if isinstance(sampling, Fps) else sampling.n / size
        seen: deque[tuple[float, Tensor]] = deque()
        begin, last = part.start, part.start
        for time, frame in _between(live, rate, part):
            while time >= begin + size:
                if inside := [f for t, f in seen if t >= begin]:
                    yield Segment(begin, begin + size), torch.cat(inside)
                begin += every
            while seen and seen[0][0] < begin:
                seen.popleft()
            last = time + 0.5 / rate
            if time >= begin:
                seen.append((time, self.encode(frame)))
        while begin < last - 1e-9:
            if inside := [f for t, f in seen if t >= begin]:
                yield Segment(begin, min(begin + size, last)), torch.cat(inside)
            begin += every

    def _watch_whole(
        self, live: LiveSource, rate: float, most: int, part: Segment
    ) -> tuple[Segment, Tensor]:
        """Everything until the stream ends, by frames spread evenly over it."""
        spread: Spread[Tensor] = Spread(most)
        last = part.start
        for time, frame in _between(live, rate, part):
            last = time + 0.5 / rate
            if spread.wants():
                spread.add(self.encode(frame))
            else:
                spread.skip()
        features = spread.choose()
        if not features:
            raise InputError(f"start is {part.start:g} s; {live.name} ended before that")
        return Segment(part.start, last), torch.cat(features)

    def _decode_size(self) -> tuple[int, int] | None:
        """What frames can be resized to while they are decoded, without a crop to come."""
        vision = self.model.config.vision
        return (vision.size, vision.size) if vision.resize == "squash" else None

    def _generate(
        self,
        source: str | PathLike[str],
        segment: Segment,
        features_TNF: Tensor,
        prompt_ids: list[int],
        search: GenerationConfig,
        opening: str,
    ) -> Caption:
        text, logprob = self._continue([features_TNF], prompt_ids, search)
        return Caption(
            source=shown(source),
            start=segment.start,
            end=segment.end,
            text=f"{opening} {text}".strip(),
            logprob=logprob,
            model=self.name,
        )

    @torch.inference_mode()
    def _continue(
        self, media_TNF: Sequence[Tensor], prompt_ids: list[int], search: GenerationConfig
    ) -> tuple[str, float]:
        """The best text after a prompt with these media, features [T,N,F] each; its logprob."""
        flamingo, prompts = self.model.flamingo, self.model.prompts
        counts_M = torch.tensor([len(features) for features in media_TNF])
        features_MTNF = pad_sequence(list(media_TNF), batch_first=True)
        latents_BMLD = flamingo.resample(features_MTNF[None], counts_M[None])
        input_ids = torch.tensor([prompt_ids], device=self.model.device)
        index_BS = media_index(input_ids, prompts.media_id)
        [best] = generate(
            flamingo,
            latents_BMLD,
            input_ids,
            index_BS,
            prompts.end_id,
            search,
            head=self.model.head,
        )
        return prompts.decode(best.ids), best.logprob


def _between(live: LiveSource, rate: float, part: Segment) -> Iterator[tuple[float, Frames]]:
    """The frames shown at ticks of `rate` per second in a part of a stream, and the ticks."""
    for tick, frame in enumerate(live.frames(fps=rate)):
        time = (tick + 0.5) / rate
        if time >= part.end:
            return
        if time >= part.start:
            yield time, frame
