"""A whole model in one folder, as Hugging Face users expect: save, load, push.

A folder holds `model.safetensors`, with every tensor of every part, and `flamvid.toml`, with the
sizes of the new parts and the architecture of the frozen ones. What was loaded with tokenizer and
prompts is saved with them, and then `flamvid.load(folder)` reads it too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flamvid import config
from flamvid.errors import ConfigError, InputError, OfflineError, WeightsError
from flamvid.models.card import CONTRASTIVE, Card
from flamvid.models.encoder import VisionEncoder
from flamvid.models.frozen import asked_for_int8, frozen_of
from flamvid.models.gated_xattn import XattnConfig
from flamvid.models.int8 import Int8Linear
from flamvid.models.llama import Llama, LlamaConfig, llama_config_of
from flamvid.models.llama_file import llama_of, llama_tensors
from flamvid.models.reach import unreachable
from flamvid.models.resampler import PerceiverResampler, ResamplerConfig
from flamvid.models.saved_tensors import WEIGHTS, read_tensors, write_tensors
from flamvid.models.transformers_encoder import FAMILIES, TransformersEncoder, saved_tower
from flamvid.models.vision import VisionConfig, vision_of

if TYPE_CHECKING:
    from flamvid.models.flamingo import Flamingo

__all__ = ["TOML", "Pretrained"]

TOML = "flamvid.toml"
VOCABULARY = "vocabulary"  # the tokens that a model was trained to choose from, if not all
TOKEN_IDS = "new_tokens"  # those that have rows of their own
DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
_PATTERNS = ["*.toml", "*.json", "model*.safetensors", CONTRASTIVE, "tokenizer*", "*.jinja"]


# What huggingface_hub's snapshot_download takes, of which a local folder needs nothing.
_HUB = (
    "revision",
    "token",
    "cache_dir",
    "local_files_only",
    "force_download",
    "endpoint",
    "etag_timeout",
    "headers",
    "max_workers",
)
# What transformers takes and nothing comes of: it is always so, or never needed.
_NO_CHOICE = ("low_cpu_mem_usage", "trust_remote_code", "use_safetensors")


class Pretrained:
    """What a Flamingo can do with folders and the Hugging Face hub.

    card: what is saved with it, which those who load a model fill in.
    """

    card: Card = Card()

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        about: Mapping[str, Any] | None = None,
        vocabulary: Tensor | None = None,
        max_shard_size: int | str | None = None,
        safe_serialization: bool = True,
    ) -> None:
        """Write the folder, with the tokenizer and prompts that the model was loaded with.

        about: goes into flamvid.toml instead of what it had there. vocabulary: ids of the tokens
        that the model was trained to choose from, int64 [V], instead of its own. max_shard_size:
        bytes, or a text such as "5GB"; one file if None.
        """
        if not safe_serialization:
            raise InputError("safe_serialization is False; Flamingos are saved as safetensors only")
        folder, model = Path(save_directory), _flamingo(self)
        tensors = dict(_tensors(model))
        ids = self.card.vocabulary if vocabulary is None else vocabulary
        if ids is not None:
            tensors[VOCABULARY] = ids.detach().cpu().contiguous()
        folder.mkdir(parents=True, exist_ok=True)
        said = self.card.write(folder)
        adapter = write_tensors(folder, tensors, max_shard_size)
        table = _table(model, said if about is None else about, adapter)
        (folder / TOML).write_text(config.to_toml(table), encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        device: str | torch.device = "cpu",
        own: bool = True,
        subfolder: str = "",
        **hub: Any,
    ) -> Flamingo:
        """The model in a folder or a hub repository, in evaluation mode.

        dtype, or torch_dtype as it was called: such as "bfloat16", "bf16" or torch.bfloat16; as
        saved if None or "auto". own: a plain Llama is our quicker one, not transformers', which
        accelerate can lay over several devices. subfolder: of the folder or repository, where the
        model lies. hub: keywords of huggingface_hub's
        `snapshot_download`, such as revision, token, cache_dir and local_files_only. WeightsError
        where something is missing.
        """
        if hub.get("use_safetensors") is False:
            raise InputError("use_safetensors is False; Flamingos are saved as safetensors only")
        hub = {key: value for key, value in hub.items() if key not in _NO_CHOICE}
        if unknown := sorted(hub.keys() - set(_HUB)):
            raise InputError(
                f"from_pretrained has no {unknown[0]}; it takes dtype, device, own, subfolder, "
                f"{', '.join(_HUB)}: flamvid.load does device_map and int8"
            )
        folder = Path(pretrained_model_name_or_path).expanduser()
        if not folder.is_dir():
            folder = _download(str(pretrained_model_name_or_path), subfolder, hub)
        folder /= subfolder
        chosen = torch_dtype if dtype is None else dtype
        return _load(folder, chosen, torch.device(device), own).eval()

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload a Flamingo",
        commit_description: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        about: Mapping[str, Any] | None = None,
        max_shard_size: int | str | None = "5GB",
        safe_serialization: bool = True,
    ) -> str:
        """Save to a hub repository, which is made if need be.

        Returns the address of the commit; what else the hub says of it, such as the `pr_url` of
        `create_pr`, are attributes of it.

        Arguments as of `save_pretrained`, and as of huggingface_hub's `upload_folder`.
        """
        from tempfile import TemporaryDirectory

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with TemporaryDirectory() as folder:
            self.save_pretrained(
                folder,
                about=about,
                max_shard_size=max_shard_size,
                safe_serialization=safe_serialization,
            )
            try:
                api.create_repo(repo_id, private=private, exist_ok=True)
                done = api.upload_folder(
                    repo_id=repo_id,
                    folder_path=folder,
                    commit_message=commit_message,
                    commit_description=commit_description,
                    revision=revision,
                    create_pr=create_pr,
                )
            except Exception as error:  # the client's own, by a library that it may change
                if not type(error).__module__.partition(".")[0].startswith(("hugg", "http")):
                    raise
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                raise OfflineError(
                    f"can't push to {repo_id} on the Hugging Face hub ({reason}); check the "
                    "connection and `hf auth whoami`, or use save_pretrained"
                ) from error
        return done if isinstance(done, str) else str(done)


def _flamingo(model: Any) -> Flamingo:
    flamingo: Flamingo = model
    return flamingo


def _tensors(model: Flamingo) -> Iterator[tuple[str, Tensor]]:
    """Every tensor once, by the part that it belongs to."""
    if any(isinstance(module, Int8Linear) for module in model.modules()):
        raise ConfigError("the model is int8, which is not saved; load it as float32")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ConfigError(
            "the model lies partly on the disk or in memory beside a GPU, from where it is not "
            "saved; load it without device_map"
        )
    if model.lm.tokens is not None:
        yield TOKEN_IDS, torch.tensor(model.lm.tokens.ids)
        for name, tensor in model.lm.tokens.state_dict().items():
            yield f"tokens.{name}", tensor.detach().cpu().contiguous()
    for prefix, part in (
        ("vision", model.vision.model),
        ("resampler", model.resampler),
        ("xattn", model.lm.inserted),
        ("lm", model.lm.lm),
    ):
        if isinstance(part, Llama):
            for name, tensor in llama_tensors(part).items():
                yield f"{prefix}.{name}", tensor.detach().cpu().contiguous()
            continue
        tied = {n for n, _ in part.named_parameters(remove_duplicate=False)}
        tied -= {n for n, _ in part.named_parameters()}
        for name, tensor in part.state_dict().items():
            if name not in tied:
                yield f"{prefix}.{name}", tensor.detach().cpu().contiguous()


def _table(model: Flamingo, about: Mapping[str, Any], adapter: str) -> dict[str, Any]:
    vision = model.vision
    dtype = str(model.lm.head.weight.dtype).removeprefix("torch.")
    table = {"format": "saved", "dtype": dtype, "adapter": adapter, **about}
    table["vision"] = {**about.get("vision", {}), **vision.described()}
    table["resampler"] = asdict(model.resampler.config)
    table["xattn"] = asdict(model.xattn_config)
    table["lm_config"] = _architecture(model.lm.lm.config)
    if isinstance(vision, TransformersEncoder):
        table["vision_config"] = _architecture(vision.model.config)
    return table


def _architecture(transformers_config: Any) -> dict[str, Any]:
    if isinstance(transformers_config, LlamaConfig):
        return transformers_config.table()
    table = _shape(transformers_config.to_diff_dict())
    return {**table, "model_type": transformers_config.model_type}


def _shape(table: Mapping[str, Any]) -> dict[str, Any]:
    """Without what says nothing of the shape, in tables within it too (MPT's attn_config)."""
    drop = {"architectures", "transformers_version", "dtype", "auto_map", "_name_or_path"}
    drop |= {"id2label", "label2id"}  # their keys are numbers, which TOML has not
    kept = {key: value for key, value in table.items() if key not in drop}
    return {key: _shape(v) if isinstance(v, Mapping) else v for key, v in kept.items()}


def _download(name: str, subfolder: str, keywords: Mapping[str, Any]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    silent = "" if keywords.get("local_files_only") or "endpoint" in keywords else unreachable()
    if silent:
        keywords = {**keywords, "local_files_only": True}
    try:
        within = [f"{subfolder.strip('/')}/{p}" if subfolder else p for p in _PATTERNS]
        return Path(snapshot_download(name, allow_patterns=within, **keywords))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = silent or next(iter(str(error).splitlines()), type(error).__name__)
        raise OfflineError(
            f"{name!r} is no folder, and can't be fetched from the Hugging Face hub ({reason}); "
            "check the name and the connection"
        ) from error


def _load(
    folder: Path, dtype: str | torch.dtype | None, device: torch.device, own: bool
) -> Flamingo:
    from flamvid.models.flamingo import Flamingo

    if not (folder / TOML).is_file():
        raise ConfigError(
            f"{folder} has no {TOML}, so save_pretrained did not write it; flamvid.load reads "
            "models of OpenFlamingo, Otter and IDEFICS"
        )
    table = config.read_toml(folder / TOML)
    if table.get("format") != "saved" or not isinstance(table.get("lm_config"), dict):
        raise ConfigError(f"{folder / TOML} was not written by save_pretrained; see flamvid.load")
    if dtype is None or dtype == "auto":
        dtype = str(table.get("dtype", "float32"))
    kind = DTYPES.get(str(dtype).removeprefix("torch."))
    if kind is None:
        raise ConfigError(f"dtype is {dtype!r}; must be auto or one of {', '.join(DTYPES)}")
    tensors = read_tensors(folder)

    vision = _vision(table, _under(tensors, "vision."), kind, folder, device)
    lm = _language_model(table["lm_config"], _under(tensors, "lm."), kind, folder, device, own)
    resampler = config.build(ResamplerConfig, table.get("resampler", {}), "resampler")
    xattn = config.build(XattnConfig, table.get("xattn", {}), "xattn")
    with torch.device("meta"):
        model = Flamingo(vision, PerceiverResampler(resampler), lm, xattn)
    parts: dict[str, nn.Module] = {"resampler.": model.resampler, "xattn.": model.lm.inserted}
    if TOKEN_IDS in tensors:
        model.lm.add_tokens(tensors[TOKEN_IDS].tolist())
        assert model.lm.tokens is not None
        parts["tokens."] = model.lm.tokens
    at = {f"{slot}": place for slot, place in enumerate(model.lm.places)}
    for prefix, part in parts.items():
        values = {}
        for name, tensor in _under(tensors, prefix).items():
            place = at.get(name.partition(".")[0], device) if part is model.lm.inserted else device
            values[name] = tensor.to(place, kind, copy=True)
        _assign(part, values, folder)
    vocabulary = tensors[VOCABULARY].long() if VOCABULARY in tensors else None
    model.card = Card.of_saved(folder, table, vocabulary)
    return model


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _language_model(
    table: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    folder: Path,
    device: torch.device,
    own: bool,
) -> Any:
    sizes = llama_config_of(table)
    if not (own and sizes):
        from flamvid.models.hosts import causal_class, lm_config_of

        made = lm_config_of(table)
        sizes = llama_config_of(made.to_dict())  # with what was left to transformers' defaults
        if not (own and sizes):
            return frozen_of(causal_class(made), made, tensors, dtype, folder, device)
    narrow = asked_for_int8() if device.type == "cpu" else None
    lm = llama_of(sizes, tensors, tensors.__getitem__, dtype, folder / WEIGHTS, narrow)
    return lm.to(device).requires_grad_(False)


def _vision(
    table: Mapping[str, Any],
    tensors: dict[str, Tensor],
    dtype: torch.dtype,
    folder: Path,
    device: torch.device,
) -> VisionEncoder:
    look = config.build(VisionConfig, table["vision"], "vision")
    kind = look.encoder.partition(":")[0]
    if kind in FAMILIES:
        tower = table.get("vision_config", {})
        return saved_tower(kind, tower, tensors, dtype, folder, look.class_token, device)
    encoder = vision_of(look, {})
    encoder.load(tensors)
    return encoder.to(device=device, dtype=dtype).requires_grad_(False).eval()


def _assign(part: nn.Module, tensors: Mapping[str, Tensor], at: Path) -> None:
    """Give a part on the meta device its values."""
    try:
        part.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{at / WEIGHTS} does not fit its {TOML}: {reason}") from error
