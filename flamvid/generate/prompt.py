"""A prompt with its media, as a loaded model reads it: what it says next, and what it would say.

Legend: M media, S tokens, L latents, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flamvid.errors import InputError
from flamvid.generate.config import Generated, GenerationConfig
from flamvid.generate.engine import OnToken, search
from flamvid.generate.favour import Favour
from flamvid.generate.memory import PromptMemory
from flamvid.generate.score import score_options
from flamvid.ops import media_index
from flamvid.weights.load import LoadedModel

__all__ = ["Prompt"]


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """Token ids, and latents [1,L,D] of each of the media among them.

    memory: what prompts before it left behind. again: so many of its first tokens come again in
    others; 0: all of them do, and the text that is found, as in a conversation.
    """

    model: LoadedModel
    latents: Sequence[Tensor]
    ids: Sequence[int]
    memory: PromptMemory | None = None
    again: int = 0

    def search(
        self,
        config: GenerationConfig,
        favours: Sequence[Favour] = (),
        on_token: OnToken | None = None,
    ) -> list[Generated]:
        """`config.returns` texts that go on from it, the best first; see `engine.search`."""
        prompts, flamingo, memory = self.model.prompts, self.model.flamingo, self.memory
        self._check_room(config.max_tokens)
        latents, input_ids, index = self._inputs()
        begun = None
        if memory is not None:
            begun = memory.begin(flamingo, self._media(), input_ids, index, self.again)
        [texts] = search(
            flamingo,
            latents,
            input_ids,
            index,
            prompts.end_id,
            config,
            head=self.model.head,
            media_id=prompts.media_id,
            favours=[favours],
            on_token=on_token,
            begun=begun,
            draft=self.model.draft if config.beams == config.returns == 1 else None,
        )
        if memory is not None and begun is not None and not self.again:
            memory.keep(flamingo, self._media(), [*self.ids, *texts[0].ids], begun)
        return texts

    def score(self, options: Sequence[Sequence[int]]) -> list[list[float]]:
        """The log-probability of each token of each option as what goes on from it."""
        self._check_room(max(map(len, options), default=0))
        return score_options(self.model.flamingo, *self._inputs(), options)

    def _check_room(self, more: int) -> None:
        """InputError where the LM has no positions for the prompt and so many tokens more.

        Some would go on regardless, but not well; others would fail in the middle of it.
        """
        room = self.model.flamingo.lm.positions
        if room is not None and len(self.ids) + more > room:
            raise InputError(
                f"the prompt takes {len(self.ids)} tokens and its text {more}, but the language "
                f"model was made for {room}; give fewer or shorter shots, or lower max_tokens"
            )

    def _inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [1,M,L,D], ids [1,S] and which of the media each token sees, [1,S]."""
        input_ids = torch.tensor([list(self.ids)], device=self.model.device)
        index = media_index(input_ids, self.model.prompts.media_id)
        return torch.cat(self._media())[None], input_ids, index

    def _media(self) -> list[Tensor]:
        """At least one."""
        if self.latents:
            return list(self.latents)
        sizes = self.model.flamingo.resampler.config  # of one that no token sees
        nothing = torch.zeros(1, sizes.latents, sizes.latent_width)
        return [nothing.to(self.model.device, self.model.dtype)]
