"""`flamvid models`: what there is, what lies in the cache, and how to get it there."""

from __future__ import annotations

import difflib
import json
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from flamvid.cli.failure import FAILED, guarded, report
from flamvid.cli.progress import quiet_libraries, working
from flamvid.errors import ConfigError, FlamvidError, InputError

__all__ = ["Preset", "app", "presets"]

app = typer.Typer(no_args_is_help=True, help="List, fetch and describe models and their parts.")

AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A model that ships with flamvid: its file, and the parts that it needs by name.

    adapter: a file, or `hub:ORG/NAME/FILE`; "" where there are no trained weights, and then `lm`
    is "" as well.
    """

    name: str
    lm: str
    encoder: str
    weights: str
    adapter: str
    licence: str

    @property
    def parts(self) -> list[str]:
        """Names that `hub.get` must know before the model can load."""
        kind, _, name = self.encoder.partition(":")
        if not self.adapter:  # there is nothing to be fetched for
            return []
        parts = [self.lm, self.weights if kind in ("timm", "pytorchvideo") else name]
        # Where everything comes in one repository, the adapter is a file of it.
        if self.adapter.startswith("hub:") and not self.adapter.startswith(f"hub:{self.lm}/"):
            parts.append(self.adapter)
        return list(dict.fromkeys(part for part in parts if part))


def presets() -> dict[str, Preset]:
    """All presets by name; read without torch, which the model room would import."""
    out = {}
    files = resources.files("flamvid.presets").iterdir()
    for file in sorted(files, key=lambda file: file.name.removesuffix(".toml")):
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
                adapter=_place(table["adapter"], Path(str(file)).parent),
                licence=table.get("licence", "Apache-2.0"),
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
def table(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Models; all if none is named.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Count the parameters of models, in billions, beside the totals of the Flamingo paper."""
    quiet_libraries()
    from flamvid.weights.sizes import sizes_table, table_text

    rows = sizes_table(names or list(presets()))
    typer.echo(json.dumps(rows, indent=2) if as_json else table_text(rows))
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
    for asked in names:
        name = _preset(asked, known)
        if name in known and not known[name].adapter:
            report(ConfigError(f"{name} has no weights to fetch: the paper's were never released"))
            failed = True
        for part in known[name].parts if name in known else [name]:
            try:
                typer.echo(f"{part}: {hub.get(part)}")
            except FlamvidError as error:
                report(error, part)
                failed = True
    return FAILED if failed else 0


@app.command()
@guarded
def show(
    name: Annotated[str, typer.Argument(help="A model, its part, or a model's folder.")],
    as_json: AsJson = False,
) -> int:
    """Describe one model or part: sizes, dtype, licence, source, checksum, where it lies."""
    quiet_libraries()
    from flamvid.weights import hub

    known = presets()
    name = _preset(name, known)
    names = [*known, *(status.name for status in hub.available())]
    if name in known or Path(name).exists():
        facts = _describe(name, known.get(name))
    elif name in names:
        facts = hub.show(name)
    else:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
        raise InputError(f"no model or part is called {name!r}; {hint}")
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return 0
    width = max(map(len, facts))
    for key, value in facts.items():
        typer.echo(f"{key:<{width}}  {value}")
    return 0


@app.command()
@guarded
def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A model by name or TOML, or a checkpoint.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="A folder to write.")],
    like: Annotated[
        str | None, typer.Option(help="The preset that a checkpoint is of: its prompts, pictures.")
    ] = None,
    lm: Annotated[str | None, typer.Option(help="Folder of the language model instead.")] = None,
    clip: Annotated[str | None, typer.Option(help="Folder of the CLIP encoder instead.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Store as fp32, bf16 or fp16.")] = None,
) -> int:
    """Write any model as one folder that --model and Flamingo.from_pretrained read."""
    quiet_libraries()
    with working(f"converting {source}"):
        from flamvid.weights.convert import convert as write

        folder = write(source, destination, like=like, lm=lm, clip=clip, dtype=dtype)
    typer.echo(folder)
    return 0


def _preset(name: str, known: Mapping[str, Preset]) -> str:
    """The preset of a hub repository, if it is of one; else the name itself."""
    wanted = f"hub:{name}".lower()
    of = (p.name for p in known.values() if p.adapter.rpartition("/")[0].lower() == wanted)
    return next(of, name)


def _place(adapter: str, folder: Path) -> str:
    return adapter if not adapter or adapter.startswith("hub:") else str(folder / adapter)


def _rows() -> list[dict[str, Any]]:
    """Presets first, then parts, each with the same keys."""
    from flamvid.weights import hub

    parts = [asdict(status) for status in hub.available()]
    cached = {part["name"]: part["cached"] for part in parts}
    rows = []
    # Those that can caption first.
    for preset in sorted(presets().values(), key=lambda preset: not preset.adapter):
        local = Path(preset.adapter)
        there = preset.adapter.startswith("hub:") or local.is_file()
        source = " + ".join([*preset.parts, *([local.name] if local.is_file() else [])])
        ready = there and not _missing(preset, cached)
        rows.append(
            {
                "name": preset.name,
                "kind": "model",
                "cached": ready,
                "size_bytes": local.stat().st_size if local.is_file() else 0,
                "licence": preset.licence,
                "source": source or "none: sizes of the paper, without weights",
            }
        )
    return rows + parts


def _missing(preset: Preset, cached: Mapping[str, bool]) -> list[str]:
    from flamvid.weights import hub

    return [part for part in preset.parts if not cached.get(part, hub.is_cached(part))]


def _describe(name: str, preset: Preset | None) -> dict[str, str | int]:
    """What a model's configuration tells, and its sizes where it tells the architecture."""
    from flamvid.weights import hub
    from flamvid.weights.sizes import sizes
    from flamvid.weights.source import source_config

    config = source_config(name)
    facts: dict[str, str | int] = {
        "name": config.name,
        "kind": "model",
        "format": config.format,
        "licence": config.licence or "Apache-2.0",
        "language model": config.lm or str(config.lm_config.get("model_type", "")),
        "vision encoder": config.vision.encoder,
        "vision weights": config.vision.weights or "of the encoder",
        "adapter": config.adapter or "none: the paper's weights were never released",
        "dtype": config.dtype,
    }
    if config.mixture is not None:
        facts["mixture"] = str(config.mixture)
    if config.vision.clip is not None:
        clip = config.vision.clip
        facts["clip"] = f"{clip.frames} frames, {clip.fps:g} a second, to {clip.steps} moments"
    for part, count in sizes(config).items():
        facts[f"parameters: {part}"] = f"{count:,}"
    local = Path(config.adapter)
    if config.adapter and local.exists():
        files = local.rglob("*") if local.is_dir() else [local]
        facts["bytes"] = sum(file.stat().st_size for file in files if file.is_file())
    elif config.adapter and not config.adapter.startswith("hub:"):
        facts["adapter"] = f"{local} (missing: reinstall)"
    if preset is not None and preset.adapter:
        cached = {status.name: status.cached for status in hub.available()}
        missing = _missing(preset, cached)
        facts["cached"] = f"no (flamvid models pull {name})" if missing else "yes"
    return facts


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"
