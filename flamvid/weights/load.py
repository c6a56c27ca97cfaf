"""A model by name, ready to run: configuration, frozen parts, adapter, tokenizer, transform."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flamvid.errors import ConfigError, InputError, WeightsError
from flamvid.models.build import ModelConfig, assemble, read_model_config
from flamvid.models.flamingo import Flamingo
from flamvid.models.int8 import make_int8
from flamvid.models.labels import Labels
from flamvid.models.lm import TokenHead, load_causal_lm
from flamvid.models.vision import TimmEncoder, build_vision
from flamvid.text.prompt import PromptFormat
from flamvid.text.tokenizer import FastTokenizer
from flamvid.video.transform import FrameTransform
from flamvid.weights import hub
from flamvid.weights.adapter import load_adapter

__all__ = ["LoadedModel", "load_model", "torch_dtype"]

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


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

    def name(self, features_TNF: Tensor) -> tuple[str, ...]:
        """What a caption's prompt says of a media, by its features; perhaps nothing."""
        vision = self.flamingo.vision
        if self.labels is None or not isinstance(vision, TimmEncoder):
            return ()
        with torch.inference_mode():
            return self.labels(vision.classify(features_TNF))


def load_model(
    name: str = "flamvid-base",
    device: str = "cpu",
    dtype: str | None = None,
    *,
    trained: bool = True,
) -> LoadedModel:
    """Load a model; `trained=False` leaves the new parts as initialised, for training.

    dtype: the model's own for the device if None. int8 is for the language model and the layers in
    it on a CPU, where everything else is float32.
    """
    config = read_model_config(name)
    where = _device(device)
    dtype = dtype or (config.cpu_dtype if where.type == "cpu" else "float32")
    int8 = dtype == "int8"
    if int8 and where.type != "cpu":
        raise InputError(f"dtype is int8 on {device}; int8 is for the CPU: use bfloat16")
    kind = torch.float32 if int8 else torch_dtype(dtype)

    folder = hub.resolve(config.lm)
    lm = load_causal_lm(folder, kind, int8)
    tokenizer = FastTokenizer(folder)
    encoder_kind, _, encoder_name = config.vision.encoder.partition(":")
    tower = str(hub.resolve(encoder_name)) if encoder_kind == "clip" else None
    vision = build_vision(config.vision, tower)
    if isinstance(vision, TimmEncoder):
        _load_vision(vision, hub.resolve(config.vision.weights))

    flamingo = assemble(vision, lm, config.resampler, config.xattn)
    vocabulary = load_trained(flamingo, Path(config.adapter)) if trained else None
    flamingo = (flamingo if int8 else flamingo.to(device=where, dtype=kind)).eval()
    if int8:
        make_int8(flamingo.lm.inserted)
    head = None if vocabulary is None else flamingo.lm.head_of(vocabulary.to(where))

    side = config.vision.size
    transform = FrameTransform(
        size=(side, side),
        mean=config.vision.mean,
        std=config.vision.std,
        resize=config.vision.resize,
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


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a user's word for it."""
    if name not in _DTYPES:
        raise InputError(f"dtype is {name!r}; must be int8 or one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device is {name!r}; must be cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device is {name!r}, but torch sees no CUDA device; use --device cpu")
    return device


def _load_vision(vision: TimmEncoder, folder: Path) -> None:
    try:
        vision.load(load_file(folder / "model.safetensors"))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise WeightsError(f"{folder} holds no weights that fit the encoder: {reason}") from error


def _prompts(tokenizer: FastTokenizer, config: ModelConfig) -> PromptFormat:
    ids = []
    for token in (config.tokens.bos, config.tokens.media, config.tokens.end):
        at = tokenizer.convert_tokens_to_ids(token)
        unknown = tokenizer.unk_token_id
        if not isinstance(at, int) or (at == unknown and token != tokenizer.unk_token):
            raise ConfigError(f"the tokenizer of {config.lm} has no token {token!r}")
        ids.append(at)
    return PromptFormat(tokenizer, *ids)
