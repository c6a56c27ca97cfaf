"""`flamvid models`: what there is, what lies in the cache, and how to get it there."""

from __future__ import annotations

import difflib
import json
import sys
import tomllib
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from flamvid.cli.failure import FAILED, guarded, report
from flamvid.errors import ConfigError, FlamvidError, InputError

__all__ = ["Preset", "app", "presets"]

app = typer.Typer(no_args_is_help=True, help="List, fetch and describe models and their parts.")

AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A model that ships with flamvid: its file, and the parts that it needs by name."""

    name: str
    lm: str
    encoder: str
    weights: str
    adapter: Path

    @property
    def parts(self) -> list[str]:
        """Names that `hub.resolve` must know before the model can load."""
        kind, _, name = self.encoder.partition(":")
        return [part for part in (self.lm, name if kind == "clip" else self.weights) if part]


def presets() -> dict[str, Preset]:
    """All presets by name; read without torch, which the model room would import."""
    out = {}
    for file in sorted(resources.files("flamvid.presets").iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".toml"):
            continue
        name = file.name.removesuffix(".toml")
        try:
            table: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
            out[name] = Preset(
                name=name,
                lm=table["lm"],
                encoder=table["vision"]["encoder"],
                weights=table["vision"].get("weights", ""),
                adapter=Path(str(file)).parent / table["adapter"],
            )
        except (tomllib.TOMLDecodeError, KeyError) as error:
            raise ConfigError(
                f"the preset {name} is damaged ({error}); reinstall flamvid"
            ) from error
    return out


@app.command("list")
@guarded
def list_(as_json: AsJson = False) -> int:
    """List the models, and the parts they are made of."""
    rows = _rows()
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "kind", "cached", "licence", "source", box=None, pad_edge=False)
    for row in rows:
        cached = _size(row["size_bytes"]) if row["cached"] else "no"
        table.add_row(row["name"], row["kind"], cached, row["licence"], row["source"])
    # A pipe has no width: nothing is cut there.
    Console(width=None if sys.stdout.isatty() else 1000).print(table)
    return 0


@app.command()
@guarded
def pull(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME", help="Models, their parts, or org/name.")
    ],
) -> int:
    """Fetch and convert what models need, so that later runs need no network.

    The folder of each part is printed. What is in the cache already is not fetched again.
    """
    from flamvid.weights import hub

    known, failed = presets(), False
    for name in names:
        for part in known[name].parts if name in known else [name]:
            try:
                typer.echo(f"{part}: {hub.resolve(part)}")
            except FlamvidError as error:
                report(error, part)
                failed = True
    return FAILED if failed else 0


@app.command()
@guarded
def show(
    name: Annotated[str, typer.Argument(help="A model or part.")], as_json: AsJson = False
) -> int:
    """Describe one model or part: licence, source, checksum, where it lies."""
    from flamvid.weights import hub

    known = presets()
    names = [*known, *(status.name for status in hub.available())]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
        raise InputError(f"no model or part is called {name!r}; {hint}")
    facts = _describe(known[name]) if name in known else hub.show(name)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return 0
    width = max(map(len, facts))
    for key, value in facts.items():
        typer.echo(f"{key:<{width}}  {value}")
    return 0


def _rows() -> list[dict[str, Any]]:
    """Presets first, then parts, each with the same keys."""
    from flamvid.weights import hub

    parts = [asdict(status) for status in hub.available()]
    cached = {part["name"]: part["cached"] for part in parts}
    rows = []
    for preset in presets().values():
        there = preset.adapter.is_file()
        ready = there and all(cached.get(part, False) for part in preset.parts)
        rows.append(
            {
                "name": preset.name,
                "kind": "model",
                "cached": ready,
                "size_bytes": preset.adapter.stat().st_size if there else 0,
                "licence": "Apache-2.0",
                "source": f"{'+'.join(preset.parts)} + {preset.adapter.name}",
            }
        )
    return rows + parts


def _describe(preset: Preset) -> dict[str, str | int]:
    from flamvid.weights import hub

    cached = {status.name: status.cached for status in hub.available()}
    missing = [part for part in preset.parts if not cached.get(part, False)]
    there = preset.adapter.is_file()
    return {
        "name": preset.name,
        "kind": "model",
        "licence": "Apache-2.0",
        "language model": preset.lm,
        "vision encoder": preset.encoder,
        "vision weights": preset.weights or "of the encoder",
        "adapter": str(preset.adapter) if there else f"{preset.adapter} (missing: reinstall)",
        "bytes": preset.adapter.stat().st_size if there else 0,
        "cached": f"no (flamvid models pull {preset.name})" if missing else "yes",
    }


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"
