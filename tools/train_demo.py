"""Train a small Flamingo on generated clips in minutes, and see what it learnt.

    python tools/train_demo.py [--out runs/demo] [--clips 2016] [--seed 0]

It is asked about combinations of colour, shape and direction that it never met, and then once more
with the frames of each clip shuffled: what it then still knows, it did not take from their order.
Whether a shape moves across or up and down can be told from any order, so chance is one half.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import make_shapes

from flamvid.cli.process import prepare
from flamvid.cli.training import line
from flamvid.data.features import FeatureSet, features_of
from flamvid.generate.config import GenerationConfig
from flamvid.generate.engine import generate
from flamvid.ops import media_index
from flamvid.train.recipe import read_recipe
from flamvid.train.session import run
from flamvid.train.trainer import Report
from flamvid.weights.load import LoadedModel, load_model

RECIPE = Path(__file__).parents[1] / "datasets" / "moving-shapes" / "shapes.toml"
BATCH = 24
BAR = 0.95
SHUFFLED = 0.65  # above it, something else than order would tell the direction
WORDS = {"colour": 3, "shape": 4, "direction": 1}  # their places in "moving left: a red circle"


@torch.inference_mode()
def captions(model: LoadedModel, clips: FeatureSet, rng: random.Random | None) -> list[str]:
    """A caption of each clip; rng: shuffles its frames first."""
    said = []
    search = GenerationConfig(beams=1, max_tokens=12)
    for first in range(0, len(clips), BATCH):
        features_BTNF, _ = clips.batch(range(first, min(first + BATCH, len(clips))))
        if rng is not None:
            features_BTNF = torch.stack([clip[_shuffled(len(clip), rng)] for clip in features_BTNF])
        latents = model.flamingo.resample(features_BTNF[:, None])
        prompts = torch.tensor([model.prompts.caption()] * len(latents))
        index = media_index(prompts, model.prompts.media_id)
        end = model.prompts.end_id
        texts = generate(model.flamingo, latents, prompts, index, end, search, head=model.head)
        said += [model.prompts.decode(text.ids).strip() for text in texts]
    return said


def _shuffled(count: int, rng: random.Random) -> list[int]:
    order = list(range(count))
    rng.shuffle(order)
    return order


def right(said: list[str], clips: FeatureSet) -> dict[str, float]:
    """The share of captions that are right, and of each of their words."""
    pairs = [
        (text.split(), truth[0].split()) for text, truth in zip(said, clips.captions, strict=True)
    ]
    shares = {
        name: sum(len(text) > at and text[at] == truth[at] for text, truth in pairs) / len(pairs)
        for name, at in WORDS.items()
    }
    return {"caption": sum(text == truth for text, truth in pairs) / len(pairs), **shares}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--clips", type=int, default=2016, help="to train on")
    parser.add_argument("--seed", type=int, default=0, help="of the clips")
    options = parser.parse_args()
    prepare()  # as the command does
    began = time.monotonic()

    def log(text: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {text}", file=sys.stderr, flush=True)

    def log_report(report: Report) -> None:
        log(f"update {report.step}/{report.steps} {line(report)}")

    data = options.out / "data"
    make_shapes.write_all(data, options.clips, options.seed)
    log(f"{options.clips} clips of {make_shapes.FRAMES} frames in {data}")
    outcome = run(read_recipe(RECIPE, root=data), options.out / "run", False, log, log_report)
    if outcome.result is None:
        return 130
    model = load_model(str(outcome.result))
    held_out = features_of([data / "held-out.tar"], options.out / "features", model, log).plain()
    true = right(captions(model, held_out, None), held_out)
    other = right(captions(model, held_out, random.Random(0)), held_out)
    print(f"{len(held_out)} held-out clips, share right      " + "  ".join(f"{n:>9}" for n in true))
    for name, shares in (("frames in their order", true), ("frames shuffled", other)):
        print(f"{name:>40}  " + "  ".join(f"{share:>9.1%}" for share in shares.values()))
    print(f"{time.monotonic() - began:.0f} s in all; bar {BAR:.0%} of captions", end=": ")
    met = true["caption"] >= BAR and other["direction"] < SHUFFLED
    print("met" if met else "NOT met")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
