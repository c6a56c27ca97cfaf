"""One row of the table: trained, scored, and measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ablations.corpora import Places, held_out, training
from ablations.rows import Row
from ablations.scale import Scale
from flamvid.data.collate import Batch, collate, make_row
from flamvid.data.corpus import CorpusConfig
from flamvid.data.samples import Document
from flamvid.generate.config import GenerationConfig
from flamvid.generate.engine import generate
from flamvid.models.build import ModelConfig
from flamvid.ops import media_index
from flamvid.train.chunks import chunks
from flamvid.train.objective import Objective
from flamvid.train.optimizer import OptimConfig, make_optimizer, rate, set_rates
from flamvid.train.parallel import Parallel
from flamvid.train.precision import precision
from flamvid.train.update import Updater
from flamvid.train.world import World
from flamvid.weights.load import LoadedModel, load_config

__all__ = ["Outcome", "run_row"]

Score = Callable[[dict[str, list[str]], dict[str, str]], float]
"""References and what was said, by id, to a number."""

_TOGETHER = 32  # media that are scored together


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a row. step_seconds: of the process's own time, the median update's.

    loss: mean negative log-likelihood per token of the held-out videos' first captions. left_out:
    batches whose loss was no finite number.
    """

    parameters: int
    trained: int
    step_seconds: float
    train_loss: float
    loss: float
    cider: float | None
    distinct: int
    left_out: int


def run_row(
    row: Row,
    seed: int,
    base: ModelConfig,
    places: Places,
    scale: Scale,
    score: Score | None,
    log: Callable[[str], None],
) -> Outcome:
    """Train the row's model on its corpora with the scale's budget, and score it."""
    torch.manual_seed(seed)
    model = load_config(row.change(base), "cpu", "float32", trained=False)
    corpora = [training(name, places, scale, model, seed) for name in row.corpora]
    videos = held_out(places, scale, model)
    objective = Objective(model.flamingo, model.prompts.media_id)
    parallel = Parallel(objective, World())
    optim = OptimConfig(
        learning_rate=scale.learning_rate,
        gate_learning_rate=scale.gate_learning_rate,
        lm_share=row.lm_share,
        beta2=0.98,
    )
    optimizer = make_optimizer(parallel.trained(), optim)
    updater = Updater(
        parallel, optimizer, {c.config.name: 1.0 for c in corpora}, optim.clip, chunks
    )

    model.flamingo.train()
    streams = [corpus.batches(model.prompts, seed) for corpus in corpora]
    took: list[float] = []
    losses: list[float] = []
    left_out = 0
    with precision("auto"):
        for step in range(scale.updates):
            batches = [next(stream) for stream in streams]
            set_rates(optimizer, rate(step, scale.updates, scale.warmup, "cosine"))
            start = time.process_time()
            updates = [[b] for b in batches] if row.mixing == "round-robin" else [batches]
            done = [updater(update) for update in updates]
            took.append(time.process_time() - start)
            left_out += sum(len(x.skipped) for x in done)
            losses += [loss for x in done for loss in x.losses.values()]
            if (step + 1) % 10 == 0:
                recent = losses[-10 * len(batches) :]
                mean = sum(recent) / max(len(recent), 1)
                log(f"update {step + 1}/{scale.updates} loss {mean:.3f} {took[-1]:.2f} s")
        model.flamingo.eval()
        loss = _loss(objective, videos, model, scale)
        said = dict(_captions(videos, model, scale))
    truth = {video.id: list(video.texts) for video in videos}
    last = losses[-10 * len(corpora) :]
    return Outcome(
        parameters=sum(p.numel() for p in model.flamingo.parameters()),
        trained=sum(p.numel() for _, p in model.flamingo.trained()),
        step_seconds=round(statistics.median(took), 3),
        train_loss=round(sum(last) / max(len(last), 1), 4),
        loss=round(loss, 4),
        cider=None if score is None else round(score(truth, said), 2),
        distinct=len(set(said.values())),
        left_out=left_out,
    )


@torch.no_grad()
def _loss(
    objective: Objective, videos: Sequence[Document], model: LoadedModel, scale: Scale
) -> float:
    total, tokens = 0.0, 0
    for batch in _batches(videos, model, scale):
        total += objective(batch).item()
        tokens += int((batch.targets >= 0).sum())
    return total / tokens


def _captions(
    videos: Sequence[Document], model: LoadedModel, scale: Scale
) -> Iterator[tuple[str, str]]:
    """What the model says of each video, by its id; greedily."""
    flamingo, prompts = model.flamingo, model.prompts
    search = GenerationConfig(beams=1, max_tokens=scale.words)
    for batch in _batches(videos, model, scale):
        assert batch.features is not None
        with torch.no_grad():
            latents = flamingo.resample(batch.features, batch.frame_counts)
        ids = torch.tensor([prompts.caption()] * len(batch.keys))
        index = media_index(ids, prompts.media_id)
        texts = generate(flamingo, latents, ids, index, prompts.end_id, search)
        for key, text in zip(batch.keys, texts, strict=True):
            yield key, prompts.decode(text.ids)


def _batches(videos: Sequence[Document], model: LoadedModel, scale: Scale) -> Iterator[Batch]:
    config = CorpusConfig(name="held out", kind="videos", sources=("-",), max_tokens=scale.tokens)
    for first in range(0, len(videos), _TOGETHER):
        some = videos[first : first + _TOGETHER]
        rows = [make_row(video, config, model.prompts, None) for video in some]
        yield collate(config.name, rows, model.prompts)
