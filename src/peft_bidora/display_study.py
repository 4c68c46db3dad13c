"""What the command line shows of many runs: their progress, tables of lanes and of comparisons."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import typer
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from peft_bidora.data.wording import shown
from peft_bidora.display import console

SHOWN_METRICS = 4  # of a lane, in its row
SHOWN_TRIALS = 5


@contextmanager
def lane_progress() -> Iterator[Callable[[str, int, int, list[float]], None]]:
    """Give what is told how far lanes are; it draws a bar on standard error, or writes lines to a file."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} of {task.total} {task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[best]}"),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task("lanes", total=None, best="", unit="", visible=False)  # until there is something to tell

        def watch(phase: str, step: int, steps: int, best: list[float]) -> None:
            told = f"best {best[0]:.4f}, median {median(best):.4f}" if best else ""
            unit = "lanes" if phase == "scoring" else "steps"
            bar.update(task, description=phase, completed=step, total=steps, best=told, unit=unit, visible=True)
            if bar.disable and phase != "scoring" and (step % max(1, steps // 10) == 0 or step == steps):
                sys.stderr.write(f"{phase} step {step} of {steps}{': selection ' + told if told else ''}\n")

        yield watch


def print_lanes(folder: Path, outcomes: Sequence[Any]) -> None:
    """Print a row for each lane, and mean and deviation over seeds where they differ in more than that."""
    done = [outcome for outcome in outcomes if outcome.metrics is not None]
    names = list(dict.fromkeys(name for each in done for name in list(each.metrics["test"])[:SHOWN_METRICS]))
    keys = list(dict.fromkeys(key for outcome in outcomes for key in outcome.setting.values))
    heads = _short(keys)
    table = Table(*heads.values(), *names, "kept step", "trained, s")
    for outcome in outcomes:
        if outcome.metrics is None:
            table.add_row(*_values_of(outcome, keys), "stopped")
            continue
        metrics = outcome.metrics
        values = [shown(metrics["test"][name]["value"]) if name in metrics["test"] else "" for name in names]
        cells = [*values, str(metrics["kept"]["step"]), f"{metrics['seconds']:.1f}"]
        table.add_row(*_values_of(outcome, keys), *cells)
    console().print(table)
    groups: dict[tuple[str, ...], list[Any]] = {}
    others = [key for key in keys if key != "seed"]
    for outcome in done:
        groups.setdefault(tuple(_values_of(outcome, others)), []).append(outcome.metrics)
    if any(len(group) > 1 for group in groups.values()):
        table = Table(*(heads[key] for key in others), "seeds", *names, title="mean ± standard deviation over seeds")
        for values_of_group, group in groups.items():
            told = [
                _over_seeds([metrics["test"].get(metric, {}).get("value") for metrics in group]) for metric in names
            ]
            table.add_row(*values_of_group, str(len(group)), *told)
        console().print(table)
    for outcome in outcomes:
        if outcome.stopped is not None:
            typer.echo(f"{outcome.setting.name} was stopped: {outcome.stopped}")
    typer.echo(f"each lane is a run folder in {folder}")


def _short(keys: Sequence[str]) -> dict[str, str]:
    """Return each key without its section, where that tells it from the others."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: short if last.count(short) == 1 else key for key, short in zip(keys, last, strict=True)}


def _values_of(outcome: Any, keys: Sequence[str]) -> list[str]:
    return [outcome.setting.values.get(key, "") for key in keys]


def _over_seeds(values: list[float | None]) -> str:
    """Return mean ± standard deviation, nothing where a value is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return ""
    return f"{mean(known):.4f} ± {stdev(known) if len(known) > 1 else 0:.4f}"


@contextmanager
def comparison_progress(labels: Sequence[str]) -> Iterator[Callable[[str, str, int, int, list[float]], None]]:
    """Give what is told how far each method is; it draws a live table on standard error, or writes lines to a file.

    Args:
        labels: of the methods; what is trained by other names gets rows as it comes.
    """
    rows = dict.fromkeys(labels, ("waiting", "", ""))
    told: dict[str, tuple[str, int]] = {}

    def table() -> Table:
        drawn = Table("method", "phase", "step", "selection: best, median")
        for label, cells in rows.items():
            drawn.add_row(label, *cells)
        return drawn

    screen = Console(stderr=True, markup=False, emoji=False)
    with (
        Live(table(), console=screen, refresh_per_second=2, transient=True)
        if screen.is_terminal
        else _nothing() as live
    ):

        def watch(label: str, phase: str, step: int, steps: int, best: list[float]) -> None:
            levels = f"{best[0]:.4f}, {median(best):.4f}" if best else rows.get(label, ("", "", ""))[2]
            ended = phase in ("done", "failed")
            rows[label] = (phase, "" if ended else f"{step} of {steps}", levels)
            if live is not None:
                live.update(table())
                return
            tenth = 10 * step // steps if steps else 0
            if ended or told.get(label) != (phase, tenth):
                told[label] = (phase, tenth)
                at = "" if ended else f" step {step} of {steps}"
                sys.stderr.write(f"{label}: {phase}{at}{': selection ' + levels if levels else ''}\n")

        yield watch


@contextmanager
def _nothing() -> Iterator[None]:
    yield None


def print_comparison(folder: Path, result: Mapping[str, Any]) -> None:
    """Print each method's rate, metric and cost, and its lead over the reference."""
    reference = next(each for each in result["methods"] if each["label"] == result["reference"])
    over = f"{len(reference['values'])} {'folds' if result['folds'] else 'seeds'}"
    table = Table("method", "rate", result["metric"], "time", "MiB", title=f"on test rows, over {over}")
    leads = Table("method", "difference", "95 % interval", "p", title=f"against {reference['label']}")
    for method in result["methods"]:
        ratio = f" (× {method['seconds'] / reference['seconds']:.2f})"
        table.add_row(
            method["label"],
            f"× {method['rate']:g}",
            f"{method['mean']:.4f} ± {method['standard_deviation']:.4f}",
            f"{method['seconds']:.1f} s{'' if method is reference else ratio}",
            f"{method['peak_memory_bytes'] / 2**20:,.0f}",
        )
        if (pair := method.get("against_reference")) is not None:
            interval = f"{pair['low']:+.4f} – {pair['high']:+.4f}"
            p = "" if pair["p_corrected"] is None else f"{pair['p_corrected']:.3g}"
            leads.add_row(method["label"], f"{pair['difference']:+.4f}", interval, p)
    console().print(table)
    if leads.row_count:
        console().print(leads)
    for note in result["notes"]:
        typer.echo(f"note: {note}")
    typer.echo(f"runs, comparison.json, .csv and .html are in {folder}")


def tell_trial(trial: Any) -> None:
    """Write a line on standard error for a trial that ended."""
    value = "" if trial.value is None else f" {trial.value:.4f}"
    sys.stderr.write(
        f"trial {trial.number}: {trial.state}{value}  {' '.join(trial.overrides)}  {trial.reason}".rstrip() + "\n"
    )


def print_trials(result: Mapping[str, Any]) -> None:
    """Print the trials that came to an end, best first, and where the best recipe is."""
    best = result["best"]
    ended = [trial for trial in result["trials"] if trial["state"] == "complete"]
    ended.sort(key=lambda trial: abs(trial["value"] - best["value"]))
    table = Table("trial", f"selection {result['metric']}", "settings")
    for trial in ended[:SHOWN_TRIALS]:
        table.add_row(str(trial["trial"]), shown(trial["value"]), "\n".join(trial["overrides"]))
    console().print(table)
    typer.echo(f"{len(result['trials'])} trials, {len(ended)} to their end; the best recipe: {result['recipe']}")
    typer.echo(f"Train it: peft-bidora train {result['recipe']}")
