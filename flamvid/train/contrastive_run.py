"""A contrastive run from its recipe."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed

from flamvid import config
from flamvid.data.features import FeatureSet
from flamvid.data.shards import expand
from flamvid.errors import ConfigError
from flamvid.models.contrastive import ContrastiveConfig, DualHead
from flamvid.models.vision import TimmEncoder
from flamvid.train.contrastive import ContrastiveStage
from flamvid.train.dual import HeadModule, HeadPairs, recall, train_dual
from flamvid.train.loop import features_of
from flamvid.train.recipe import DataConfig
from flamvid.video.transform import FrameTransform
from flamvid.weights.adapter import save_adapter
from flamvid.weights.embed import save_head, text_states
from flamvid.weights.load import LoadedModel, load_model

__all__ = ["ContrastiveRecipe", "is_contrastive", "read_contrastive", "run_contrastive"]

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveRecipe:
    """A whole run. model: whose frozen parts the heads stand on, or whose tokenizer is used."""

    name: str
    folder: Path
    data: DataConfig
    contrastive: ContrastiveStage
    model: str = "flamvid-base"
    seed: int = 0


def is_contrastive(path: Path) -> bool:
    """Whether a recipe is of this kind: it has a [contrastive] table."""
    return "contrastive" in config.read_toml(path)


def read_contrastive(path: Path) -> ContrastiveRecipe:
    """Read and check a recipe; a wrong key is an error that names the near one."""
    table = config.read_toml(path)
    parts: dict[str, type[Any]] = {"data": DataConfig, "contrastive": ContrastiveStage}
    for key in parts:
        if not isinstance(table.get(key), dict):
            raise ConfigError(f"{path} has no [{key}] table; a contrastive recipe needs it")
    built = {key: config.build(cls, table.pop(key), f"{path}: {key}") for key, cls in parts.items()}
    return config.build(
        ContrastiveRecipe, {"name": path.stem, "folder": path.parent, **table, **built}, str(path)
    )


def run_contrastive(path: Path, data: Path | None, out: Path, resume: bool, log: Log) -> Path:
    """Train as the recipe says; returns the path of what a model's TOML can name.

    That is `<out>/contrastive.safetensors`, the heads; or `<out>/encoder/`, the weights of a
    trained vision encoder, with the heads and BERT beside it.
    """
    recipe = read_contrastive(path)
    root = data or recipe.folder / recipe.data.root
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        distributed.init_process_group("gloo")
    model = load_model(recipe.model, dtype="float32", trained=False)
    if recipe.contrastive.encoder:
        return _run_encoder(recipe, model, root, out, resume, log)
    return _run_heads(recipe, model, root, out, resume, log)


def _run_heads(
    recipe: ContrastiveRecipe, model: LoadedModel, root: Path, out: Path, resume: bool, log: Log
) -> Path:
    stage, vision = recipe.contrastive, model.flamingo.vision
    cache = out.parent / "features"
    media = features_of(expand((*recipe.data.clips, *recipe.data.stills), root), cache, model, log)
    held_out = features_of(expand(recipe.data.validation, root), cache, model, log)
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

    def validate() -> str:
        module.eval()
        with torch.no_grad():
            inputs = validation.pooled_XF, validation.logits_XC
            counts_V = torch.tensor([count for _, count in validation.places])
            videos, texts, _ = module(*inputs, counts_V, validation.states_KD)
        owners = [row for row, (_, held) in enumerate(validation.texts) for _ in range(held)]
        return recall(videos, texts, torch.tensor(owners))

    train_dual(
        module, pairs, stage, out, seed=recipe.seed, resume=resume, log=log, validate=validate
    )
    path = out / "contrastive.safetensors"
    save_head(path, head)
    return path


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


def _run_encoder(
    recipe: ContrastiveRecipe, model: LoadedModel, root: Path, out: Path, resume: bool, log: Log
) -> Path:
    from flamvid.train.dual_encoder import PicturePairs, build_encoder

    stage, look = recipe.contrastive, model.config.vision
    prompts = model.prompts
    module = build_encoder(stage, model.flamingo.lm.lm.config.vocab_size)
    transform = FrameTransform((stage.size, stage.size), look.mean, look.std, look.resize)
    shards = expand((*recipe.data.clips, *recipe.data.stills), root)
    pairs = PicturePairs(shards, transform, prompts.encode_text, stage.tokens)
    held_out = PicturePairs(
        expand(recipe.data.validation, root), transform, prompts.encode_text, stage.tokens
    )

    def validate() -> str:
        module.eval()
        videos, texts = [], []
        with torch.no_grad():
            for at in range(0, len(held_out), 16):
                rows = range(at, min(at + 16, len(held_out)))
                found = module(*held_out.batch(rows, random.Random(at)))
                videos.append(found[0])
                texts.append(found[1])
        return recall(torch.cat(videos), torch.cat(texts), torch.arange(len(held_out)))

    train_dual(
        module, pairs, stage, out, seed=recipe.seed, resume=resume, log=log, validate=validate
    )
    folder = out / "encoder"
    folder.mkdir(exist_ok=True)
    weights = {n: t.contiguous() for n, t in module.vision.model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    rest = {n: t for n, t in module.state_dict().items() if not n.startswith("vision.")}
    save_adapter(out / "contrastive.safetensors", rest, {"contrastive_run": asdict(stage)})
    return folder
