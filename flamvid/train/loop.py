"""A training run from a recipe: features, words, captions; resumable at any moment."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from flamvid.data.consensus import consensus
from flamvid.data.features import (
    FeatureSet,
    Thin,
    cache_name,
    compute_features,
    load_features,
)
from flamvid.data.shards import expand
from flamvid.models.lm import TokenHead
from flamvid.models.vision import TimmEncoder
from flamvid.train.checkpoint import clear, latest, restore, restore_resampler, save
from flamvid.train.labels import LabelNoise, label_media
from flamvid.train.optimizer import make_optimizer, rate, set_rates
from flamvid.train.precision import precision
from flamvid.train.recipe import Recipe, read_recipe
from flamvid.train.step import caption_loss, caption_rows, vocabulary
from flamvid.train.words import WordModel, frequent_words, word_targets
from flamvid.weights.adapter import save_adapter
from flamvid.weights.load import LoadedModel, load_model

__all__ = ["features_of", "run"]

Log = Callable[[str], None]


def run(recipe_path: Path, data: Path | None, out: Path, resume: bool, log: Log) -> Path:
    """Train as the recipe says; returns the path of the adapter, `<out>/adapter.safetensors`.

    The recipe's shards are looked for under `data`, or under its own `data.root`. Checkpoints lie
    in `out`, frozen features beside it, where other runs find them; `resume` goes on from the
    latest checkpoint, or starts when there is none.
    """
    recipe = read_recipe(recipe_path)
    root = data or recipe.path(recipe.data.root)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    model = load_model(recipe.model, dtype="float32", trained=False)

    def features(patterns: tuple[str, ...]) -> FeatureSet:
        found = features_of(expand(patterns, root), out.parent / "features", model, log)
        return found.plain() if recipe.data.plain else found

    clips, validation = features(recipe.data.clips), features(recipe.data.validation)
    stills = features(recipe.data.stills) if recipe.data.stills else None
    log(f"{len(clips)} clips, {len(stills) if stills else 0} stills, {len(validation)} validation")

    if not resume:
        clear(out)
    with precision(recipe.precision):
        words = out / "words.pt"
        if resume and words.exists():
            restore_resampler(words, model.flamingo)
        else:
            _train_words(recipe, model, clips, stills, validation, log)
            save(words, model.flamingo.resampler.state_dict())
        return _train_captions(recipe, model, clips, stills, validation, out, resume, log)


def features_of(shards: list[Path], cache: Path, model: LoadedModel, log: Log) -> FeatureSet:
    """Features of all shards, from the cache where they lie there."""
    cache.mkdir(parents=True, exist_ok=True)
    encoder = model.config.vision.features

    def encode(pictures: list[Tensor]) -> Tensor:
        ready = torch.cat([model.transform(picture[None]) for picture in pictures])
        return model.flamingo.encode(ready)

    sets = []
    for shard in shards:
        path = cache / cache_name(shard, encoder)
        if not path.exists():
            log(f"features of {shard} -> {path}")
            compute_features(shard, path, encode, model.flamingo.vision.clip is not None)
        sets.append(load_features(path))
    return sum(sets[1:], start=sets[0])


class _Draw:
    """Draws media without replacement, epoch after epoch, clips and stills by their share."""

    def __init__(self, clips: int, stills: int, share: float, rng: random.Random) -> None:
        self.sizes = {"clips": clips, "stills": stills}
        self.share = share if stills else 0.0
        self.rng = rng
        self.left: dict[str, list[int]] = {"clips": [], "stills": []}

    def __call__(self, batch: int) -> list[int]:
        """Rows of one batch; stills are numbered after the clips."""
        stills = round(batch * self.share)
        clips = [self._next("clips") for _ in range(batch - stills)]
        return clips + [self.sizes["clips"] + self._next("stills") for _ in range(stills)]

    def _next(self, kind: str) -> int:
        if not self.left[kind]:
            self.left[kind] = list(range(self.sizes[kind]))
            self.rng.shuffle(self.left[kind])
        return self.left[kind].pop()


def _train_words(
    recipe: Recipe,
    model: LoadedModel,
    clips: FeatureSet,
    stills: FeatureSet | None,
    validation: FeatureSet,
    log: Log,
) -> None:
    stage = recipe.words
    if stage.steps == 0:
        return
    media = clips + stills if stills else clips
    words = frequent_words(media.captions, stage.words)
    targets, held_out = (word_targets(x.captions, words) for x in (media, validation))
    net = WordModel(model.flamingo.resampler, len(words)).train()
    net.resampler.dropout.p = stage.feature_dropout
    optimizer = torch.optim.AdamW(net.parameters(), lr=stage.learning_rate, weight_decay=0.01)
    draw = _Draw(
        len(clips), len(media) - len(clips), recipe.data.stills_share, random.Random(recipe.seed)
    )
    began = time.monotonic()
    for step in range(stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * rate(step, stage.steps, 50, "cosine")
        rows = draw(stage.batch)
        loss = net(*media.batch(rows), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == stage.steps:
            net.eval()
            with torch.no_grad():
                value = net(*validation.batch(range(len(validation))), held_out)
            net.train()
            speed = (step + 1) * stage.batch / (time.monotonic() - began)
            log(
                f"words {step + 1}/{stage.steps} loss {loss.item():.3f} "
                f"validation {value.item():.3f} {speed:.0f} media/s"
            )
    net.resampler.dropout.p = 0.0


def _train_captions(
    recipe: Recipe,
    model: LoadedModel,
    clips: FeatureSet,
    stills: FeatureSet | None,
    validation: FeatureSet,
    out: Path,
    resume: bool,
    log: Log,
) -> Path:
    stage, flamingo, prompts = recipe.captions, model.flamingo, model.prompts
    media = clips + stills if stills else clips
    words = model.labels.words if model.labels else ()
    vocab = vocabulary(prompts, [*media.captions, words])
    labels, held_out = (_labels(model, x) for x in (media, validation))
    noise = LabelNoise(drop=stage.label_drop, drop_all=stage.label_drop_all, swap=stage.label_swap)
    head = flamingo.lm.head_of(vocab)
    weights = [[max(w, 1e-3) ** stage.consensus for w in g] for g in consensus(media.captions)]

    optimizer = make_optimizer(flamingo.trained(), stage.optim)
    parameters = [p for _, p in flamingo.trained()]
    first = 0
    if resume and (found := latest(out)):
        first = restore(found, flamingo, optimizer)
        log(f"resumed from {found} at update {first}")
    flamingo.resampler.dropout.p = stage.feature_dropout
    flamingo.train()
    draw = _Draw(
        len(clips), len(media) - len(clips), recipe.data.stills_share, random.Random(recipe.seed)
    )
    pick = random.Random(recipe.seed + 1)
    began, seen = time.monotonic(), 0
    for step in range(stage.steps):
        rows = draw(stage.batch)
        texts = [
            caption
            for row in rows
            for caption in pick.choices(media.captions[row], weights[row], k=stage.captions)
        ]
        if step < first:  # draw what was drawn, so that a resumed run sees the same samples
            continue
        torch.manual_seed(recipe.seed + step)  # the same dropout, too
        share = rate(step, stage.steps, stage.warmup, stage.schedule)
        set_rates(optimizer, share)
        # Of a generator of its own, so that a resumed run leaves out the same.
        rng = random.Random(f"{recipe.seed} {step}")
        named = [labels[row] for row in rows for _ in range(stage.captions)]
        if words:
            pairs = [noise(n, t, words, rng) for n, t in zip(named, texts, strict=True)]
            named, texts = [n for n, _ in pairs], [t for _, t in pairs]
        text = caption_rows(prompts, texts, head, stage.max_tokens, named)
        thin = Thin(stage.patch_dropout, rng) if stage.patch_dropout else None
        features, counts = media.batch(rows, thin)
        loss = caption_loss(flamingo, features, counts, text, head, prompts.media_id)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, stage.clip)
        optimizer.step()
        if not flamingo.lm.frozen:
            head = flamingo.lm.head_of(vocab)
        seen += len(texts)

        if (step + 1) % 10 == 0:
            speed = seen / (time.monotonic() - began)
            log(
                f"captions {step + 1}/{stage.steps} loss {loss.item():.3f} norm {norm:.2f} "
                f"rate {share:.3f} {speed:.1f} captions/s"
            )
        last = step + 1 == stage.steps
        if (step + 1) % stage.validate_every == 0 or last:
            value = _validate(recipe, model, validation, held_out, head)
            log(f"validation {step + 1}/{stage.steps} loss {value:.4f}")
        if (step + 1) % stage.save_every == 0 or last:
            state = {
                "step": step + 1,
                "trained": {name: p.detach() for name, p in flamingo.trained()},
                "optimizer": optimizer.state_dict(),
            }
            save(out / f"step-{step + 1:06d}.pt", state, keep=2)
            _write_adapter(out / "adapter.safetensors", recipe, model, vocab, step + 1)
    if first >= stage.steps:  # it may have been stopped between the checkpoint and the adapter
        _write_adapter(out / "adapter.safetensors", recipe, model, vocab, first)
    flamingo.resampler.dropout.p = 0.0
    flamingo.eval()
    return out / "adapter.safetensors"


def _labels(model: LoadedModel, media: FeatureSet) -> list[tuple[str, ...]]:
    """What the prompt of each sample says; nothing where the model's prompts don't."""
    vision = model.flamingo.vision
    if model.labels is None or not isinstance(vision, TimmEncoder):
        return [()] * len(media)
    return label_media(media, vision, model.labels)


@torch.no_grad()
def _validate(
    recipe: Recipe,
    model: LoadedModel,
    validation: FeatureSet,
    labels: list[tuple[str, ...]],
    head: TokenHead,
) -> float:
    """Mean loss over the first two captions of every validation clip."""
    model.flamingo.eval()
    losses = []
    for start in range(0, len(validation), 32):
        rows = range(start, min(start + 32, len(validation)))
        # A sample with one caption counts as often as those with more.
        texts = [c for r in rows for c in (validation.captions[r] * 2)[:2]]
        named = [labels[r] for r in rows for _ in range(2)]
        text = caption_rows(model.prompts, texts, head, recipe.captions.max_tokens, named)
        features, counts = validation.batch(rows)
        loss = caption_loss(model.flamingo, features, counts, text, head, model.prompts.media_id)
        losses.append(loss.item() * len(rows))
    model.flamingo.train()
    return sum(losses) / len(validation)


def _write_adapter(
    path: Path, recipe: Recipe, model: LoadedModel, vocab: Tensor, step: int
) -> None:
    tensors = {name: p.detach().half() for name, p in model.flamingo.trained()}
    tensors["vocabulary"] = vocab.to(torch.int32)
    settings = asdict(recipe) | {"folder": str(recipe.folder)}
    save_adapter(path, tensors, {"model": asdict(model.config), "recipe": settings, "step": step})
