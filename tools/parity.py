"""Compare our loaders with numbers that other people's code gave: `python tools/parity.py DIR...`.

Each folder is laid out as those in shared/parity: `meta.json`, `cases.safetensors`, and either
`checkpoint.{safetensors,pt}` with `lm/` and `clip/` (OpenFlamingo) or `checkpoint/` (IDEFICS).
Prints, per case, the largest absolute difference and whether generated ids agree; exits with 0
only if all differences are within 1e-4 and all ids are equal.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from flamvid.errors import FlamvidError
from flamvid.generate.engine import GenerationConfig, generate
from flamvid.models.flamingo import Flamingo
from flamvid.models.hosts import load_host
from flamvid.models.lm import MediaContext
from flamvid.models.transformers_encoder import load_tower
from flamvid.ops import media_index
from flamvid.weights.idefics import load_idefics, one_hot_index
from flamvid.weights.open_flamingo import build_open_flamingo, layout, open_flamingo_tensors
from flamvid.weights.tensors import open_tensors

BAR = 1e-4
Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the report: `ids` is None where a case has none to compare."""

    case: str
    difference: float
    ids: bool | None = None

    @property
    def good(self) -> bool:
        """Whether it is within the bar; NaN is not."""
        return self.difference <= BAR and self.ids is not False

    def __str__(self) -> str:
        ids = {None: "-", True: "equal", False: "DIFFER"}[self.ids]
        verdict = "ok" if self.good else "FAIL"
        return f"  {self.case:<26}{self.difference:10.2e}  ids {ids:<7}{verdict}"


@torch.inference_mode()
def compare(folder: Path) -> Iterator[Result]:
    """The results of one folder."""
    cases = load_file(folder / "cases.safetensors")
    meta = json.loads((folder / "meta.json").read_text())
    if (folder / "checkpoint").is_dir():
        yield from _idefics(load_idefics(folder / "checkpoint"), cases)
        return
    checkpoints = [f for kind in ("safetensors", "pt") for f in folder.glob(f"checkpoint.{kind}")]
    if not checkpoints:
        raise FileNotFoundError(f"{folder} has no checkpoint.safetensors or checkpoint.pt")
    for checkpoint in checkpoints:
        mark = f" {checkpoint.suffix}" if len(checkpoints) > 1 else ""
        for result in _open_flamingo(load_open_flamingo(folder, checkpoint, meta), cases, meta):
            yield Result(result.case + mark, result.difference, result.ids)


def load_open_flamingo(folder: Path, checkpoint: Path, meta: dict[str, Any]) -> Flamingo:
    """The model of an OpenFlamingo folder, with its sizes from the checkpoint itself."""
    tensors = open_flamingo_tensors(open_tensors(checkpoint))
    sizes, every = meta.get("perceiver", {}), meta.get("cross_attn_every_n_layers")
    head_width, depth = sizes.get("dim_head", 64), sizes.get("depth")
    parts = layout(tensors, checkpoint, head_width, depth=depth, every=every)
    lm = load_host(folder / "lm", torch.float32)
    vision = load_tower("clip", folder / "clip", torch.float32)
    return build_open_flamingo(tensors, vision, lm, parts, checkpoint).eval()


def _open_flamingo(model: Flamingo, cases: Tensors, meta: dict[str, Any]) -> Iterator[Result]:
    if "resampler.pixels" in cases:
        pixels = cases["resampler.pixels"]
        features = model.encode(pixels.flatten(0, -4))
        yield Result("resampler.features", _largest(features, cases["resampler.features"]))
        latents = model.resample(features.unflatten(0, pixels.shape[:-3]))
        yield Result("resampler.latents", _largest(latents, cases["resampler.latents"]))
    image_id: int = meta["image_token_id"]
    for case in sorted({name.split(".")[0] for name in cases if name.endswith(".input_ids")}):
        ids, mask = cases[f"{case}.input_ids"], cases[f"{case}.attention_mask"]
        pixels = cases[f"{case}.pixels"]  # B x M x T x 3 x H x W
        features = model.encode(pixels.flatten(0, 2)).unflatten(0, pixels.shape[:3])
        index = media_index(ids, image_id)
        logits = model(features, ids, index, mask)
        difference = _largest(logits[mask == 1], cases[f"{case}.logits"][mask == 1])
        wanted, same = cases.get(f"{case}.generated"), None
        if wanted is not None:
            search = GenerationConfig(beams=1, max_tokens=meta["max_new_tokens"])
            latents, end = model.resample(features), meta["eoc_token_id"]
            found = [list(f.ids) for f in generate(model, latents, ids, index, end, search, mask)]
            if any(image_id in row for row in found):
                prompt = (latents, ids, index, mask)
                found = _greedy_as_theirs(model, prompt, image_id, end, search.max_tokens)
            rows = wanted[:, ids.shape[1] :].tolist()
            same = found == [_until(row, end) for row in rows]
        yield Result(case, difference, same)


def _greedy_as_theirs(
    model: Flamingo, prompt: tuple[Tensor, ...], image: int, end: int, tokens: int
) -> list[list[int]]:
    """Ids by OpenFlamingo's cached decoding where an `<image>` is written.

    Theirs counts images within the one token of that step: from there the row that wrote it sees
    the first image again, and every other row of the batch sees none (flamingo_lm.py, helpers.py).
    Ours moves on to the next image, and looks at each row by itself.
    """
    latents, step, index, mask = prompt
    cache, media = model.lm.new_cache(), model.read(latents, index)
    texts: list[list[int]] = [[] for _ in step]
    ended = torch.zeros(len(step), dtype=torch.bool)
    for _ in range(tokens):
        hidden = model.lm(step, MediaContext(media.layers, index), mask, cache)[:, -1]
        ids = model.lm.head(hidden).argmax(-1).masked_fill(ended, end)
        ended |= ids == end
        for text, token in zip(texts, ids.tolist(), strict=True):
            text.append(token)
        step, index = ids[:, None], index[:, -1:]
        if (step == image).any():
            index = (step == image).to(index.dtype) - 1
        mask = torch.cat([mask, mask.new_ones(len(step), 1)], dim=1)
    return [_until(text, end) for text in texts]


def _idefics(model: Flamingo, cases: Tensors) -> Iterator[Result]:
    pixels = cases["pixels"]  # B x M x 3 x H x W
    features = model.encode(pixels.flatten(0, 1))
    yield Result("features", _largest(features, cases["features"]))
    features = features.unflatten(0, pixels.shape[:2])[:, :, None]  # B x M x 1 x N x F
    latents = model.resample(features)
    yield Result("latents", _largest(latents.flatten(0, 1), cases["latents"]))
    mask = cases["attention_mask"]
    index = one_hot_index(cases["image_attention_mask"])
    logits = model(features, cases["input_ids"], index, mask)
    yield Result("logits", _largest(logits[mask == 1], cases["logits"][mask == 1]))


def _largest(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).abs().max())


def _until(row: list[int], end: int) -> list[int]:
    return row[: row.index(end)] if end in row else row


def main(folders: list[Path]) -> int:
    """Print the report of all folders; 0 if all is within the bar."""
    disable_progress_bar()
    warnings.simplefilter("ignore")  # what is wrong with a folder is one line of the report
    # A pattern of the shell names the files beside the folders, too, such as a README.
    folders = [folder for folder in folders if not folder.is_file()]
    good = bool(folders)
    for folder in folders:
        print(folder)
        try:
            results = list(compare(folder))
        except Exception as error:  # whatever is wrong with one folder, the others have their turn
            kind = "" if isinstance(error, FlamvidError) else f"{type(error).__name__}: "
            print(f"  FAIL: {kind}{' '.join(str(error).split())}")
            good = False
            continue
        good = good and bool(results) and all(result.good for result in results)
        print(*results, sep="\n")
    print("all within 1e-4, all ids equal" if good else "NOT within the bar")
    return 0 if good else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    sys.exit(main(parser.parse_args().folders))
