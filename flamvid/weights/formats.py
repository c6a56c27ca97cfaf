"""Whose layout a model's weights have, and what builds a Flamingo of each.

Every builder takes the configuration, a dtype and a device, fetches what it names, and gives the
model; the folder beside it is where the tokenizer lies. A format is imported when it is met: the
architectures that it knows would slow every start.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from flamvid.errors import ConfigError, WeightsError
from flamvid.models.build import ModelConfig, assemble
from flamvid.models.encoder import VisionEncoder
from flamvid.models.flamingo import Flamingo
from flamvid.models.llama import Llama
from flamvid.models.lm import load_causal_lm, load_plain_lm
from flamvid.models.transformers_encoder import FAMILIES
from flamvid.models.video_encoder import VideoEncoder
from flamvid.models.vision import build_vision
from flamvid.weights import hub
from flamvid.weights.tensors import open_tensors

__all__ = ["FORMATS", "build"]

Built = tuple[Flamingo, Path]


def build(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    int8: bool = False,
    own: bool = True,
) -> Built:
    """The model that a configuration names, and the folder of its tokenizer.

    own: a plain Llama may be ours; int8: and is so stored.
    """
    if config.format == "flamvid" and own:
        flamingo, folder = _flamvid(config, dtype, device, int8, own)
        return flamingo.eval(), folder
    if config.format not in FORMATS:
        raise ConfigError(f"format is {config.format!r}; must be one of {', '.join(FORMATS)}")
    make = partial(_saved, own=own) if config.format == "saved" else FORMATS[config.format]
    flamingo, folder = make(config, dtype, device)
    return flamingo.eval(), folder


def _flamvid(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    int8: bool = False,
    own: bool = False,
) -> Built:
    """Our own: frozen parts by name; the trained part is copied in by `load_trained`."""
    folder = hub.resolve(config.lm)
    load = partial(load_plain_lm, int8=int8) if own else load_causal_lm
    if config.lm_state == "scratch":
        from flamvid.models.hosts import lm_of

        lm = lm_of(config.lm_config)  # of `config.lm` only the tokenizer is used
    else:
        lm = load(folder, dtype, device)
    vision = _vision(config, dtype, device)
    flamingo = assemble(vision, lm, config.resampler, config.xattn, config.lm_state)
    if int8 and isinstance(
        lm, Llama
    ):  # what is computed is float32 already, and what is stored stays as short as it is
        return flamingo, folder
    if own:
        return flamingo.to(device=device, dtype=dtype), folder
    flamingo.resampler.to(device, dtype)  # the rest is where it belongs
    for new, place in zip(flamingo.lm.inserted, flamingo.lm.places, strict=True):
        new.to(place, dtype)
    return flamingo, folder


def _open_flamingo(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Built:
    from flamvid.models.hosts import load_host
    from flamvid.weights.open_flamingo import build_open_flamingo, layout, open_flamingo_tensors

    source, folder = hub.fetch(config.adapter), hub.resolve(config.lm)
    tensors = open_flamingo_tensors(open_tensors(source))
    vision, lm = _vision(config, dtype, device), load_host(folder, dtype, device)
    parts = layout(tensors, source, config.resampler.head_width)
    return build_open_flamingo(tensors, vision, lm, parts, source), folder


def _otter(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Built:
    from flamvid.weights.otter import load_otter

    folder = hub.resolve(config.lm)
    return load_otter(folder, dtype, device), folder


def _idefics(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Built:
    from flamvid.weights.idefics import load_idefics

    folder = hub.resolve(config.lm)
    return load_idefics(folder, dtype, device), folder


def _flamingo_pytorch(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Built:
    from flamvid.weights.flamingo_pytorch import build_flamingo_pytorch
    from flamvid.weights.foreign import unwrap

    source = hub.fetch(config.adapter)
    tensors = unwrap(open_tensors(source))
    flamingo = build_flamingo_pytorch(
        tensors, _vision(config, dtype, device), source, dtype, device
    )
    return flamingo, hub.resolve(config.lm)


def _saved(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, own: bool = True
) -> Built:
    folder = Path(config.adapter).parent
    return Flamingo.from_pretrained(folder, dtype=dtype, device=device, own=own), folder


def _vision(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> VisionEncoder:
    look = config.vision
    kind, _, name = look.encoder.partition(":")
    if kind in FAMILIES:
        return build_vision(look, str(hub.resolve(name)), dtype, device)
    vision = build_vision(look)
    if not look.weights and isinstance(vision, VideoEncoder):
        raise ConfigError(
            f"vision.weights of {look.encoder} is not set; download {vision.spec.address} and "
            "give the file's path"
        )
    load_encoder(vision, hub.get(look.weights))
    return vision.to(device=device, dtype=dtype)


def load_encoder(vision: VisionEncoder, source: Path) -> None:
    """Copy the encoder's weights out of a file, or a folder that holds one."""
    try:
        vision.load(open_tensors(source / "model.safetensors" if source.is_dir() else source))
    except (RuntimeError, WeightsError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise WeightsError(f"{source} holds no weights that fit the encoder: {reason}") from error


FORMATS: dict[str, Callable[[ModelConfig, torch.dtype, torch.device], Built]] = {
    "flamvid": _flamvid,
    "saved": _saved,
    "open_flamingo": _open_flamingo,
    "otter": _otter,
    "idefics": _idefics,
    "flamingo_pytorch": _flamingo_pytorch,
}
"""Builders by the name that a model's TOML gives as its format."""
