"""All that a run needs, in memory: a model, its data, and what updates the one on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from flamvid.data.collate import Batch
from flamvid.data.corpus import CorpusConfig
from flamvid.data.features import digest_of
from flamvid.data.mixture import Mixture
from flamvid.errors import ConfigError
from flamvid.models.build import read_model_config
from flamvid.models.encoder import VisionEncoder
from flamvid.models.flamingo import Flamingo
from flamvid.models.gated_xattn import GatedCrossAttention
from flamvid.models.lm import decoder_layers
from flamvid.models.vision import TimmEncoder
from flamvid.train.chunks import chunks
from flamvid.train.feature_cache import FeatureCache
from flamvid.train.lora import add_lora
from flamvid.train.objective import Objective, checkpoint_layers
from flamvid.train.optimizer import make_optimizer
from flamvid.train.parallel import Parallel
from flamvid.train.plan import Plan
from flamvid.train.precision import halve_frozen, halves
from flamvid.train.update import Updater
from flamvid.train.world import World
from flamvid.weights.load import LoadedModel, load_config

__all__ = ["LEDGER", "Part", "Ready", "gates", "part_of", "parts", "trained_model"]

LEDGER = "unreadable.jsonl"
_TOGETHER = 256  # as many as of one page: more take memory, fewer more passes over the weights


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a model: all its parameters, and those that are trained."""

    name: str
    parameters: int
    trained: int

    def __str__(self) -> str:
        return f"{self.name}: {self.parameters:,} parameters, {self.trained:,} trained"


class Ready:
    """A plan's model, data and updater, in one process of a world.

    out: the folder of the run; None writes nothing.
    """

    def __init__(self, plan: Plan, out: Path | None, world: World) -> None:
        self.plan, self.world = plan, world
        self.model = trained_model(plan, world)
        self.data = self._mixture(plan.corpora, out and out / LEDGER)
        # Opened now, or a shard that is missing would be met hours later.
        self._held_out = None
        if plan.validation:
            self._held_out = self._mixture(plan.validation, None, held_out=True)
        flamingo = self.model.flamingo
        objective = Objective(flamingo, self.model.prompts.media_id)
        self.parallel = Parallel(objective, world, plan.run.engine)
        self.optimizer = make_optimizer(self.parallel.trained(), plan.optim)
        weights = {corpus.name: corpus.weight for corpus in plan.corpora}
        together = plan.run.together or (_TOGETHER if world.device.type == "cpu" else 0)
        # Processes that share a model must make the same number of passes through it.
        split = partial(chunks, most=0 if self.parallel.sharded else together)
        self.updater = Updater(self.parallel, self.optimizer, weights, plan.optim.clip, split)
        self._cache: FeatureCache | None = None
        if plan.model.vision == "frozen":
            path = out / plan.run.cache if out and plan.run.cache else None
            vision = self.model.config.vision.features
            about = f"{vision} {self.model.dtype} {digest_of(flamingo.vision)}"
            self._cache = FeatureCache(
                self._encode,
                about,
                path,
                limit=int(plan.run.cache_gb * 2**30),
                whole=flamingo.vision.clip is not None,
            )

    def prepare(self, batch: Batch) -> Batch:
        """A batch on the device, with features if vision is frozen, with pictures if it isn't."""
        if self._cache is not None:
            batch = self._cache(batch)
        elif batch.frames is not None:
            frames = batch.frames
            pictures = self.model.transform(frames.flatten(0, 2))
            batch = replace(batch, frames=pictures.unflatten(0, frames.shape[:3]))
        return _placed(batch, self.world.device)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean loss per token of held-out batches, by corpus."""
        assert self._held_out is not None
        data, names = self._held_out, [corpus.name for corpus in self.plan.validation]
        data.load_state_dict({**data.state_dict(), "updates": 0})  # the same batches every time
        self.model.flamingo.eval()
        loss, tokens = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        for _ in range(self.plan.run.validation_batches):
            with self.world.agreed():
                update = next(data)
            data.ledger.share(self.world.gathered(data.ledger.news))
            for batch in update:
                loss[batch.corpus] += self.parallel(self.prepare(batch)).item()
                tokens[batch.corpus] += batch.scored
        self.model.flamingo.train()
        self.parallel.leave_out()
        summed = self.world.sum([*loss.values(), *tokens.values()])
        totals, counts = summed[: len(names)], summed[len(names) :]
        return {n: t / c for n, t, c in zip(names, totals, counts, strict=True) if c}

    def _mixture(
        self, corpora: Sequence[CorpusConfig], ledger: Path | None, held_out: bool = False
    ) -> Mixture:
        run = self.plan.run
        return Mixture(
            corpora,
            self.model.prompts,
            root=self.plan.root,
            seed=run.seed,
            mixing="accumulate" if held_out else run.mixing,
            rank=self.world.rank,
            world=self.world.size,
            workers=0 if held_out else run.workers,
            ledger=ledger,
            augment=not held_out,
            together=self.world.size > 1,
        )

    def _encode(self, pictures_X3HW: Tensor) -> Tensor:
        ready = self.model.transform(pictures_X3HW.to(self.world.device))
        return self.model.flamingo.encode(ready.to(self.model.dtype))


def trained_model(plan: Plan, world: World) -> LoadedModel:
    """The model of a plan on its device, with what is frozen frozen, and what learns in float32."""
    torch.manual_seed(plan.run.seed)
    model_config = read_model_config(plan.model.name)
    if plan.model.size and plan.model.size != model_config.vision.size:
        if not model_config.vision.encoder.startswith("timm:"):
            raise ConfigError(
                f"model.size is {plan.model.size}, but {model_config.vision.encoder} sees "
                f"{model_config.vision.size} pixels only; leave it out"
            )
        vision = replace(model_config.vision, size=plan.model.size)
        model_config = replace(model_config, vision=vision)
    dtype = "bfloat16" if world.device.type == "cuda" else "float32"
    trained = plan.model.start == "trained"
    model = load_config(model_config, str(world.device), dtype, trained)
    flamingo = model.flamingo
    if plan.model.vision == "trained":
        _thaw(flamingo.vision)
    if plan.model.lora:
        add_lora(flamingo.lm, plan.model.lora)
    for _, parameter in flamingo.trained():
        # Snapshots want them contiguous, which the convolutions of a TimmEncoder are not.
        parameter.data = parameter.data.float().contiguous()
    whole = plan.model.lora or plan.model.vision == "trained"  # is saved, so nothing may be lost
    if world.device.type == "cpu" and halves(plan.run.precision) and not whole:
        halve_frozen(decoder_layers(flamingo.lm.lm))
    if plan.run.checkpointing:
        checkpoint_layers(flamingo)
    flamingo.train()
    return model


def parts(flamingo: Flamingo) -> list[Part]:
    """The parts of a model with their sizes."""
    lm, found = flamingo.lm, []
    for name, part in {
        "vision encoder": flamingo.vision,
        "resampler": flamingo.resampler,
        "cross-attention": lm.inserted,
        "new tokens": lm.tokens,
        "language model": lm.lm,
    }.items():
        if part is not None:
            found.append(part_of(name, part))
    return found


def part_of(name: str, module: nn.Module) -> Part:
    """A module's sizes."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return Part(name, sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained))


def gates(flamingo: Flamingo) -> list[list[float]]:
    """tanh of each inserted layer's gates, attention and then feed-forward."""
    layers = [x for x in flamingo.lm.inserted if isinstance(x, GatedCrossAttention)]
    pairs = [[g for g in (x.attn_gate, x.ffw_gate) if g is not None] for x in layers]
    return [[round(float(g.detach().tanh()), 6) for g in pair] for pair in pairs]


def _thaw(vision: VisionEncoder) -> None:
    """Let the encoder learn, but for its classifier, which nothing reads."""
    if vision.clip is not None:
        raise ConfigError(
            "model.vision is 'trained', but a video encoder can't be; leave it frozen"
        )
    vision.requires_grad_(True)
    if isinstance(vision, TimmEncoder):
        head = vision.model.get_classifier()
        if isinstance(head, nn.Module):
            head.requires_grad_(False)


def _placed(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    names = ("ids", "targets", "attend_next", "frame_counts", "features", "frames")
    moved = {name: getattr(batch, name) for name in names}
    return replace(batch, **{n: t.to(device) for n, t in moved.items() if t is not None})
