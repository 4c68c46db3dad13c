"""What commands share: arguments and options, notes, and the end by Ctrl-C."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from peft_bidora import launched
from peft_bidora.errors import RecipeError

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe in YAML.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as search.steps=100.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
AtOnce = Annotated[int | None, typer.Option(help="Most lanes side by side, if not what fits.", min=1)]


@contextmanager
def interruptible() -> Iterator[None]:
    """Tell after Ctrl-C how to go on, and end with code 130."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted; go on with the same command and --resume", err=True)
        raise typer.Exit(130) from None


def require_one_process(what: str) -> None:
    """Raise RecipeError where torchrun or accelerate started several processes for what is of one."""
    if launched.count() > 1:
        raise RecipeError(
            f"{what} is of one process, and {launched.count()} were started. Start it without torchrun; a plain train"
            " takes several."
        )


def announce(note: str) -> None:
    """Print a note on standard error."""
    typer.echo(f"note: {note}", err=True)
