"""Latents to words: captions in the light of those before, answers, and how well a text still fits.

Legend: L latents, D width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from flamvid.generate.config import Generated, GenerationConfig
from flamvid.generate.favour import Favour, favours_of
from flamvid.generate.prompt import Prompt
from flamvid.weights.load import LoadedModel

__all__ = ["Said", "Speaker"]


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """A caption, with what it was made of: latents [1,L,D] and the labels in its prompt."""

    text: str
    ids: tuple[int, ...]
    logprob: float
    latents: Tensor
    labels: tuple[str, ...]


class Speaker:
    """Captions one stream. context: how many of its last captions stand before the next one."""

    def __init__(self, model: LoadedModel, config: GenerationConfig, context: int = 0) -> None:
        self.model, self.config = model, config
        self.before: deque[Said] = deque(maxlen=context)

    def caption(
        self, latents_1LD: Tensor, labels: Mapping[str, float], *, greedy: bool = False
    ) -> Said:
        """What is seen now; the next captions will have it before them."""
        ids = self._prompt(labels)
        favours = favours_of(self.model, labels)
        made = self._continue(latents_1LD, ids, greedy, favours)
        text = self.model.prompts.decode(made.ids)
        said = Said(text, made.ids, made.logprob, latents_1LD, tuple(labels))
        self.before.append(said)
        return said

    def answer(self, latents_1LD: Tensor, question: str, *, greedy: bool = False) -> Said:
        """The answer to a question about what is seen now."""
        ids = self.model.prompts.question(question)
        config = replace(self.config, min_tokens=max(1, self.config.min_tokens))
        made = self._continue(latents_1LD, ids, greedy, config=config, alone=True)
        text = self.model.prompts.decode(made.ids)
        return Said(text, made.ids, made.logprob, latents_1LD, ())

    def fit(self, said: Said, latents_1LD: Tensor, labels: Mapping[str, float]) -> float:
        """The mean log-probability of a caption's tokens, its end included, now that this is seen.

        Without other captions before it, which would make a repetition likely of itself.
        """
        ids = self.model.prompts.caption("", tuple(labels))
        option = [*said.ids, self.model.prompts.end_id]
        [scores] = Prompt(self.model, [latents_1LD], ids).score([option])
        return sum(scores) / len(scores)

    def _prompt(self, labels: Mapping[str, float]) -> list[int]:
        shots = [(said.labels, said.text) for said in self.before]
        return self.model.prompts.caption("", tuple(labels), shots)

    def _continue(
        self,
        latents_1LD: Tensor,
        ids: Sequence[int],
        greedy: bool,
        favours: Sequence[Favour] = (),
        config: GenerationConfig | None = None,
        alone: bool = False,
    ) -> Generated:
        before = [] if alone else [said.latents for said in self.before]
        # All media of a text have as many latents; of more or fewer, those in common are read.
        fewest = min(x.shape[1] for x in (*before, latents_1LD))
        media = [x[:, :: x.shape[1] // fewest][:, :fewest] for x in (*before, latents_1LD)]
        config = config or self.config
        if greedy and not config.draws:
            config = replace(config, beams=1, returns=1)
        return Prompt(self.model, media, ids).search(config, favours)[0]
