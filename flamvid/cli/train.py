"""`flamvid train`: a run from a recipe."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flamvid import config
from flamvid.cli.duration import duration
from flamvid.cli.failure import INTERRUPTED, guarded, report, say
from flamvid.cli.progress import quiet_libraries
from flamvid.errors import InputError

if TYPE_CHECKING:
    from flamvid.train.plan import Plan
    from flamvid.train.recipe import Recipe

__all__ = ["train"]


@guarded
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="What to train, and on.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of the shards (as the recipe says).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run (runs/<name of the recipe>).")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--fresh", help="Go on from the last checkpoint, or remove all and start anew."
        ),
    ] = True,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe: optim.warmup=100."),
    ] = None,
    fine_tune: Annotated[
        bool, typer.Option(help="Train vision too, from the model's weights on, at 480 pixels.")
    ] = False,
    lora: Annotated[
        int, typer.Option(min=0, metavar="RANK", help="Train low-rank changes to the LM as well.")
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option(help="Print the whole recipe, the parts and the time; train nothing.")
    ] = False,
) -> int:
    """Train a model as a recipe says; the path of what came of it is printed at the end.

    A run that was stopped goes on from its last checkpoint when the command is given again. On
    several GPUs or machines: torchrun --nproc-per-node N -m flamvid train RECIPE.toml
    """
    if not recipe.is_file():
        raise InputError(f"{recipe}: no such file; give the path of a recipe's .toml")
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"--out is {out}, which is no folder; give the name of a folder")
    if data is not None and not data.is_dir():
        raise InputError(f"--data is {data}, which is no folder; give the folder of the shards")
    out = out or Path("runs") / recipe.stem
    words = ["flamvid", "train", str(recipe.resolve()), f"--out={out.resolve()}"]
    words += [f"--data={data.resolve()}"] if data else []
    words += [f"--set={change}" for change in changes or []]
    words += ["--fine-tune"] if fine_tune else []
    words += [f"--lora={lora}"] if lora else []
    command = shlex.join([*words, *([] if resume else ["--fresh"])])
    first = os.environ.get("RANK", "0") == "0"  # of those that torchrun started
    if first:
        say(f"flamvid: {command}")

    quiet_libraries()
    from flamvid.train import session
    from flamvid.train.plan import Plan

    asked = [*(changes or []), *([f"model.lora={lora}"] if lora else [])]
    mixed = "corpus" in config.read_toml(recipe)
    if not mixed and (fine_tune or lora):
        raise InputError(
            f"{recipe} trains on frozen features; --fine-tune and --lora are for recipes with "
            "[[corpus]] tables"
        )
    plan = session.read(recipe, asked, data)
    if fine_tune and isinstance(plan, Plan):
        plan = plan.fine_tuned()
    return _dry_run(plan, out) if dry_run else _run(plan, out, resume, words)


def _dry_run(plan: Plan | Recipe, out: Path) -> int:
    from flamvid.train import session

    trial = session.try_out(plan, out, say)
    if os.environ.get("RANK", "0") != "0":  # the first of those that torchrun started says it
        return 0
    typer.echo(config.to_toml(plan.table()))
    for part in trial.parts:
        typer.echo(f"# {part}")
    if trial.encoding:
        typer.echo(f"# features of all shards take about {duration(trial.encoding)} before it")
    typer.echo(f"# {trial.updates:,} updates take about {duration(trial.seconds)} on this machine")
    return 0


def _run(plan: Plan | Recipe, out: Path, resume: bool, words: list[str]) -> int:
    from flamvid.cli.training import watching
    from flamvid.train import session

    first = os.environ.get("RANK", "0") == "0"
    if first:
        say(config.to_toml(plan.table()))
    try:
        with watching() as watch:
            outcome: Any = session.run(plan, out, resume, log=watch.say, watch=watch)
    except KeyboardInterrupt:
        report(f"interrupted; {shlex.join(words)} goes on from the last checkpoint")
        return INTERRUPTED
    if outcome.result is None:
        if first:
            report(f"stopped after {outcome.step} updates; {shlex.join(words)} goes on from there")
        return INTERRUPTED
    if first:
        typer.echo(str(outcome.result))
    return 0
