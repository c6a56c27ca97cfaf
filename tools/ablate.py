"""The paper's ablations (Flamingo, section 3.3) at a small scale.

    python tools/ablate.py --data FOLDER [--seeds 0 1] [--table docs/ablations.md]

Every row has the same budget. Each that is finished is a line of OUT/results.jsonl at once: a run
that was stopped goes on with the next one, and the table is of what there is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import asdict
from itertools import product
from pathlib import Path

import torch
from ablations.corpora import HELD_OUT, SHARDS, Places
from ablations.one import run_row
from ablations.rows import ROWS
from ablations.scale import Scale
from ablations.table import Results, table, write_between

from flamvid import config
from flamvid.cli.process import prepare
from flamvid.errors import FlamvidError, InputError
from flamvid.models.build import read_model_config

HERE = Path(__file__).parent


def main() -> int:
    options = _options()
    try:
        return _main(options)
    except FlamvidError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _main(options: argparse.Namespace) -> int:
    scale = config.build(Scale, dict(_pair(text) for text in options.set), "--set")
    known = {row.name: row for row in ROWS}
    for name in options.rows or ():
        if name not in known:
            raise InputError(f"no row is called {name!r}; there are {', '.join(known)}")
    rows = [known[name] for name in options.rows or known]
    score = None if options.no_cider else _cider()
    base = read_model_config(str(options.model))
    places = Places(options.data, options.features, options.out)
    model = config.read_toml(options.model)  # not `base`, which new options of models would change
    about = {"model": model, "scale": asdict(scale), "cider": score is not None}
    results = Results(options.out / "results.jsonl", about)
    if options.table:  # a page that lacks the marks is known before a row is trained for it
        write_between(options.table, table(rows, results))
    needed = {HELD_OUT, *(SHARDS[name] for row in rows for name in row.corpora)}
    for shard in () if options.no_run else sorted(needed):
        if not (options.data / shard).is_file():
            raise InputError(f"--data {options.data} has no {shard}; give the folder of the shards")
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    began = time.monotonic()

    def log(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", file=sys.stderr, flush=True)

    # All rows of one seed, before any of the next.
    for seed, row in product(options.seeds, () if options.no_run else rows):
        if results.has(row.name, seed):
            continue
        log(f"{row.name}, seed {seed}")
        outcome = run_row(row, seed, base, places, scale, score, log)
        results.add(row.name, seed, outcome)
        log(f"{row.name}, seed {seed}: loss {outcome.loss:.3f} CIDEr {outcome.cider}")
        if options.table:
            write_between(options.table, table(rows, results))
    text = table(rows, results)
    if options.table:
        write_between(options.table, text)
    print(text)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--features", type=Path, default=Path("runs/features"))
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--model", type=Path, default=HERE / "ablations" / "base.toml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="+", help="names of rows; all unless given")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of Scale")
    parser.add_argument("--no-cider", action="store_true", help="it needs Java")
    parser.add_argument("--no-run", action="store_true", help="only the table of what there is")
    parser.add_argument("--table", type=Path, help="a Markdown file to write it into, too")
    return parser.parse_args()


def _pair(text: str) -> tuple[str, object]:
    key, _, value = text.partition("=")
    try:
        return key, json.loads(value)
    except ValueError as error:
        raise InputError(f"--set is {text!r}; must be KEY=NUMBER, as updates=50") from error


def _cider():
    if shutil.which("java") is None:
        raise InputError("CIDEr's tokenizer needs Java, and there is none; give --no-cider")
    sys.path.append(str(HERE / "bench"))
    from cider import score

    return lambda truth, said: score(truth, said)[0]


if __name__ == "__main__":
    prepare()
    sys.exit(main())
