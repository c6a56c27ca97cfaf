"""A run on frozen features: first the resampler learns words, then all learns captions.

Legend: B media, R captions, S tokens, V trained vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from flamvid.data.consensus import consensus
from flamvid.data.features import FeatureSet, Thin
from flamvid.data.shards import expand
from flamvid.models.vision import TimmEncoder
from flamvid.train.attempt import Read
from flamvid.train.draw import Chance, Drawn, Inputs, MeanLoss, rows_of
from flamvid.train.labels import LabelNoise, label_media
from flamvid.train.optimizer import OptimConfig, make_optimizer
from flamvid.train.parallel import Parallel
from flamvid.train.plan import RunConfig
from flamvid.train.ready import Part, gates, parts
from flamvid.train.recipe import Recipe
from flamvid.train.result import save_result
from flamvid.train.snapshot import Snapshots
from flamvid.train.step import Beginnings, TextBatch, caption_loss, caption_rows, vocabulary
from flamvid.train.trainer import Trainer
from flamvid.train.update import Updater
from flamvid.train.words import WordModel, frequent_words, word_targets
from flamvid.train.world import World
from flamvid.weights.load import LoadedModel, load_model

__all__ = ["CaptionRun"]

_HELD_OUT = 32  # clips that are validated together
_KEPT = 512 << 20  # bytes of states of texts


@dataclass(frozen=True, slots=True)
class _Media:
    """Frozen features: of clips and after them of stills, and of held-out clips.

    vocabulary: the tokens of all captions and labels, int64 [V].
    """

    all: FeatureSet
    clips: int
    held_out: FeatureSet
    vocabulary: Tensor

    @property
    def samples(self) -> tuple[int, int]:
        """How many clips and stills there are."""
        return self.clips, len(self.all) - self.clips


class CaptionRun:
    """Both stages, each with snapshots of its own; those of words lie in `<out>/words`.

    read: frozen features of shards.
    """

    def __init__(
        self, recipe: Recipe, out: Path, world: World, read: Read, log: Callable[[str], None]
    ) -> None:
        self.recipe, self.out, self.world = recipe, out, world
        torch.manual_seed(recipe.seed)
        self.model = load_model(recipe.model, dtype="float32", trained=False)
        self.media = _read(recipe, self.model, world, read)
        clips, held_out = self.media.clips, self.media.held_out
        stills = len(self.media.all) - clips
        log(f"{clips} clips, {stills} stills, {len(held_out)} validation")

    def stages(self) -> Iterator[Trainer]:
        """What trains each, to be carried out in turn."""
        recipe, about = self.recipe, (self.model, self.media, self.out, self.world)
        for stage in (_words, _captions) if recipe.words.steps else (_captions,):
            trainer = stage(recipe, *about)
            yield trainer
            self.model.flamingo.resampler.dropout.p = 0.0
        self.parallel = trainer.parallel

    def parts(self) -> list[Part]:
        """The model's."""
        return parts(self.model.flamingo)

    def save(self, step: int) -> Path:
        """Write what all stages gave; what `flamvid caption --model` takes."""
        table, vocabulary = self.recipe.table(), self.media.vocabulary
        return save_result(self.out, self.model, self.parallel, table, step, vocabulary)


def _read(recipe: Recipe, model: LoadedModel, world: World, read: Read) -> _Media:
    def features(*patterns: str) -> FeatureSet:
        found = read(expand(patterns, recipe.root), model)
        return found.plain() if recipe.data.plain else found

    data = recipe.data
    with world.in_turn():  # what the first process encodes, the others find
        clips, held_out = features(*data.clips), features(*data.validation)
        stills = features(*data.stills) if data.stills else None
    whole = clips + stills if stills else clips
    words = model.labels.words if model.labels else ()
    return _Media(whole, len(clips), held_out, vocabulary(model.prompts, [*whole.captions, words]))


def _rows(recipe: Recipe, media: _Media, step: int, batch: int, world: World) -> list[int]:
    """This process's rows of a batch, clips and stills by their share."""
    stills = len(media.all) - media.clips
    some = round(batch * recipe.data.stills_share) if stills else 0
    rows = rows_of(step, batch - some, media.clips, f"{recipe.seed} clips")
    rows += [media.clips + x for x in rows_of(step, some, stills, f"{recipe.seed} stills")]
    return rows[world.rank :: world.size]


def _words(recipe: Recipe, model: LoadedModel, media: _Media, out: Path, world: World) -> Trainer:
    stage = recipe.words
    words = frequent_words(media.all.captions, stage.words)
    targets, held_out = (word_targets(x.captions, words) for x in (media.all, media.held_out))
    net = WordModel(model.flamingo.resampler, len(words)).train()
    net.resampler.dropout.p = stage.feature_dropout

    def make(step: int, _: Chance) -> Inputs:
        rows = _rows(recipe, media, step, stage.batch, world)
        tensors = (*media.all.batch(rows), targets[rows])
        return Inputs("words", tuple(media.all.ids[row] for row in rows), tensors, len(rows))

    @torch.no_grad()
    def validate() -> dict[str, float]:
        net.eval()
        loss = net(*media.held_out.batch(range(len(media.held_out))), held_out)
        net.train()
        return {"words": float(loss)}

    parallel = Parallel(MeanLoss(net, net.named_parameters()), world)
    optim = OptimConfig(
        learning_rate=stage.learning_rate, warmup=50, schedule="cosine", weight_decay=0.01
    )
    groups = [{"params": list(net.parameters()), "peak": stage.learning_rate}]
    optimizer = torch.optim.AdamW(groups, weight_decay=optim.weight_decay)
    return Trainer(
        parallel=parallel,
        updater=Updater(parallel, optimizer, {"words": 1.0}, optim.clip),
        data=Drawn(make, stage.batch, recipe.seed, world, media.samples),
        run=RunConfig(
            steps=stage.steps, seed=recipe.seed, save_every=100, log_every=100, validate_every=100
        ),
        optim=optim,
        snapshots=Snapshots(out / "words"),
        validate=validate,
    )


class _Captions(nn.Module):
    """A Flamingo whose softmax is over the tokens of its captions."""

    def __init__(self, recipe: Recipe, model: LoadedModel, media: _Media) -> None:
        super().__init__()
        self.flamingo, self.prompts = model.flamingo, model.prompts
        self.max_tokens = recipe.captions.max_tokens
        self.vocabulary = media.vocabulary
        lm = self.flamingo.lm
        self.head = lm.head_of(self.vocabulary)
        self.beginnings: Beginnings | None = None
        few = lm.unmoved and not model.labels
        if few and _come_again(recipe, media, lm.lm.config.hidden_size):
            self.beginnings = Beginnings(lm)

    def texts(self, texts: Sequence[str], labels: Sequence[Sequence[str]]) -> TextBatch:
        """Captions as tokens, with the labels in front of them."""
        return caption_rows(self.prompts, texts, self.head, self.max_tokens, labels)

    def forward(
        self, features_BTNF: Tensor, counts_B: Tensor, ids_RS: Tensor, targets_RS: Tensor
    ) -> Tensor:
        """Mean loss per scored token."""
        lm = self.flamingo.lm
        head = self.head if lm.frozen else lm.head_of(self.vocabulary)
        text = TextBatch(ids_RS, targets_RS)
        media_id, known = self.prompts.media_id, self.beginnings
        return caption_loss(self.flamingo, features_BTNF, counts_B, text, head, media_id, known)


def _come_again(recipe: Recipe, media: _Media, width: int) -> bool:
    """Whether captions are so few that each is seen often, and states of all can be kept."""
    stage = recipe.captions
    texts = len({text for group in media.all.captions for text in group})
    often = 4 * texts <= stage.steps * stage.batch * stage.captions
    return often and texts * stage.max_tokens * width * 4 <= _KEPT


def _captions(
    recipe: Recipe, model: LoadedModel, media: _Media, out: Path, world: World
) -> Trainer:
    stage, flamingo = recipe.captions, model.flamingo
    net = _Captions(recipe, model, media)
    named = model.labels.words if model.labels else ()
    labels, held_out = (_labels(model, x) for x in (media.all, media.held_out))
    noise = LabelNoise(drop=stage.label_drop, drop_all=stage.label_drop_all, swap=stage.label_swap)
    captions = media.all.captions
    weights = [[max(w, 1e-3) ** stage.consensus for w in group] for group in consensus(captions)]

    def make(step: int, chance: Chance) -> Inputs:
        rows = _rows(recipe, media, step, stage.batch, world)
        rngs = chance.each(len(rows))
        said = [
            noise(labels[row], caption, named, rng) if named else (labels[row], caption)
            for row, rng in zip(rows, rngs, strict=True)
            for caption in rng.choices(captions[row], weights[row], k=stage.captions)
        ]
        text = net.texts([caption for _, caption in said], [some for some, _ in said])
        thin = Thin(stage.patch_dropout, chance.shared(), rngs) if stage.patch_dropout else None
        tensors = (*media.all.batch(rows, thin), text.ids, text.targets)
        keys = tuple(media.all.ids[row] for row in rows for _ in range(stage.captions))
        return Inputs("captions", keys, tensors, int((text.targets >= 0).sum()))

    @torch.no_grad()
    def validate() -> dict[str, float]:
        """Of the first two captions of every clip."""
        flamingo.eval()
        clips, total = media.held_out, 0.0
        for start in range(0, len(clips), _HELD_OUT):
            rows = range(start, min(start + _HELD_OUT, len(clips)))
            # A sample with one caption counts as often as those with more.
            texts = [caption for row in rows for caption in (clips.captions[row] * 2)[:2]]
            text = net.texts(texts, [held_out[row] for row in rows for _ in range(2)])
            total += net(*clips.batch(rows), text.ids, text.targets).item() * len(rows)
        flamingo.train()
        return {"captions": total / len(clips)}

    parallel = Parallel(MeanLoss(net, flamingo.trained()), world)
    optimizer = make_optimizer(parallel.trained(), stage.optim)
    flamingo.resampler.dropout.p = stage.feature_dropout
    flamingo.train()
    return Trainer(
        parallel=parallel,
        updater=Updater(parallel, optimizer, {"captions": 1.0}, stage.clip),
        data=Drawn(make, stage.batch, recipe.seed, world, media.samples),
        run=RunConfig(
            steps=stage.steps,
            seed=recipe.seed,
            save_every=stage.save_every,
            validate_every=stage.validate_every,
        ),
        optim=stage.optim,
        snapshots=Snapshots(out),
        validate=validate,
        gates=lambda: gates(flamingo),
    )


def _labels(model: LoadedModel, media: FeatureSet) -> list[tuple[str, ...]]:
    """What the prompt of each sample says; nothing where the model's prompts don't."""
    vision = model.flamingo.vision
    if model.labels is None or not isinstance(vision, TimmEncoder):
        return [()] * len(media)
    return label_media(media, vision, model.labels)
