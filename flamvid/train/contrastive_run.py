"""A contrastive run: two heads on frozen parts, or a vision encoder and a BERT from scratch.

Under torchrun each process takes its share of every batch, and meets the pairs of all others.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn

from flamvid.data.features import FeatureSet
from flamvid.data.shards import expand
from flamvid.models.contrastive import ContrastiveConfig, DualHead
from flamvid.models.vision import TimmEncoder
from flamvid.train.attempt import Read
from flamvid.train.contrastive import ContrastiveLoss, ContrastiveStage
from flamvid.train.draw import Chance, Drawn, Inputs, MeanLoss, rows_of
from flamvid.train.dual import HeadModule, HeadPairs, missed
from flamvid.train.dual_encoder import DualEncoder, PicturePairs, build_encoder
from flamvid.train.optimizer import OptimConfig, make_optimizer
from flamvid.train.parallel import Parallel
from flamvid.train.plan import RunConfig
from flamvid.train.ready import Part, part_of, parts
from flamvid.train.recipe import Recipe
from flamvid.train.snapshot import Snapshots
from flamvid.train.trainer import Trainer
from flamvid.train.update import Updater
from flamvid.train.world import World
from flamvid.video.transform import FrameTransform
from flamvid.weights.adapter import save_adapter
from flamvid.weights.embed import save_head, text_states
from flamvid.weights.load import LoadedModel, load_model

__all__ = ["ContrastiveRun"]

Validate = Callable[[], Mapping[str, float]]

_HEADS = "contrastive.safetensors"
_FROZEN = ("vision encoder", "language model")


class Pairs(Protocol):
    """Samples, each of one video or picture and some captions, and how a module takes them."""

    def __len__(self) -> int: ...

    def batch(self, rows: Sequence[int], rngs: Sequence[random.Random]) -> tuple[Tensor, ...]:
        """What the module's `forward` takes for these samples, with a caption drawn for each."""
        ...


class ContrastiveRun:
    """Training of two towers; the result is what a model's TOML can name.

    That is `<out>/contrastive.safetensors`, the heads; or `<out>/encoder/`, the weights of a
    trained vision encoder, with the heads and BERT beside it. read: frozen features of shards.
    """

    def __init__(self, recipe: Recipe, out: Path, world: World, read: Read) -> None:
        assert recipe.contrastive is not None
        self.stage, self.out, self.world, self.seed = recipe.contrastive, out, world, recipe.seed
        torch.manual_seed(recipe.seed)
        model = load_model(recipe.model, dtype="float32", trained=False)
        self.module: nn.Module
        self.pairs: Pairs
        if self.stage.encoder:
            self.module, self.pairs, self.validate = _encoder(recipe, self.stage, model)
            self.frozen: list[Part] = []
        else:
            made = _heads(recipe, self.stage, model, world, read)
            self.module, self.pairs, self.validate = made
            self.frozen = [p for p in parts(model.flamingo) if p.name in _FROZEN]

    def stages(self) -> Iterator[Trainer]:
        """The one that there is."""
        module, stage = self.module.train(), self.stage
        yield _trainer(module, self.pairs, self.validate, stage, self.seed, self.out, self.world)

    def parts(self) -> list[Part]:
        """The frozen ones that heads stand on, and those of the trained module."""
        module = self.module.head if isinstance(self.module, HeadModule) else self.module
        return self.frozen + [part_of(name, child) for name, child in module.named_children()]

    def save(self, step: int) -> Path:
        """Write the towers as they are."""
        if self.world.first:
            _save(self.module.eval(), self.out, self.stage)
        return self.out / ("encoder" if self.stage.encoder else _HEADS)


def _trainer(
    module: nn.Module,
    pairs: Pairs,
    validate: Validate,
    stage: ContrastiveStage,
    seed: int,
    out: Path,
    world: World,
) -> Trainer:
    batch = stage.batch // world.size * world.size  # as long a share for each

    def make(step: int, chance: Chance) -> Inputs:
        rows = rows_of(step, batch, len(pairs), seed)[world.rank :: world.size]
        return Inputs(
            "pairs", tuple(map(str, rows)), pairs.batch(rows, chance.each(len(rows))), len(rows)
        )

    @torch.no_grad()
    def validated() -> Mapping[str, float]:
        module.eval()
        found = validate()
        module.train()
        return found

    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    parallel = Parallel(MeanLoss(ContrastiveLoss(module, stage.smoothing), trained), world)
    optim = OptimConfig(
        learning_rate=stage.learning_rate,
        warmup=stage.warmup,
        schedule="linear",
        weight_decay=stage.weight_decay,
        clip=math.inf,
        beta2=0.98,
    )
    optimizer = make_optimizer(trained, optim)
    if stage.adaptive_clip:
        decayed = [p for _, p in trained if p.ndim > 1]
        optimizer.register_step_pre_hook(
            lambda *_: adaptive_clip_grad(decayed, stage.adaptive_clip)
        )
    return Trainer(
        parallel=parallel,
        updater=Updater(parallel, optimizer, {"pairs": 1.0}, optim.clip),
        data=Drawn(make, batch, seed, world, [len(pairs)]),
        run=RunConfig(
            steps=stage.steps,
            seed=seed,
            save_every=stage.save_every,
            validate_every=stage.save_every,
        ),
        optim=optim,
        snapshots=Snapshots(out),
        validate=validated,
    )


def _heads(
    recipe: Recipe,
    stage: ContrastiveStage,
    model: LoadedModel,
    world: World,
    read: Read,
) -> tuple[HeadModule, HeadPairs, Validate]:
    vision, data = model.flamingo.vision, recipe.data
    with world.in_turn():  # what the first process encodes, the others find
        media = read(expand((*data.clips, *data.stills), recipe.root), model)
        held_out = read(expand(data.validation, recipe.root), model)
    states = text_states(model, stage.layer)
    pairs, validation = (
        _pairs(media, model, states, stage.captions, recipe.seed),
        _pairs(held_out, model, states, 1000, recipe.seed),
    )
    classes = model.labels.class_texts() if model.labels and isinstance(vision, TimmEncoder) else ()
    sizes = ContrastiveConfig(
        features=vision.width,
        states=pairs.states_KD.shape[1],
        width=stage.width,
        hidden=stage.hidden,
        dropout=stage.dropout,
        layer=stage.layer,
        classes=len(classes),
    )
    module = HeadModule(DualHead(sizes))
    head = module.head
    head.vision.fit(pairs.pooled_XF)
    head.text.fit(pairs.states_KD)
    if classes:
        head.class_states.copy_(states(classes))

    def validate() -> Mapping[str, float]:
        inputs = validation.pooled_XF, validation.logits_XC
        counts_V = torch.tensor([count for _, count in validation.places])
        videos, texts, _ = module(*inputs, counts_V, validation.states_KD)
        owners = [row for row, (_, held) in enumerate(validation.texts) for _ in range(held)]
        return missed(videos, texts, torch.tensor(owners))

    return module, pairs, validate


def _pairs(
    media: FeatureSet,
    model: LoadedModel,
    states: Callable[[tuple[str, ...]], Tensor],
    captions: int,
    seed: int,
) -> HeadPairs:
    """Everything frozen, pooled: a few captions of each sample are enough, drawn by the seed."""
    rng = random.Random(seed)
    chosen = [rng.sample(held, min(captions, len(held))) for held in media.captions]
    starts = [0, *accumulate(len(texts) for texts in chosen)]
    pooled = [part.float().mean(1) for shard in media.shards for part in shard.split(256)]
    pooled_XF = torch.cat(pooled)
    vision = model.flamingo.vision
    if isinstance(vision, TimmEncoder) and model.labels:
        logits_XC = torch.cat([vision.classify(part[:, None]) for part in pooled_XF.split(1024)])
    else:
        logits_XC = torch.zeros(len(pooled_XF), 0)
    offsets = [0, *accumulate(len(shard) for shard in media.shards)]
    return HeadPairs(
        pooled_XF,
        logits_XC.detach(),
        [(offsets[shard] + first, count) for shard, first, count in media.places],
        states(tuple(text for texts in chosen for text in texts)).clone(),
        [(first, len(texts)) for first, texts in zip(starts, chosen, strict=False)],
    )


def _encoder(
    recipe: Recipe, stage: ContrastiveStage, model: LoadedModel
) -> tuple[DualEncoder, PicturePairs, Validate]:
    look, encode, data = model.config.vision, model.prompts.encode_text, recipe.data
    module = build_encoder(stage, model.flamingo.lm.lm.config.vocab_size)
    transform = FrameTransform((stage.size, stage.size), look.mean, look.std, look.resize)
    pairs, held_out = (
        PicturePairs(expand(patterns, recipe.root), transform, encode, stage.tokens)
        for patterns in ((*data.clips, *data.stills), data.validation)
    )

    def validate() -> Mapping[str, float]:
        videos, texts = [], []
        for at in range(0, len(held_out), 16):
            rows = range(at, min(at + 16, len(held_out)))
            found = module(*held_out.batch(rows, Chance(str(at)).each(len(rows))))
            videos.append(found[0])
            texts.append(found[1])
        return missed(torch.cat(videos), torch.cat(texts), torch.arange(len(held_out)))

    return module, pairs, validate


def _save(module: nn.Module, out: Path, stage: ContrastiveStage) -> None:
    path = out / _HEADS
    if isinstance(module, HeadModule):
        save_head(path, module.head)
        return
    assert isinstance(module, DualEncoder)
    (out / "encoder").mkdir(exist_ok=True)
    weights = {n: t.contiguous() for n, t in module.vision.model.state_dict().items()}
    save_file(weights, out / "encoder" / "model.safetensors", metadata={"format": "pt"})
    rest = {n: t for n, t in module.state_dict().items() if not n.startswith("vision.")}
    save_adapter(path, rest, {"contrastive_run": asdict(stage)})
