"""The verbs: load a model, caption and question sources. The command line calls these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike, fspath

import torch
from torch import Tensor

from flamvid import video
from flamvid.errors import InputError
from flamvid.generate.engine import GenerationConfig, generate
from flamvid.ops import media_index
from flamvid.types import Caption, Frames, Segment
from flamvid.video.isolate import warm_up
from flamvid.video.sample import Fps, Uniform, windows
from flamvid.weights.load import LoadedModel, load_model

__all__ = ["Captioner", "load"]

_READ_AT_ONCE = 32  # frames in memory, however many are asked for


def load(
    model: str = "flamvid-base", device: str | None = None, dtype: str | None = None
) -> Captioner:
    """A captioner for a model by name; on a GPU where there is one, else on the CPU."""
    warm_up()  # a decode child starts while the model loads
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Captioner(load_model(model, device, dtype or "float32"))


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
        length_penalty: float = 0.0,
        seed: int = 0,
        decode_timeout: float | None = None,
    ) -> list[Caption]:
        """One caption of `source`, or with `every` one for each window of time.

        frames: how many to look at (as many as the model was trained on by default), or fps: how
        many per second. start, end: the part to look at, in seconds. every, window: a caption
        every so many seconds, each of `window` seconds (by default `every`). prompt: words that
        the caption begins with. decode_timeout: seconds that opening the source or reading from it
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
        length_penalty: float = 0.0,
        seed: int = 0,
        decode_timeout: float | None = None,
    ) -> Iterator[Caption]:
        """As `caption`, each as soon as it is made."""
        search = GenerationConfig(beams=beams, max_tokens=max_tokens, length_penalty=length_penalty)
        opening = prompt.strip() if prompt else ""
        ids = self.model.prompts.caption(opening)
        torch.manual_seed(seed)
        for segment, features in self._look(
            source, frames, fps, start, end, every, window, decode_timeout
        ):
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
        seed: int = 0,
        decode_timeout: float | None = None,
    ) -> Caption:
        """The model's answer to a question about `source`; arguments as for `caption`."""
        search = GenerationConfig(beams=beams, max_tokens=max_tokens, length_penalty=length_penalty)
        ids = self.model.prompts.question(question)
        torch.manual_seed(seed)
        segment, features = next(
            self._look(source, frames, fps, start, end, None, None, decode_timeout)
        )
        return self._generate(source, segment, features, ids, search, "")

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
        trained = self.model.config.resampler.frames
        sampling = Fps(fps) if fps is not None else Uniform(trained if frames is None else frames)
        with video.open(source, size=self._decode_size(), timeout=timeout) as opened:
            length = float(opened.pts[-1] + opened.durations[-1])
            parts = [Segment(start or 0.0, length if end is None else min(end, length))]
            if every is not None and length > 0:
                parts = windows(length, window or every, every, start or 0.0, end)
            for part in parts:
                at = sampling.indices(opened.pts, opened.durations, part.start, part.end).tolist()
                chunks = [at[i : i + _READ_AT_ONCE] for i in range(0, len(at), _READ_AT_ONCE)]
                yield part, torch.cat([self.encode(opened.read(chunk)) for chunk in chunks])

    def _decode_size(self) -> tuple[int, int] | None:
        """What frames can be resized to while they are decoded, without a crop to come."""
        vision = self.model.config.vision
        return (vision.size, vision.size) if vision.resize == "squash" else None

    @torch.inference_mode()
    def _generate(
        self,
        source: str | PathLike[str],
        segment: Segment,
        features_TNF: Tensor,
        prompt_ids: list[int],
        search: GenerationConfig,
        opening: str,
    ) -> Caption:
        flamingo, prompts = self.model.flamingo, self.model.prompts
        input_ids = torch.tensor([prompt_ids], device=self.model.device)
        latents_BMLD = flamingo.resample(features_TNF[None, None])
        index_BS = media_index(input_ids, prompts.media_id)
        end = prompts.end_id
        [best] = generate(
            flamingo, latents_BMLD, input_ids, index_BS, end, search, head=self.model.head
        )
        text = prompts.decode(best.ids)
        return Caption(
            source=fspath(source),
            start=segment.start,
            end=segment.end,
            text=f"{opening} {text}".strip(),
            logprob=best.logprob,
            model=self.name,
        )
