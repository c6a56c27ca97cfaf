"""The paper's ablations (Flamingo, section 3.3) at a small scale; `tools/ablate.py` runs them."""
