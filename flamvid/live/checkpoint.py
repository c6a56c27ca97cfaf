"""What a live captioner knows, in a file: memory and text, from which it goes on after a crash.

One safetensors file, whose metadata holds the rest as JSON; it is replaced at once or not at all.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flamvid.errors import InputError
from flamvid.live.captioner import LiveCaptioner
from flamvid.live.moment import Moment
from flamvid.live.policies import Drop
from flamvid.live.speaker import Said
from flamvid.video.events import Mark

__all__ = ["restore", "save_state"]

_KEY, _VERSION = "flamvid live", 1


def save_state(live: LiveCaptioner, path: Path) -> None:
    """Write all that is needed to go on; OSError where that fails, and the old file stays."""
    if live.newest is None:
        return
    tensors: dict[str, Tensor] = {}
    for name, moments in (("long", live.memory.long), ("recent", live.memory.recent)):
        for at, moment in enumerate(moments):
            tensors[f"{name}.{at}.features"] = moment.features
            tensors[f"{name}.{at}.mean"] = moment.mean
    if isinstance(live.memory.tidy, Drop) and live.memory.tidy.shown_NF is not None:
        tensors["shown"] = live.memory.tidy.shown_NF
    if live.change is not None and live.change.scene_F is not None:
        tensors["scene"] = live.change.scene_F
    for at, said in enumerate(live.speaker.before):
        tensors[f"said.{at}"] = said.latents
    table = {
        "version": _VERSION,
        "of": _identity(live),
        "mark": asdict(Mark(live.newest.pts, live.newest.wall)),
        "long": [_times(m) for m in live.memory.long],
        "recent": [_times(m) for m in live.memory.recent],
        "told": live.told,
        "seen": live.seen,
        "dropped": live.dropped,
        "due": None if live.every is None else live.every.due,
        "check": None if live.check is None else live.check.due,
        "scene": None if live.change is None else [live.change.armed, live.change.began],
        "settled": live.settled if math.isfinite(live.settled) else None,
        "said": [_words(said) for said in live.speaker.before],
        "last": None if live.last is None else [*_words(live.last), live.fitted],
    }
    copies = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    _replace(path, save(copies, {_KEY: json.dumps(table)}))


def restore(live: LiveCaptioner, path: Path) -> Mark:
    """Go on where the file was written; gives the moment of the stream after which to read on.

    InputError where the file is none of ours, is damaged, or is of other settings.
    """
    try:
        with safe_open(path, framework="pt") as file:
            table: dict[str, Any] = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name).to(live.model.device) for name in file.keys()}  # noqa: SIM118
        _check_of(path, table, _identity(live))
        live.memory.long = list(_moments("long", table, tensors))
        live.memory.recent = list(_moments("recent", table, tensors))
        if isinstance(live.memory.tidy, Drop):
            live.memory.tidy.shown_NF = tensors.get("shown")
        live.told, live.seen = float(table["told"]), int(table["seen"])
        live.dropped_before = int(table["dropped"])
        if live.every is not None and table["due"] is not None:
            live.every.due = float(table["due"])
        if live.check is not None and table["check"] is not None:
            live.check.due = float(table["check"])
        if live.change is not None and table["scene"] is not None:
            live.change.scene_F = tensors.get("scene")
            live.change.armed, live.change.began = table["scene"]
        live.settled = math.inf if table["settled"] is None else float(table["settled"])
        live.speaker.before.clear()
        for at, words in enumerate(table["said"]):
            live.speaker.before.append(_said(words, tensors[f"said.{at}"]))
        if table["last"] is not None:
            *words, live.fitted = table["last"]
            live.last = _said(words, live.model.flamingo.resampler.latents.new_zeros(0))
        return Mark(float(table["mark"]["pts"]), float(table["mark"]["wall"]))
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"can't read the state {path}: {error.strerror}") from error
    except (SafetensorError, KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"{path} holds no state of a live captioner, or a damaged one; remove it to begin anew"
        ) from error


def _identity(live: LiveCaptioner) -> dict[str, Any]:
    """What has to be the same for a state to be gone on with."""
    model, memory = live.model.config, live.config.memory
    return {
        "model": model.name,
        "features": model.vision.features,
        "dtype": str(live.model.dtype).removeprefix("torch."),
        "fps": live.config.fps,
        "policy": memory.policy.value,
        "recent": memory.recent,
        "long": memory.long,
    }


def _check_of(path: Path, table: dict[str, Any], wanted: dict[str, Any]) -> None:
    if table["version"] != _VERSION:
        raise InputError(
            f"{path} is a state of version {table['version']}; this is of {_VERSION}: remove it"
        )
    for key, value in wanted.items():
        if (had := table["of"][key]) != value:
            raise InputError(
                f"{path} was written with {key} {had!r}, not {value!r}; give the same settings, "
                "or remove it to begin anew"
            )


def _times(moment: Moment) -> list[float]:
    return [moment.time, moment.start, moment.end, moment.frames]


def _moments(part: str, table: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[Moment]:
    for at, (time, start, end, frames) in enumerate(table[part]):
        features, mean = tensors[f"{part}.{at}.features"], tensors[f"{part}.{at}.mean"]
        if features.ndim != 2 or mean.shape != features.shape[1:]:
            raise ValueError("features of another shape")
        yield Moment(features, mean, time, start, end, int(frames))


def _words(said: Said) -> list[Any]:
    return [said.text, list(said.ids), said.logprob, list(said.labels)]


def _said(words: list[Any], latents: Tensor) -> Said:
    text, ids, logprob, labels = words
    return Said(text, tuple(ids), logprob, latents, tuple(labels))


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
