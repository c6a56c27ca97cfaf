"""What of a model too large for one device lies where: devices, main memory and the disk."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from flamvid.errors import ConfigError, InputError
from flamvid.models.build import ModelConfig
from flamvid.models.flamingo import Flamingo
from flamvid.models.frozen import laid_on_load
from flamvid.models.lm import decoder_layers
from flamvid.models.resampler import PerceiverResampler
from flamvid.weights.offload import OffloadFolder

__all__ = ["Layout", "Room", "layout"]

Room = Mapping[int | str, int | str]
"""Bytes, or a text such as "20GB", by the number of a GPU, or "cpu"."""

_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
_USED = 0.9  # of what is free: vision, resampler, and what is computed need the rest


def layout(config: ModelConfig, device_map: str, max_memory: Room | None, int8: bool) -> Layout:
    """How a language model is to be laid over all devices.

    device_map: accelerate's "auto", "balanced", "balanced_low_0" or "sequential".
    """
    try:
        from accelerate.utils import get_max_memory
    except ImportError as error:
        raise InputError(
            f"device_map {device_map!r} needs accelerate, which is not installed; "
            "pip install 'flamvid[large]', or give a device"
        ) from error
    if device_map not in _MAPS:
        raise InputError(f"device_map is {device_map!r}; must be one of {', '.join(_MAPS)}")
    if config.lm_state != "frozen":
        raise ConfigError(
            f"device_map lays out frozen language models, and {config.name}'s is "
            f"{config.lm_state}; give a device, or save_pretrained the model and load that"
        )
    try:
        room = get_max_memory(None if max_memory is None else dict(max_memory))
    except ValueError as error:
        raise InputError(f"max_memory is {dict(max_memory or {})}: {error}") from error
    if max_memory is None:
        room = {place: int(_USED * size) for place, size in room.items()}
    return Layout(config, device_map, room, int8)


@dataclass(slots=True)
class Layout:
    """Where each block of a language model goes as it is read.

    Text comes in and logits go out at `home`, where vision and resampler lie too. A new layer lies
    where the decoder layer beside it is computed.
    """

    config: ModelConfig
    device_map: str
    room: dict[int | str, int]
    int8: bool
    folder: OffloadFolder | None = field(default=None, init=False)

    @property
    def home(self) -> torch.device:
        """The first GPU, or the CPU where there is none."""
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")

    @contextmanager
    def laid(self) -> Iterator[None]:
        """Language models that transformers loads meanwhile are laid out so."""
        logger = logging.getLogger("accelerate")
        level = logger.level
        logger.setLevel(logging.ERROR)  # it warns of what was asked for
        try:
            with laid_on_load(self._keywords):
                yield
        except BaseException:
            if self.folder is not None:
                self.folder.delete()
            raise
        finally:
            logger.setLevel(level)

    def belongs_to(self, flamingo: Flamingo) -> None:
        """What of the model lies on the disk, is deleted with it."""
        if self.folder is not None:
            weakref.finalize(flamingo, self.folder.delete)

    def _keywords(self, lm: Any) -> dict[str, Any]:
        """Of `from_pretrained`, by a language model on the meta device."""
        places = self._places(lm)
        if "disk" not in places.values():
            return {"device_map": places}
        if self.int8:
            raise InputError(
                f"{self.config.name} does not fit in {self.room} even as int8, which can't lie on "
                "the disk; use dtype bf16"
            )
        self.folder = OffloadFolder.made()
        return {"device_map": places, "offload_folder": str(self.folder.path)}

    def _places(self, lm: Any) -> dict[str, int | str]:
        """A place for each decoder layer, and for each other module that has weights."""
        from accelerate import infer_auto_device_map
        from accelerate.utils import get_balanced_memory

        blocks = decoder_layers(lm)
        whole = sorted({*(lm._no_split_modules or ()), type(blocks[0]).__name__})
        head, embeddings = lm.get_output_embeddings(), lm.get_input_embeddings()
        how: dict[str, Any] = {"no_split_module_classes": whole}
        names = {module: name for name, module in lm.named_modules()}
        if self.int8:  # but for the new layers, which are wide until all is read
            linear = (m for m in names if isinstance(m, nn.Linear) and m is not head)
            how["special_dtypes"] = {f"{names[m]}.weight": torch.int8 for m in linear}
        beside = self._put_beside(lm, blocks)
        room = dict(self.room)
        if self.device_map != "sequential":
            low_zero = self.device_map == "balanced_low_0"
            room = get_balanced_memory(lm, room, low_zero=low_zero, **how)
        home: int | str = 0 if self.home.type == "cuda" else "cpu"
        kept = 0  # bytes at home for the new layers whose decoder layer only comes there
        while True:
            left = {**room, home: max(0, room.get(home, 0) - kept)}
            found = infer_auto_device_map(lm, max_memory=left, **how)
            places = {name: _place(name, found) for name in _blocks(lm, "", whole)}
            away = (at for at in beside if isinstance(p := places[names[at]], str) and p != home)
            wanted = sum(beside[at] for at in away)
            if wanted <= kept:
                break
            kept = wanted
        for end in (embeddings, head):
            places[names[end]] = home
        return places

    def _put_beside(self, lm: Any, blocks: nn.ModuleList) -> dict[nn.Module, int]:
        """Let each new layer be a part of its decoder layer; the bytes of those, by that."""
        like = next(lm.parameters()).dtype
        with torch.device("meta"):
            resampler = PerceiverResampler(self.config.resampler)
            whole = Flamingo(_Blind(), resampler, lm, self.config.xattn)  # type: ignore[arg-type]
        sizes: dict[nn.Module, int] = {}
        for slot, (new, at) in enumerate(zip(whole.lm.inserted, whole.lm.at, strict=True)):
            blocks[at].add_module(f"flamvid_{slot}", new.to(like))
            size = sum(p.numel() * p.element_size() for p in new.parameters())
            sizes[blocks[at]] = sizes.get(blocks[at], 0) + size
        return sizes


class _Blind(nn.Module):
    """In the place of a vision encoder, where none is needed."""


def _blocks(module: nn.Module, name: str, whole: list[str]) -> Iterator[str]:
    """Names of the largest parts that are not split, and of lone tensors beside them."""
    children = list(module.named_children())
    if type(module).__name__ in whole or not children:
        yield name
        return
    above = f"{name}." if name else ""
    for tensors in (module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
        yield from (above + part for part, _ in tensors)
    for part, child in children:
        yield from _blocks(child, above + part, whole)


def _place(block: str, found: Mapping[str, int | str]) -> int | str:
    """Where a block goes by accelerate's map, whose parts may be larger or smaller."""
    for part, place in found.items():
        if not part or f"{block}.".startswith(f"{part}.") or part.startswith(f"{block}."):
            return place
    return "cpu"  # it has no weights
