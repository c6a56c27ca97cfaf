"""A run as a picture: losses by corpus, and how far each layer's gates are open (figure 6 of the
paper's appendix), from its journal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flamvid.errors import ConfigError, InputError
from flamvid.train.journal import LOG, read_journal

__all__ = ["plot_run"]


def plot_run(folder: Path, out: Path) -> Path:
    """Draw the run in `folder` into `out`, a PNG.

    Raises InputError where there is nothing to draw, or nowhere to; ConfigError where matplotlib is
    not installed.
    """
    entries = read_journal(folder)
    losses = _curves(entries, "loss")
    if not losses:
        raise InputError(f"{folder / LOG} holds no losses; give the folder of a run")
    gates = [e for e in entries if e.get("gates")]
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "flamvid plot needs the package matplotlib; pip install 'flamvid[train]'"
        ) from error

    figure = Figure(figsize=(15 if gates else 6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels: list[Any] = list(figure.subplots(1, 3 if gates else 1, squeeze=False)[0])
    for name, (steps, values) in losses.items():
        panels[0].plot(steps, values, label=name)
    for name, (steps, values) in _curves(entries, "validation").items():
        panels[0].plot(steps, values, "o--", markersize=3, label=f"{name}, held out")
    panels[0].set(xlabel="update", ylabel="loss per token, nats", title="Losses")
    panels[0].legend()
    for panel, at, title in zip(panels[1:], (0, 1), ("attention", "feed-forward"), strict=False):
        _draw_gates(panel, gates, at)
        panel.set(xlabel="update", ylabel="|tanh(gate)|", title=f"Gates of {title}")
    try:
        figure.savefig(out, dpi=120)
    except OSError as error:
        raise InputError(f"can't write {out}: {error.strerror}; give another file") from error
    except ValueError as error:
        raise InputError(f"{out} ends in {out.suffix or 'nothing'}; a plot is a .png") from error
    return out


def _curves(entries: list[dict[str, Any]], key: str) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values by name."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for entry in entries:
        for name, value in (entry.get(key) or {}).items():
            if value is None:  # it was no finite number
                continue
            steps, values = curves.setdefault(name, ([], []))
            steps.append(entry["step"])
            values.append(value)
    return curves


def _draw_gates(panel: Any, entries: list[dict[str, Any]], at: int) -> None:
    """One line for each inserted layer, dark at the bottom of the model and light at its top."""
    from matplotlib import colormaps

    steps = [e["step"] for e in entries]
    layers = [layer for layer, g in enumerate(entries[-1]["gates"]) if len(g) > at]
    for layer in layers:
        colour = colormaps["viridis"](layer / max(len(layers) - 1, 1))
        values = [abs(e["gates"][layer][at]) for e in entries]
        panel.plot(steps, values, color=colour, label=f"layer {layer}")
    if layers:
        panel.legend(fontsize="x-small", ncols=2)
