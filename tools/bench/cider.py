"""CIDEr, BLEU-4 and the variety of captions on held-out videos of a shard.

    python tools/bench/cider.py --data FOLDER [--model flamvid-base] [--beams 3]

The metrics are pycocoevalcap's, after its PTB tokenizer (which needs Java). Frames are those of the
shard, so that the figure depends on the model alone and not on a video decoder.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from flamvid.cli.process import prepare
from flamvid.data.shards import Sample, expand, read_shard
from flamvid.generate.engine import GenerationConfig, generate
from flamvid.generate.favour import favours_of
from flamvid.ops import media_index
from flamvid.weights.load import LoadedModel, load_model

BATCH = 16


@torch.inference_mode()
def captions(
    model: LoadedModel, samples: list[Sample], search: GenerationConfig
) -> Iterator[tuple[Sample, str]]:
    """A caption of each sample, a batch of samples at a time."""
    end = model.prompts.end_id
    for first in range(0, len(samples), BATCH):
        batch = samples[first : first + BATCH]
        seen = [_features(model, sample) for sample in batch]
        latents = torch.cat([model.flamingo.resample(features[None, None]) for features in seen])
        labels = [model.name(features) for features in seen]
        rows = [model.prompts.caption(labels=tuple(said)) for said in labels]
        ids = torch.tensor([[end] * (max(map(len, rows)) - len(row)) + row for row in rows])
        real = torch.tensor([[0] * (ids.shape[1] - len(row)) + [1] * len(row) for row in rows])
        index = media_index(ids, model.prompts.media_id)
        texts = generate(
            model.flamingo,
            latents,
            ids,
            index,
            end,
            search,
            attention_mask=real,
            head=model.head,
            favours=[favours_of(model, said) for said in labels],
        )
        for sample, text in zip(batch, texts, strict=True):
            yield sample, model.prompts.decode(text.ids)


def _features(model: LoadedModel, sample: Sample) -> torch.Tensor:
    """Features [T,N,F] of a sample's pictures."""
    frames = torch.cat([model.transform(picture[None]) for picture in sample.pictures])
    return model.flamingo.encode(frames)


def score(references: dict[str, list[str]], said: dict[str, str]) -> tuple[float, float]:
    """CIDEr and BLEU-4, times 100 as papers print them."""
    tokenizer = PTBTokenizer()
    truth = tokenizer.tokenize({k: [{"caption": c} for c in v] for k, v in references.items()})
    ours = tokenizer.tokenize({k: [{"caption": v}] for k, v in said.items()})
    cider, _ = Cider().compute_score(truth, ours)
    bleu, _ = Bleu(4).compute_score(truth, ours, verbose=0)
    return 100 * float(cider), 100 * float(bleu[3])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--shards", default="msrvtt/validate-*.tar")
    parser.add_argument("--model", default="flamvid-base", help="name, or path of a model's .toml")
    parser.add_argument("--dtype", help="the model's own for the device unless given")
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--length-penalty", type=float, default=1.0)
    parser.add_argument("--max-tokens", type=int, default=20)
    parser.add_argument("--captions", type=Path, help="also write the captions here, as JSON lines")
    options = parser.parse_args()

    prepare()
    samples = [s for shard in expand([options.shards], options.data) for s in read_shard(shard)]
    model = load_model(options.model, dtype=options.dtype)
    search = GenerationConfig(
        beams=options.beams,
        max_tokens=options.max_tokens,
        length_penalty=options.length_penalty,
    )
    began = time.perf_counter()
    said = {sample.id: text for sample, text in captions(model, samples, search)}
    took = time.perf_counter() - began
    cider, bleu = score({s.id: list(s.captions) for s in samples}, said)
    if options.captions:
        lines = (json.dumps({"id": key, "text": text}) + "\n" for key, text in said.items())
        options.captions.write_text("".join(lines), encoding="utf-8")
    print("command:", " ".join(["python", *sys.argv]))
    print(
        f"{len(samples)} media, beams {options.beams}: CIDEr {cider:.1f}, BLEU-4 {bleu:.1f}, "
        f"{len(set(said.values()))} distinct captions, {took / len(samples):.2f} s each"
    )


if __name__ == "__main__":
    main()
