"""Frozen parts that transformers implements, from a local folder or from tensors in hand.

Nothing is downloaded and nothing executed: safetensors, or *.bin by `weights_only`; no remote code.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from flamvid.errors import FlamvidError, WeightsError
from flamvid.models.pointers import refuse_pointers

__all__ = [
    "asked_for_int8",
    "blaming",
    "frozen_from",
    "frozen_of",
    "int8_on_load",
    "laid_on_load",
]

CPU = torch.device("cpu")

_Make = Callable[[nn.Linear], nn.Module | None]
_int8: ContextVar[_Make | None] = ContextVar("flamvid_int8_on_load", default=None)
_Plan = Callable[[Any], Mapping[str, Any]]
_plan: ContextVar[_Plan | None] = ContextVar("flamvid_laid_on_load", default=None)


@contextmanager
def int8_on_load(make: _Make) -> Iterator[None]:
    """Language models that are loaded meanwhile get another layer for each linear one, or None.

    make: is asked for each as its weight is read, so that they are never all in memory as wide as
    they are computed with.
    """
    token = _int8.set(make)
    try:
        yield
    finally:
        _int8.reset(token)


def asked_for_int8() -> _Make | None:
    """What `int8_on_load` was given, if it is at work."""
    return _int8.get()


@contextmanager
def laid_on_load(plan: _Plan) -> Iterator[None]:
    """Language models that are loaded meanwhile are laid over places, each tensor as it is read.

    plan: from one on the meta device to keywords of `from_pretrained`, a device_map among them.
    """
    token = _plan.set(plan)
    try:
        yield
    finally:
        _plan.reset(token)


def _laid(dtype: torch.dtype, make: Callable[[], Any]) -> dict[str, Any]:
    """What `laid_on_load` says of the model that would be made; nothing of a vision tower."""
    plan = _plan.get()
    if plan is None:
        return {}
    with torch.device("meta"):
        model = make().to(dtype)
    return {} if model.get_output_embeddings() is None else dict(plan(model))


def _as_read() -> dict[str, Any]:
    """What makes transformers ask; nothing in versions that can't, where all is read first."""
    make = _int8.get()
    if make is None:
        return {}
    try:
        from flamvid.models.int8_loading import Int8OnLoad
    except ImportError:
        return {}
    return {"quantization_config": Int8OnLoad(make)}


def frozen_from(
    kind: Any,
    folder: Path,
    dtype: torch.dtype,
    what: str,
    device: torch.device = CPU,
    **settings: Any,
) -> Any:
    """The model of class `kind` in a local folder, each tensor copied once to dtype and device.

    what: says in errors what the folder should hold. settings: what its configuration is changed
    to. What lacks a tensor is a WeightsError.
    """
    if not folder.is_dir():
        raise WeightsError(f"{folder} is no folder; it should hold a {what}")
    refuse_pointers(*folder.glob("*.safetensors"), *folder.glob("*.bin"))
    safe = any(folder.glob("*.safetensors"))
    with blaming(f"{folder} is no {what}"), _quietly():
        places = _laid(dtype, partial(_auto, kind, folder)) if _is_auto(kind) else {}
        model, report = kind.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=safe or not any(folder.glob("*.bin")),
            weights_only=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # which it would name in a report of many lines
            **(places or _straight_to(device)),
            **_as_read(),
            **settings,
        )
    _refuse_shapes(report, folder)
    if missing := sorted(report["missing_keys"]):
        raise WeightsError(
            f"{folder} lacks {_listed(missing)} of its {what}; copy or fetch it again"
        )
    return _ready(model, device, places)


def frozen_of(
    kind: Any,
    config: Any,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    source: Path,
    device: torch.device = CPU,
) -> Any:
    """A model of class `kind` from its tensors, each copied once to dtype and device.

    Missing, unexpected or misshapen ones are a WeightsError that names `source`.
    """
    with blaming(f"{source} does not fit its {kind.__name__}"), _quietly():
        places = _laid(dtype, lambda: kind(deepcopy(config)))
        model, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # which it would name in a report of many lines
            **(places or _straight_to(device)),
            **_as_read(),
        )
    _refuse_shapes(report, source)
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if missing or unexpected:
        raise WeightsError(
            f"{source} does not fit its {kind.__name__}: missing {_listed(missing)}, unexpected "
            f"{_listed(unexpected)}; copy or fetch it again"
        )
    return _ready(model, device, places)


def _is_auto(kind: Any) -> bool:
    """Whether it is the class of all causal language models; a vision tower's is its own."""
    return hasattr(kind, "from_config")


def _auto(kind: Any, folder: Path) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return kind.from_config(config)


def _ready(model: Any, device: torch.device, places: Mapping[str, Any]) -> Any:
    if places:
        model.hf_device_map = places["device_map"]  # transformers says so of several places only
    else:
        model = model.to(device)
    return model.requires_grad_(False).eval()


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Whatever transformers raises over what a file says is a WeightsError that begins so."""
    try:
        yield
    except FlamvidError:
        raise
    except Exception as error:
        raise WeightsError(f"{what}: {_line(error)}") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' own report of what is missing: ours is one line."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _straight_to(device: torch.device) -> dict[str, Any]:
    """What makes transformers skip the CPU; it needs accelerate for that."""
    if device.type == "cpu" or find_spec("accelerate") is None:
        return {}
    return {"device_map": {"": device}}


def _refuse_shapes(report: Mapping[str, Any], source: Path) -> None:
    """WeightsError for tensors of other shapes than the configuration says."""
    if others := sorted(report["mismatched_keys"]):
        name, found, wanted = others[0]
        more = f" ({len(others)} tensors are other than it says)" if len(others) > 1 else ""
        raise WeightsError(
            f"{source}: {name} has shape {tuple(found)}, but its configuration says "
            f"{tuple(wanted)}{more}"
        )


def _line(error: Exception) -> str:
    if isinstance(error, UnpicklingError):
        return "it holds more than tensors, and nothing of it was executed"
    if isinstance(error, KeyError):
        return f"nothing is called {error}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].endswith(":"):  # "Validation error for field 'hidden_size':"
        return " ".join(lines[:2])
    return lines[0] if lines else type(error).__name__


def _listed(names: Collection[str]) -> str:
    return f"[{', '.join(list(names)[:6])}{' ...' if len(names) > 6 else ''}] ({len(names)})"
