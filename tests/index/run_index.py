"""A process of its own that indexes: it says when it begins, so that it can be killed after that.

run_index.py MODEL STORE FPS SOURCE...
"""

from __future__ import annotations

import sys

from flamvid import library

if __name__ == "__main__":
    model, store, fps, *sources = sys.argv[1:]
    captioner = library.load(model, device="cpu")
    print("ready", flush=True)
    config = library.IndexConfig(fps=float(fps), workers=2)
    print(library.index(sources, store, model=captioner, config=config, batch=8).report())
