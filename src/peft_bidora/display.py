"""What the command line shows: tables and summaries on standard output."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from peft_bidora.data.values import as_json
from peft_bidora.data.wording import counted, shown, verb

SHOWN_CLASSES = 20


def console() -> Console:
    """Return what tables are printed on."""
    # A pipe has no width: do not fold what another program may read. A class may be called [b] or :smile:.
    return Console(width=None if sys.stdout.isatty() else 120, markup=False, emoji=False)


def add_scores(table: Table, scores: dict[str, dict[str, float]]) -> None:
    """Add a row for each metric with its interval."""
    for name, score in scores.items():
        value, low, high = (shown(score[key]) for key in ("value", "low", "high"))
        table.add_row(name, value, f"{low} – {high}")


def print_json(value: Any) -> None:
    """Print a value as JSON in ASCII, which every terminal and pipe can take."""
    typer.echo(json.dumps(json.loads(as_json(value, default=str)), indent=2))


def print_run(folder: Path, metrics: dict[str, Any]) -> None:
    """Print the end of a run: its metrics, its cost, where all lies and how to load it."""
    table = Table(
        "test metric", "value", "95 % interval", title=f"{metrics['method']} on {metrics['rows']['test']} rows"
    )
    add_scores(table, metrics["test"])
    console().print(table)
    share = 100 * metrics["trainable_parameters"] / metrics["parameters"]
    adapter = folder / ("model" if metrics["method"] == "full" else "adapter")
    kept = metrics["kept"]
    lines = [
        f"kept                  the checkpoint of step {kept['step']:,} of {kept['of']:,}",
        f"trainable parameters  {metrics['trainable_parameters']:,} ({share:.2f} % of all)",
        f"training time         {metrics['seconds']:.1f} s",
        f"peak memory           {metrics['peak_memory_bytes'] / 2**20:,.0f} MiB",
        f"run folder            {folder}",
        f"{'weights' if metrics['method'] == 'full' else 'adapter'}               {adapter}",
    ]
    lines += [f"note: {note}" for note in metrics["notes"]]
    lines += ["", "Load it without this package:", *(f"  {line}" for line in metrics["loading_lines"])]
    typer.echo("\n".join(lines))


def print_evaluation(title: str, scores: dict[str, dict[str, float]], details: Mapping[str, Any]) -> None:
    """Print metrics with their intervals, and the tables of a task's details that are short enough to read."""
    table = Table("metric", "value", "95 % interval", title=title)
    add_scores(table, scores)
    console().print(table)
    for name, rows in details.items():
        is_table = isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
        if is_table and len(rows) <= SHOWN_CLASSES:
            table = Table(*rows[0], title=name.replace("_", " "))
            for row in rows:
                table.add_row(*(f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row.values()))
            console().print(table)


def print_errors(errors: Mapping[str, float]) -> None:
    """Print what a LoRA of a lower rank misses of each layer."""
    table = Table("layer", "relative error")
    for name, error in errors.items():
        table.add_row(name, shown(error))
    console().print(table)
    typer.echo("relative error: what the rank leaves out of a layer's change, over the change")


@contextmanager
def row_progress() -> Iterator[Callable[[int, int | None], None]]:
    """Give what takes the rows that are done and those expected; it draws a bar on standard error if that is a screen.

    Standard output is left to the rows.
    """
    bar = Progress(
        TextColumn("{task.completed:,} rows"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task("rows", total=None)
        yield lambda done, expected: bar.update(task, completed=done, total=expected)


def print_outlook(report: Mapping[str, Any]) -> None:
    """Print what a run will take."""
    splits = list(report["rows"])
    table = Table("rows", *splits)
    table.add_row("all", *(f"{count:,}" for count in report["rows"].values()))
    names = list(dict.fromkeys(name for split in splits for name in report["classes"][split]))
    for name in names[:SHOWN_CLASSES]:
        table.add_row(name, *(f"{report['classes'][split].get(name, 0):,}" for split in splits))
    if len(names) > SHOWN_CLASSES:
        table.add_row(f"{len(names) - SHOWN_CLASSES} more classes", *("" for _ in splits))
    console().print(table)
    tokens, cut = report["tokens"], report["tokens"]["truncated_rows"]
    lines = {
        "tokens a row": f"median {tokens['median']:g}, 95 % up to {tokens['percentile_95']:g}, longest"
        f" {tokens['longest']}; {counted(cut, 'row')} {verb(cut, 'is', 'are')} cut",
        "adapted modules": ", ".join(report["target_modules"]) or "none (all weights are trained)",
        "trainable parameters": f"{report['trainable_parameters']:,} of {report['parameters']:,}",
        "steps": _steps(report),
        "passes": f"{report['passes']:,}" + _passes(report),
        "memory": f"about {report['memory_bytes'] / 2**20:,.0f} MiB beside the libraries",
    }
    if "seconds" in report:
        lines["time"] = f"about {report['seconds']:,.0f} s of training, evaluations not counted"
    for name, text in lines.items():
        typer.echo(f"{name:<21} {text}")
    table = Table("to save memory or time", "with this recipe")
    for name, reason in report["goes_with"].items():
        table.add_row(name, "yes" if reason is None else f"no: {reason}")
    console().print(table)


def _steps(report: Mapping[str, Any]) -> str:
    if "search_steps" not in report:
        return f"{report['retrain_steps']:,}"
    return (
        f"search {report['search_steps']:,} with {report['upper_steps']:,} upper ones,"
        f" retrain {report['retrain_steps']:,}"
    )


def _passes(report: Mapping[str, Any]) -> str:
    return f" ({report['passes_per_search_step']:g} a search step)" if "passes_per_search_step" in report else ""
