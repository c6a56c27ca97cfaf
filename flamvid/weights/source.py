"""Which model a name means: a preset, a TOML, a folder, a file or a hub repository of anyone's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from flamvid.errors import InputError
from flamvid.models.build import ModelConfig, preset_names, read_model_config
from flamvid.models.pretrained import TOML
from flamvid.models.transformers_encoder import read_config
from flamvid.weights import hub
from flamvid.weights.foreign import unwrap
from flamvid.weights.tensors import open_tensors

__all__ = ["source_config"]

# What config.json calls a model, and the preset whose prompts and pictures it has.
_LIKE = {"idefics": "idefics-9b", "otter": "otter-image", "flamingo": "otter-image"}
# Where an OpenFlamingo checkpoint has its layers, by the kind of its language model.
_LAYERS = {
    "mosaic_gpt": "transformer.blocks.",
    "mpt": "transformer.blocks.",
    "gpt_neox": "gpt_neox.layers.",
    "llama": "model.layers.",
}
_FILES = (".toml", ".safetensors", ".pt", ".pth", ".bin")


def source_config(
    source: str, *, like: str | None = None, lm: str | None = None, clip: str | None = None
) -> ModelConfig:
    """The configuration of a model by name, or of a checkpoint as its author left it.

    source: a preset, a TOML, a saved folder; a checkpoint's file or folder; or a hub repository of
    either. A checkpoint's prompts and pictures are those of the preset `like`, which is guessed
    from its names and shapes if None. lm, clip: folders in place of what that names; what is called
    so beside a checkpoint is meant.
    """
    path = Path(source).expanduser()
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not path.exists() and path.suffix not in _FILES:
        if known := _released().get(source.lower()):
            return _with(read_model_config(like or known), lm, clip)
        path = hub.resolve(source)
    named = not source or source in preset_names() or not path.exists()
    if named or path.suffix == ".toml" or (path / TOML).is_file():
        return _with(read_model_config(source if named else str(path)), lm, clip)
    folder = path if path.is_dir() else path.parent
    lm, clip = lm or _beside(folder, "lm"), clip or _beside(folder, "clip")
    config = read_model_config(like or _guess(path, folder, lm is not None))
    config = replace(config, name=path.name if path.is_dir() else path.stem, adapter=str(path))
    if config.format in ("idefics", "otter"):
        config = replace(config, lm=str(folder))
    if config.format == "otter":  # there are both kinds of either language model
        kind = read_config(folder).get("text_config", {}).get("model_type", "llama")
        bos = "<s>" if kind == "llama" else ""
        config = replace(config, tokens=replace(config.tokens, bos=bos))
    # The sizes are the checkpoint's own, which nobody knows before it is read.
    return _with(replace(config, lm_config={}, vision_config={}), lm, clip)


def _with(config: ModelConfig, lm: str | None, clip: str | None) -> ModelConfig:
    if lm is not None:
        config = replace(config, lm=lm)
        bos, file = config.tokens.bos, Path(lm) / "tokenizer.json"
        if file.is_file() and json.dumps(bos, ensure_ascii=False) not in file.read_text("utf-8"):
            config = replace(config, tokens=replace(config.tokens, bos=""))  # another family's
    if clip is not None:
        side = read_config(Path(clip)).get("image_size", config.vision.size)
        config = replace(
            config, vision=replace(config.vision, encoder=f"clip:{clip}", size=int(side))
        )
    return config


def _released() -> dict[str, str]:
    """Presets by the hub repository, in small letters, that holds their weights."""
    adapters = {name: read_model_config(name).adapter for name in preset_names()}
    return {
        adapter.removeprefix("hub:").rpartition("/")[0].lower(): name
        for name, adapter in adapters.items()
        if adapter.startswith("hub:")
    }


def _beside(folder: Path, name: str) -> str | None:
    return str(folder / name) if (folder / name / "config.json").is_file() else None


def _guess(path: Path, folder: Path, has_lm: bool) -> str:
    """The preset that a checkpoint is like."""
    named = {repository.rpartition("/")[2]: preset for repository, preset in _released().items()}
    for part in reversed(path.absolute().parts):  # the hub's cache names it so as well
        if preset := named.get(part.lower().rpartition("--")[2]):
            return preset
    if (folder / "config.json").is_file():
        return _by_config(folder)
    found = _by_shapes(unwrap(open_tensors(path)), has_lm)
    if len(found) == 1 or (found and has_lm):
        return found[0]
    may = f", and may be {' or '.join(found)}" if found else ""
    raise InputError(
        f"{path} does not say whose model it is{may}; say so, as in flamvid models convert --like "
        f"{found[0] if found else 'openflamingo-3b'}"
    )


def _by_config(folder: Path) -> str:
    try:
        table = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        like = _LIKE[table["model_type"]]
        return "otter-video" if like == "otter-image" and table.get("max_num_frames") else like
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / 'config.json'} is of no model that flamvid knows ({', '.join(_LIKE)}); "
            "say what it is like, as in flamvid models convert --like openflamingo-3b"
        ) from error


def _by_shapes(tensors: Mapping[str, Tensor], any_width: bool) -> list[str]:
    """Presets of OpenFlamingo with such layers; any_width: its language model is at hand."""
    layer = re.compile(
        r"lang_encoder\.(.*\.)?(?:\d+\.gated_cross_attn_layer|gated_cross_attn_layers\.\d+)"
        r"\.attn\.to_out\.weight"
    )
    found = ((layer.fullmatch(name), tensor) for name, tensor in tensors.items())
    inserted = {m[1]: tensor.shape[:1].numel() for m, tensor in found if m}
    out: list[str] = []
    for name in preset_names():
        config = read_model_config(name)
        lm = config.lm_config
        if config.format != "open_flamingo":
            continue
        width = inserted.get(_LAYERS[lm["model_type"]])
        if width is not None and (any_width or width == lm.get("hidden_size", lm.get("d_model"))):
            out.append(name)
    return out or (["openflamingo-3b"] if any_width and inserted else [])
