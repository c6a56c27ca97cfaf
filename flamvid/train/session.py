"""A plan made ready and carried out: model, data, trainer; checked before the first update."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from flamvid import config
from flamvid.data.collate import Batch
from flamvid.errors import ConfigError, InputError
from flamvid.models.build import read_model_config
from flamvid.models.flamingo import Flamingo
from flamvid.models.gated_xattn import GatedCrossAttention
from flamvid.models.vision import ClipEncoder, TimmEncoder
from flamvid.train.feature_cache import FeatureCache
from flamvid.train.journal import Journal
from flamvid.train.lora import add_lora
from flamvid.train.objective import Objective, checkpoint_layers
from flamvid.train.optimizer import make_optimizer
from flamvid.train.parallel import Parallel
from flamvid.train.plan import Plan
from flamvid.train.precision import precision
from flamvid.train.result import save_result
from flamvid.train.snapshot import Snapshots
from flamvid.train.stop import on_signals
from flamvid.train.trainer import Done, Report, Trainer
from flamvid.train.update import Updater
from flamvid.train.world import World, joined
from flamvid.weights.load import LoadedModel, load_config

__all__ = ["Outcome", "Part", "parts", "run", "trained_model", "try_out"]

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a model: all its parameters, and those that are trained."""

    name: str
    parameters: int
    trained: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a run ended: its result, None while it is not at its end, and its last update."""

    result: Path | None
    step: int


def run(
    plan: Plan,
    out: Path,
    resume: bool,
    log: Log = print,
    watch: Callable[[Report], None] | None = None,
) -> Outcome:
    """Train as the plan says, in as many processes as torchrun started.

    `resume` goes on from the last snapshot in `out`, or begins where there is none; without it, the
    snapshots of an earlier run are removed. SIGTERM and SIGINT end it after a snapshot.
    Raises ConfigError, before the first update, for what can't be read or written.
    """
    with joined(plan.run.device) as world:
        say = log if world.first else _nothing
        with precision(plan.run.precision, world.device):
            return _run(plan, out, resume, world, say, watch)


def _run(
    plan: Plan,
    out: Path,
    resume: bool,
    world: World,
    log: Log,
    watch: Callable[[Report], None] | None,
) -> Outcome:
    if world.first:
        _writable(out)
    world.wait()
    ready = _Ready(plan, out, world)
    snapshots = Snapshots(out, plan.run.keep)
    if world.first:
        _room(out, snapshots.size(ready.parallel) * (plan.run.keep + 2))
        snapshots.sweep() if resume else snapshots.clear()
        (out / "plan.toml").write_text(config.to_toml(plan.table()), encoding="utf-8")
    world.wait()
    first = 0
    if found := snapshots.latest():
        state, places = snapshots.restore(found, ready.parallel, ready.optimizer)
        ready.resume_data(places)
        first = int(state["step"])
        log(f"resumed from {found}")

    trainer = Trainer(
        parallel=ready.parallel,
        updater=ready.updater,
        data=ready.data,
        run=plan.run,
        optim=plan.optim,
        snapshots=snapshots,
        prepare=ready.prepare,
        validate=ready.validate if plan.validation else None,
        gates=lambda: gates(ready.model.flamingo),
        log=log,
        watch=watch,
        about={"recipe": plan.name},
    )
    journal = None
    if world.first:
        journal = Journal(out, first, plan.run.tensorboard, plan.run.wandb)
    with on_signals() as stop:
        try:
            done: Done = trainer(first, journal, stop)
        finally:
            if journal is not None:
                journal.close()
    if done.stopped:
        return Outcome(None, done.step)
    settings = {key: value for key, value in plan.table().items() if key != "validation"}
    return Outcome(save_result(out, ready.model, ready.parallel, settings, done.step), done.step)


def try_out(plan: Plan, out: Path, updates: int = 2) -> tuple[list[Part], float]:
    """Load all that a run needs and make some updates of it, of which nothing is kept.

    Returns the model's parts, and the seconds that the run would take at the last one's speed.
    """
    with joined(plan.run.device) as world, precision(plan.run.precision, world.device):
        quiet = replace(plan, run=replace(plan.run, cache=""))
        ready = _Ready(quiet, out, world)
        took = math.nan
        for _ in range(updates):
            start = time.perf_counter()
            batches = [
                ready.prepare(b) for _ in range(plan.run.accumulate) for b in next(ready.data)
            ]
            ready.updater(batches)
            took = time.perf_counter() - start
        return parts(ready.model.flamingo), took * plan.run.steps


def trained_model(plan: Plan, world: World) -> LoadedModel:
    """The model of a plan on its device, with what is frozen frozen, and what learns in float32."""
    torch.manual_seed(plan.run.seed)
    model_config = read_model_config(plan.model.name)
    if plan.model.size:
        if (
            plan.model.size != model_config.vision.size
            and model_config.vision.encoder[:5] == "clip:"
        ):
            raise ConfigError(
                f"model.size is {plan.model.size}, but a CLIP encoder sees "
                f"{model_config.vision.size} pixels only; leave it out"
            )
        model_config = replace(
            model_config, vision=replace(model_config.vision, size=plan.model.size)
        )
    dtype = "bfloat16" if world.device.type == "cuda" else "float32"
    trained = plan.model.start == "trained"
    model = load_config(model_config, str(world.device), dtype, trained)
    flamingo = model.flamingo
    if plan.model.vision == "trained":
        _thaw(flamingo.vision)
    if plan.model.lora:
        add_lora(flamingo.lm, plan.model.lora)
    for _, parameter in flamingo.trained():
        parameter.data = parameter.data.float()
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
            sizes = [(p.numel(), p.requires_grad) for p in part.parameters()]
            found.append(Part(name, sum(n for n, _ in sizes), sum(n for n, t in sizes if t)))
    return found


def gates(flamingo: Flamingo) -> list[list[float]]:
    """tanh of each inserted layer's gates, attention and then feed-forward."""
    layers = [x for x in flamingo.lm.inserted if isinstance(x, GatedCrossAttention)]
    pairs = [[g for g in (x.attn_gate, x.ffw_gate) if g is not None] for x in layers]
    return [[round(float(g.detach().tanh()), 6) for g in pair] for pair in pairs]


class _Ready:
    """All that a run needs, in memory."""

    def __init__(self, plan: Plan, out: Path, world: World) -> None:
        self.plan, self.world = plan, world
        self.data = self._mixture(plan)
        self.model = trained_model(plan, world)
        flamingo = self.model.flamingo
        objective = Objective(flamingo, self.model.prompts.media_id)
        self.parallel = Parallel(objective, world, plan.run.engine)
        self.optimizer = make_optimizer(self.parallel.trained(), plan.optim)
        weights = {corpus.name: corpus.weight for corpus in plan.corpora}
        self.updater = Updater(self.parallel, self.optimizer, weights, plan.optim.clip)
        self._cache: FeatureCache | None = None
        if plan.model.vision == "frozen":
            path = out / plan.run.cache if plan.run.cache else None
            about = f"{self.model.config.vision.features} {self.model.dtype}"
            self._cache = FeatureCache(self._encode, about, path, int(plan.run.cache_gb * 2**30))

    def prepare(self, batch: Batch) -> Batch:
        """A batch on the device, with features if vision is frozen, with pictures if it isn't."""
        if self._cache is not None:
            batch = self._cache(batch)
        elif batch.frames is not None:
            frames = batch.frames
            pictures = self.model.transform(frames.flatten(0, 2))
            batch = replace(batch, frames=pictures.unflatten(0, frames.shape[:3]))
        return _placed(batch, self.world.device)

    def _encode(self, pictures_X3HW: Tensor) -> Tensor:
        ready = self.model.transform(pictures_X3HW.to(self.world.device))
        return self.model.flamingo.encode(ready.to(self.model.dtype))


def _thaw(vision: TimmEncoder | ClipEncoder) -> None:
    """Let the encoder learn, but for its classifier, which nothing reads."""
    vision.requires_grad_(True)
    if isinstance(vision, TimmEncoder):
        head = vision.model.get_classifier()
        if isinstance(head, torch.nn.Module):
            head.requires_grad_(False)


def _placed(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    names = ("ids", "targets", "attend_next", "frame_counts", "features", "frames")
    moved = {name: getattr(batch, name) for name in names}
    return replace(batch, **{n: t.to(device) for n, t in moved.items() if t is not None})


def _writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f"probe-{os.getpid()}.part"
        probe.write_text("flamvid")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"can't write to {out}: {error.strerror}; give another folder with --out"
        ) from error


def _room(out: Path, wanted: int) -> None:
    free = shutil.disk_usage(out).free
    if free < wanted:
        raise InputError(
            f"{out} has {free / 1e9:.2f} GB free, its snapshots take up to {wanted / 1e9:.2f} GB; "
            "make room, lower run.keep, or give another folder with --out"
        )


def _nothing(text: str) -> None:
    """What processes other than the first say."""
