"""Texts after 1, 5 and 33 media: ours, and OpenFlamingo's way of decoding with the same weights.

python tools/bench/generate.py [--rounds N] [--tokens N] [--clock wall|cpu]

A random model in the shape of OpenFlamingo-3B: MPT-1B's architecture with 12 layers of 512, a
gated cross-attention before every one, 256 x 1024 features of a picture, 64 latents. The peer is
its wrapper, line by line (tests/weights/reference.py), under transformers' `generate`: keys and
values of all media and the dense mask anew for each token, and pictures repeated for each beam.
Its LM has torch's own linear layers. Both sides run in a process that keeps its freed memory, as
flamvid's command does. Where it would give logits of every token of a prompt, this
one gives the last alone, which spares the peer work. Both sides must write the same tokens. Beside
them ours without looking up what came before, and with a draft, as `--draft` has it, which both
must write the same tokens, too; and ours with int8 weights, as `--dtype int8` has them, and how
many of its tokens are the same. A random model repeats itself more than a text does, so the figure
without looking up is the one that holds for any text.
"The same shots again": all but the last of the media, and their texts, were read in a call before;
the peer reads them again. Medians of one run, interleaved.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from flamvid.cli.process import keep_freed_memory
from flamvid.generate.config import GenerationConfig
from flamvid.generate.engine import generate, search
from flamvid.generate.memory import PromptMemory
from flamvid.models.draft import Draft
from flamvid.models.flamingo import Flamingo
from flamvid.models.mosaic import MosaicForCausalLM
from flamvid.ops import implementation, media_index
from flamvid.weights.placement import quantise

sys.path.insert(0, str(Path(__file__).parents[2]))
from tools.bench.peers import END, MEDIA, MPT, OpenFlamingo, our_flamingo

WIDTH, PATCHES = 1024, 256
BARS = {1: 2.0, 5: 5.0, 33: 15.0}
BEAMS, BEAM_BAR = 3, 1.6
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Host(MosaicForCausalLM, GenerationMixin):
    """MPT-1B's architecture as transformers' `generate` wants it."""

    flamingo: Any = None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        cache: Any = None,  # what transformers 5.24 calls the same
        use_cache: bool | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        if self.flamingo is not None:
            self.flamingo.look(input_ids)
        held = past_key_values if cache is None else cache
        out = self.transformer(input_ids, attention_mask, held, use_cache)
        logits = self.lm_head(out.last_hidden_state[:, -1:])
        return CausalLMOutputWithPast(logits=logits, past_key_values=held)


class Peer(OpenFlamingo):
    """OpenFlamingo's Flamingo, from the features of pictures on."""

    def __init__(self, lm: Host) -> None:
        super().__init__(lm, WIDTH, every=1)
        # Past nn.Module's bookkeeping: the LM is a part of this, not the other way about.
        object.__setattr__(lm, "flamingo", self)

    def look(self, ids: Tensor) -> None:
        """FlamingoLMMixin.forward: where the media stand, or what was last known of it."""
        locations = ids == MEDIA
        if not locations.any():  # use_cached_media_locations: as many as stood in the prompt
            count = torch.count_nonzero(self.locations, dim=1)
            # All tokens of the step get the count; the block's cumsum of one token leaves it be.
            locations = count[:, None]
        else:
            self.locations = locations
        for layer in self.blocks:
            layer.media_locations = locations

    def condition(self, media: Tensor) -> None:
        for layer in self.blocks:
            layer.vis_x = media

    def resample(self, features: Tensor) -> Tensor:
        return self.perceiver(features)  # b T v D, one frame each

    def write(self, ids: Tensor, tokens: int, beams: int) -> Tensor:
        """`Flamingo.generate` once the media are conditioned on."""
        out = self.lang_encoder.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            eos_token_id=END,
            pad_token_id=END,
            num_beams=beams,
            max_new_tokens=tokens,
            do_sample=False,
        )
        return out[0, ids.shape[1] :]


def models() -> tuple[Flamingo, Peer]:
    """The same random model as ours and as theirs."""
    lm = Host(MPT).eval()
    lm.generation_config.eos_token_id = None
    peer = Peer(lm).eval()
    return our_flamingo(peer, Host(MPT), WIDTH, every=1).eval(), peer.with_plain_layers()


class Case:
    """A prompt of so many media, each with its few tokens of text."""

    def __init__(
        self, ours: Flamingo, int8: Flamingo, draft: Draft, peer: Peer, media: int, tokens: int
    ) -> None:
        self.ours, self.peer, self.tokens = ours, peer, tokens
        self.int8, self.draft = int8, draft
        self.features = torch.randn(1, media, PATCHES, WIDTH)
        self.ids = torch.randint(8, END, (1, media * 16))
        self.ids[:, ::16] = MEDIA
        self.index = media_index(self.ids, MEDIA)
        self.latents = self.ours_latents()
        self.media, self.memory = self.latents[0].split(1), PromptMemory()
        # Once, uncounted: the first run of a shape is slower.
        self.ours_from_latents(self.latents, 1, 2)
        self.int8_from_latents(self.latents, 1, 2)
        self.drafted_from_latents(self.latents, 4)
        self.plain_from_latents(self.latents, 2)
        self.peer_from_latents(self.latents, 1, 2)

    def ours_latents(self) -> Tensor:
        return self.ours.resample(self.features[:, :, None])

    def ours_from_latents(self, latents: Tensor, beams: int, tokens: int) -> list[int]:
        return self._write(self.ours, latents, beams, tokens)

    def ours_again(self, tokens: int) -> list[int]:
        """The first media and their texts are read once for all calls, the last anew."""
        config, shots = GenerationConfig(beams=1, max_tokens=tokens), self.ids.shape[1] - 16
        prompt = (self.ids, self.index)
        begun = self.memory.begin(self.ours, self.media, *prompt, shots)
        found = search(self.ours, self.latents, *prompt, END, config, media_id=MEDIA, begun=begun)
        return list(found[0][0].ids)

    def int8_from_latents(self, latents: Tensor, beams: int, tokens: int) -> list[int]:
        return self._write(self.int8, latents, beams, tokens)

    def drafted_from_latents(self, latents: Tensor, tokens: int) -> list[int]:
        return self._write(self.ours, latents, 1, tokens, self.draft)

    def plain_from_latents(self, latents: Tensor, tokens: int) -> list[int]:
        return self._write(self.ours, latents, 1, tokens, lookup=False)

    def agreed(self, text: list[int]) -> int:
        """How many tokens of a text int8 would choose as well, each after those before it."""
        ids = torch.cat([self.ids, torch.tensor([text])], dim=1)
        index = media_index(ids, MEDIA).clamp_max(self.latents.shape[1] - 1)
        hidden = self.int8.lm(ids, self.int8.read(self.latents, index))[:, -len(text) - 1 : -1]
        return int((self.int8.lm.head(hidden).argmax(-1) == ids[:, -len(text) :]).sum())

    def _write(
        self,
        model: Flamingo,
        latents: Tensor,
        beams: int,
        tokens: int,
        draft: Draft | None = None,
        lookup: bool = True,
    ) -> list[int]:
        config = GenerationConfig(beams=beams, max_tokens=tokens, lookup=lookup)
        prompt = (latents, self.ids, self.index)
        found = generate(model, *prompt, END, config, media_id=MEDIA, draft=draft)
        return list(found[0].ids)

    def ours_whole(self, beams: int, tokens: int) -> list[int]:
        return self.ours_from_latents(self.ours_latents(), beams, tokens)

    def peer_from_latents(self, latents: Tensor, beams: int, tokens: int) -> list[int]:
        self.peer.condition(latents.repeat_interleave(beams, 0))
        return self.peer.write(self.ids, tokens, beams).tolist()

    def peer_whole(self, beams: int, tokens: int) -> list[int]:
        # vision_x.repeat_interleave(num_beams) comes before the encoder.
        self.peer.condition(self.peer.resample(self.features.repeat_interleave(beams, 0)))
        return self.peer.write(self.ids, tokens, beams).tolist()


def medians(
    runs: dict[str, Callable[[], Any]], rounds: int, clock: str
) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds of each, in turns, and what each gave."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    gave: dict[str, Any] = {}
    for _ in range(rounds):
        for name, run in runs.items():
            start = CLOCKS[clock]()
            gave[name] = run()
            times[name].append(CLOCKS[clock]() - start)
    return {name: median(took) for name, took in times.items()}, gave


def compare(case: Case, rounds: int, clock: str) -> float:
    """Prints greedy figures of one number of media; gives how many times as fast ours is."""
    n, latents = case.tokens, case.latents
    media = latents.shape[1]
    if media > 1:
        case.ours_again(2)
    again = {"ours, again": lambda: case.ours_again(n)} if media > 1 else {}
    took, wrote = medians(
        {
            "ours": lambda: case.ours_from_latents(latents, 1, n),
            "peer": lambda: case.peer_from_latents(latents, 1, n),
            "ours, one token": lambda: case.ours_from_latents(latents, 1, 1),
            "peer, one token": lambda: case.peer_from_latents(latents, 1, 1),
            "ours, resampler": case.ours_latents,
            "peer, resampler": lambda: case.peer.resample(case.features),
            "int8": lambda: case.int8_from_latents(latents, 1, n),
            "int8, one token": lambda: case.int8_from_latents(latents, 1, 1),
            "draft": lambda: case.drafted_from_latents(latents, n),
            "draft, one token": lambda: case.drafted_from_latents(latents, 1),
            "no lookup": lambda: case.plain_from_latents(latents, n),
            "no lookup, one token": lambda: case.plain_from_latents(latents, 1),
            **again,
        },
        rounds,
        clock,
    )
    if wrote["ours"] != wrote["peer"] or len(wrote["ours"]) != n:
        raise SystemExit(f"ours wrote {wrote['ours']}, the peer {wrote['peer']}: must be the same")
    if again and wrote["ours, again"] != wrote["ours"]:
        raise SystemExit(
            f"with the shots known ours wrote {wrote['ours, again']}: must be the same"
        )
    for how in ("draft", "no lookup"):
        if wrote[how] != wrote["ours"]:
            raise SystemExit(f"with {how} ours wrote {wrote[how]}: must be {wrote['ours']}")
    print(f"{media} media, {case.ids.shape[1]} tokens of prompt; {n} new tokens, the same of both")
    rates: list[tuple[str, float, float]] = [
        ("from latents", n / took["ours"], n / took["peer"]),
        (
            "  tokens after the first",
            (n - 1) / (took["ours"] - took["ours, one token"]),
            (n - 1) / (took["peer"] - took["peer, one token"]),
        ),
        (  # both resample once here, and then go on from latents
            "from features",
            n / (took["ours"] + took["ours, resampler"]),
            n / (took["peer"] + took["peer, resampler"]),
        ),
    ]
    if again:  # the peer has no such thing: its time is what it was
        rates.append(("the same shots again", n / took["ours, again"], rates[0][2]))
    for way, name in (
        ("no lookup", "from latents, no lookup"),
        ("int8", "from latents, int8"),
        ("draft", "from latents, with a draft"),
    ):
        after = (n - 1) / (took[way] - took[f"{way}, one token"])
        rates += [(name, n / took[way], rates[0][2]), (rates[1][0], after, rates[1][2])]
    for name, ours, theirs in rates:
        print(f"  {name:27}ours {ours:7.2f} tokens/s, peer {theirs:7.2f}: {ours / theirs:6.2f}x")
    print(
        f"  int8, after the same tokens, chooses the same next {case.agreed(wrote['ours'])} of {n}"
    )
    sys.stdout.flush()
    return rates[0][1] / rates[0][2]


def beams(case: Case, rounds: int, clock: str) -> float:
    """Prints what beams cost; gives ours, from latents, over greedy."""
    n, latents = case.tokens, case.latents
    took, wrote = medians(
        {
            "ours": lambda: case.ours_from_latents(latents, BEAMS, n),
            "ours, greedy": lambda: case.ours_from_latents(latents, 1, n),
            "ours, no lookup": lambda: case.plain_from_latents(latents, n),
            "ours, whole": lambda: case.ours_whole(BEAMS, n),
            "ours, greedy, whole": lambda: case.ours_whole(1, n),
            "peer, whole": lambda: case.peer_whole(BEAMS, n),
            "peer, greedy, whole": lambda: case.peer_whole(1, n),
        },
        rounds,
        clock,
    )
    same = (
        "the same text as the peer" if wrote["ours, whole"] == wrote["peer, whole"] else "another"
    )
    print(f"{BEAMS} beams, {latents.shape[1]} media: {same}")
    ratio = took["ours"] / took["ours, greedy"]
    plain = took["ours, no lookup"]  # beams don't look up
    print(
        f"  ours from latents {took['ours']:.2f} s, greedy {took['ours, greedy']:.2f}: {ratio:.2f}"
        f"; with no lookup {plain:.2f}: {took['ours'] / plain:.2f}"
    )
    for side in ("ours", "peer"):
        whole, greedy = took[f"{side}, whole"], took[f"{side}, greedy, whole"]
        print(f"  {side} from features {whole:.2f} s, greedy {greedy:.2f}: {whole / greedy:.2f}")
    sys.stdout.flush()
    return ratio


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--media", type=int, nargs="*", default=sorted(BARS))
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    options = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    ours, peer = models()
    int8 = copy.deepcopy(ours)
    quantise(int8, own=True)
    draft = Draft.of(ours.lm)
    served = implementation("media_attention_forward")
    print(f"{served.name}, {torch.get_num_threads()} threads, {options.clock} time")

    verdicts: list[tuple[str, bool]] = []
    for media in options.media:
        case = Case(ours, int8, draft, peer, media, options.tokens)
        ratio = compare(case, options.rounds, options.clock)
        bar = BARS.get(media, 1.0)
        verdicts.append((f"{media} media: {ratio:.2f}x, bar {bar:g}x", ratio >= bar))
    case = Case(ours, int8, draft, peer, 5, options.tokens)
    cost = beams(case, options.rounds, options.clock)
    said = f"{BEAMS} beams, 5 media: {cost:.2f} of greedy, bar {BEAM_BAR:g}"
    verdicts.append((said, cost < BEAM_BAR))
    for said, met in verdicts:
        print(f"{said}: {'met' if met else 'NOT met'}")
    return 0 if all(met for _, met in verdicts) else 1


if __name__ == "__main__":
    raise SystemExit(main())
