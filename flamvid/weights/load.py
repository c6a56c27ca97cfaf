"""A model by name, ready to run: configuration, frozen parts, adapter, tokenizer, transform."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flamvid.errors import ConfigError, InputError, WeightsError
from flamvid.models.build import ModelConfig, about
from flamvid.models.card import Card
from flamvid.models.draft import Draft
from flamvid.models.flamingo import Flamingo
from flamvid.models.labels import Labels
from flamvid.models.lm import TokenHead
from flamvid.models.pretrained import DTYPES
from flamvid.models.vision import TimmEncoder
from flamvid.text.prompt import PromptFormat
from flamvid.text.tokenizer import FastTokenizer
from flamvid.video.transform import FrameTransform
from flamvid.weights.adapter import load_adapter
from flamvid.weights.formats import build
from flamvid.weights.layout import Room, layout
from flamvid.weights.pictures import as_its_authors
from flamvid.weights.placement import int8_as_read, quantise
from flamvid.weights.source import source_config

__all__ = ["LoadedModel", "load_config", "load_model", "torch_dtype"]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A Flamingo with everything that belongs to it."""

    config: ModelConfig
    flamingo: Flamingo
    prompts: PromptFormat
    transform: FrameTransform
    device: torch.device
    dtype: torch.dtype
    head: TokenHead | None  # None: every token of the LM may be generated
    labels: Labels | None = None  # None: the model's prompts name nothing
    draft: Draft | None = None  # guesses ahead where one text is written at a time

    def name(self, features_TNF: Tensor) -> dict[str, float]:
        """What a caption's prompt says of a media, by its features, and how surely."""
        vision = self.flamingo.vision
        if self.labels is None or not isinstance(vision, TimmEncoder):
            return {}
        with torch.inference_mode():
            return self.labels.weigh(vision.classify(features_TNF))


def load_model(
    name: str = "flamvid-base",
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
    *,
    trained: bool = True,
    device_map: str | None = None,
    max_memory: Room | None = None,
) -> LoadedModel:
    """Load a model; `trained=False` leaves the new parts as initialised, for training.

    name: a preset, a model's TOML, or a folder or hub repository with a model, saved by us or as
    OpenFlamingo's, Otter's or IDEFICS' authors left it. dtype: the model's own for the device if
    None; int8 stores what is computed in another. device_map: "auto" lays a language model that no
    device holds over all of them, memory and the disk, instead of `device`; each tensor goes there
    as it is read. max_memory: how much of each it may take, such as {0: "20GB", "cpu": "30GB"};
    nine tenths of what is free if None.
    """
    config = source_config(name)
    return load_config(config, device, dtype, trained, device_map, max_memory)


def load_config(
    config: ModelConfig,
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
    trained: bool = True,
    device_map: str | None = None,
    max_memory: Room | None = None,
) -> LoadedModel:
    """`load_model` of a configuration in hand."""
    if not config.lm or (trained and not config.adapter):
        raise ConfigError(
            f"{config.name} is an architecture of the paper, whose weights were never released; "
            f"to train one, copy {config.name}.toml, name your own lm and vision weights in it, "
            "and run flamvid train with a recipe of that model"
        )
    spread = None
    if device_map is not None:
        spread = layout(config, device_map, max_memory, str(dtype) == "int8")
    where = spread.home if spread else _device(device)
    dtype = None if dtype == "auto" else dtype
    alone = where.type == "cpu" and spread is None
    dtype = dtype or (alone and config.cpu_dtype) or config.dtype
    int8 = dtype == "int8"
    # int8 stores less; what is computed keeps a dtype that the device is quick at.
    kind = _computed(where) if int8 else torch_dtype(dtype)
    with (
        int8_as_read(alone) if int8 else nullcontext(),
        spread.laid() if spread else nullcontext(),
    ):
        flamingo, folder = build(config, kind, where, int8, spread is None)
    if spread:
        spread.belongs_to(flamingo)
    tokenizer = tokenizer_of(folder, config)
    if config.tokens.added and config.format == "flamvid":
        tokenizer.add_tokens(list(config.tokens.added), special_tokens=True)
        ids = [tokenizer.convert_tokens_to_ids(token) for token in config.tokens.added]
        flamingo.lm.add_tokens(ids)
        assert flamingo.lm.tokens is not None
        flamingo.lm.tokens.to(where)

    config = replace(config, vision=as_its_authors(config.vision))
    vocabulary = None
    if config.format == "flamvid" and trained:
        vocabulary = load_trained(flamingo, Path(config.adapter))
    elif config.format == "saved":
        vocabulary = flamingo.card.vocabulary
    heads = Path(config.contrastive) if config.contrastive else None
    flamingo.card = Card(about(config), vocabulary, tokenizer, heads)
    if int8:
        quantise(flamingo, alone)
    head = None if vocabulary is None else flamingo.lm.head_of(vocabulary.to(where))

    side = config.vision.size
    transform = FrameTransform(
        size=(side, side),
        mean=config.vision.mean,
        std=config.vision.std,
        resize=config.vision.resize,
        interpolation=config.vision.interpolation,
        shorter=config.vision.shorter,
        antialias=config.vision.antialias,
    )
    prompts = _prompts(tokenizer, config)
    look = config.vision
    labels = Labels(look.labels, look.label_share) if look.labels else None
    return LoadedModel(config, flamingo, prompts, transform, where, kind, head, labels)


def load_trained(flamingo: Flamingo, path: Path) -> Tensor | None:
    """Copy an adapter's tensors into the trained parts; names and shapes must agree.

    Returns the ids of the tokens that it was trained to choose from, int64 [V], if not all.
    """
    tensors, _ = load_adapter(path)
    vocabulary = tensors.pop("vocabulary", None)
    wanted = dict(flamingo.trained())
    missing, extra = wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys()
    if missing or extra:
        raise WeightsError(
            f"{path} does not fit the model: missing {sorted(missing)[:3]}, "
            f"unexpected {sorted(extra)[:3]}"
        )
    for key, parameter in wanted.items():
        if parameter.shape != tensors[key].shape:
            raise WeightsError(
                f"{path}: {key} has shape {tuple(tensors[key].shape)}, "
                f"the model wants {tuple(parameter.shape)}"
            )
    if vocabulary is not None:
        vocabulary = vocabulary.long()
        tokens: int = flamingo.lm.lm.config.vocab_size
        if not _rises(vocabulary, tokens):
            raise WeightsError(f"{path}: its vocabulary is no rising list of ids below {tokens}")

    with torch.no_grad():
        for key, parameter in wanted.items():
            parameter.copy_(tensors[key])
    return vocabulary


def _rises(ids: Tensor, below: int) -> bool:
    within = ids.ndim == 1 and len(ids) > 0 and bool(ids[0] >= 0) and bool(ids[-1] < below)
    return within and bool((ids.diff() > 0).all())


def torch_dtype(name: str | torch.dtype) -> torch.dtype:
    """The torch dtype of a user's word for it."""
    word = str(name).removeprefix("torch.")
    if word not in DTYPES:
        raise InputError(f"dtype is {name!r}; must be auto or one of {', '.join(DTYPES)}, int8")
    return DTYPES[word]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device is {name!r}; must be cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device is {name!r}, but torch sees no CUDA device; use --device cpu")
    return device


def tokenizer_of(folder: Path, config: ModelConfig) -> Any:
    """The tokenizer in a folder: transformers' own if tokens are added to it."""
    if not config.tokens.added and config.format == "flamvid":
        return FastTokenizer(folder)
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder} holds no tokenizer.json that can be read") from error


def _prompts(tokenizer: Any, config: ModelConfig) -> PromptFormat:
    tokens = config.tokens
    if tokens.added:
        tokenizer.add_tokens(list(tokens.added), special_tokens=True)
    ids: list[int | None] = []
    for token in (tokens.bos, tokens.media, tokens.end, tokens.around):
        at = tokenizer.convert_tokens_to_ids(token) if token else None
        unknown = tokenizer.unk_token_id
        if token and (not isinstance(at, int) or (at == unknown and token != tokenizer.unk_token)):
            raise ConfigError(f"the tokenizer of {config.lm} has no token {token!r}")
        ids.append(at)
    bos, media, end, around = ids
    if media is None or end is None:
        raise ConfigError(f"model {config.name} names no media or no end token; it needs both")
    layouts = config.prompt.caption, config.prompt.question
    eos = tokenizer.eos_token_id if tokens.end in tokens.added else None
    return PromptFormat(tokenizer, bos, media, end, around, *layouts, eos_id=eos)


def _computed(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32
