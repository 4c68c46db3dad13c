"""All that can be known of a run before weights are loaded; every fault of recipe and data at once."""

from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft_bidora.data.columns import Columns, Layout, columns_of_other, resolve_columns
from peft_bidora.data.examples import Examples, read_examples
from peft_bidora.data.repeats import conflicting, duplicates, overlap
from peft_bidora.data.source import read_table
from peft_bidora.data.split import make_splits, split_hash
from peft_bidora.data.table import Table
from peft_bidora.data.wording import counted, suggestion, verb
from peft_bidora.errors import DataError, Faults, RecipeError
from peft_bidora.recipe.checks import check_trackers, check_upper_steps, check_vocabulary, check_writes
from peft_bidora.recipe.files import data_files, with_glue_defaults
from peft_bidora.recipe.loading import check_loading
from peft_bidora.recipe.options import check_read, task_options
from peft_bidora.recipe.schema import Recipe
from peft_bidora.tasks.base_model import load_config, load_tokenizer, position_limit, resolve_model, skeleton
from peft_bidora.tasks.registry import find_task
from peft_bidora.tasks.task import Task, TaskKind

SELECTION_FRACTION = 0.1
MOSTLY = 0.5  # of the rows of a split
SPLITS = ("lower", "upper", "selection", "test")
# Held-out split, splits that its rows should not be in, what they are called, and what it does if they are.
SHARED = (
    ("upper", ("lower",), "lower", "the magnitudes are learned on what the directions have seen"),
    ("selection", ("lower", "upper"), "training", "the selection metrics are too high by it"),
    ("test", ("lower", "upper"), "training", "the test metrics are too high by it"),
    ("test", ("selection",), "selection", "the checkpoint is chosen on rows that are scored"),
)


@dataclass(frozen=True)
class Rows:
    """The examples of each split, what was learned of them, and what identifies them.

    Args:
        task: the recipe's, bound to the train rows.
        columns: of the train file.
        parts: lower, upper, selection and test; the last two may be empty.
        file_hashes: sha256 of each data file by the recipe's key.
        notes: what a user should know and may be content with.
    """

    task: Task
    columns: Columns
    parts: dict[str, Examples]
    file_hashes: dict[str, str | None]
    notes: list[str]

    def split_hashes(self) -> dict[str, str]:
        """Return the sha256 of each split's texts and labels."""
        return {name: split_hash(part, range(len(part))) for name, part in self.parts.items()}


@dataclass(frozen=True)
class Prepared:
    """What `run` needs besides the weights; the recipe has what its data source settles."""

    recipe: Recipe
    kind: TaskKind
    source: str
    tokenizer: Any
    max_length: int
    target_modules: list[str]
    rows: Rows


def prepare(recipe: Recipe) -> Prepared:
    """Check the recipe against data, model and tokenizer; no weights are loaded.

    Raises:
        BiDoRAError: all faults, one sentence each.
    """
    faults = Faults()
    settled = faults.check(with_glue_defaults, recipe)
    recipe, notes = settled or (recipe, [])
    kind = faults.check(find_task, recipe.task)
    source = faults.check(resolve_model, recipe.model)
    config = source and faults.check(load_config, source)
    writes = config is None or faults.check(_writes, recipe, config) or False
    # A hub that did not give the one is not asked for the other: each asking may take a minute.
    asked = source if config or (source and Path(source).is_dir()) else None
    tokenizer = asked and faults.check(load_tokenizer, asked)
    tokenizer = faults.check(kind.tokenizer, tokenizer) if kind and tokenizer and writes else None
    rows = faults.check(read_rows, recipe, kind, tokenizer, config) if kind and settled else None
    targets = kind and config and faults.check(_targets, recipe, kind, config)
    max_length = config and tokenizer and faults.check(_max_length, recipe, config, tokenizer)
    if kind and config and writes:
        faults.check(check_loading, recipe, kind, config)
    if config and tokenizer:
        faults.check(check_vocabulary, recipe.model, config, tokenizer)
    faults.check(check_trackers, recipe.report_to)
    faults.check(check_upper_steps, recipe, None if rows is None else len(rows.parts["lower"]))
    faults.raise_any()
    if kind is None or rows is None or source is None:
        raise AssertionError("a check returned nothing and raised nothing")
    most = int(max_length or 0)
    rows = replace(rows, notes=[*notes, *rows.notes, *_encoding_notes(kind, rows, tokenizer, most)])
    return Prepared(recipe, kind, source, tokenizer, most, list(targets or []), rows)


def read_rows(recipe: Recipe, kind: TaskKind, tokenizer: Any = None, config: Any = None) -> Rows:
    """Read the files, check their rows, divide them and bind the task to them.

    Raises:
        DataError: a file or a row is at fault, or a split is missing.
        SplitError: there are too few rows.
    """
    data, options, faults = recipe.data, task_options(recipe, config), Faults()
    layout = kind.layout(options, tokenizer)
    files, found = data_files(recipe)
    faults.check(check_read, recipe, kind)
    faults.check(_require_parts, recipe, files)
    read = {key: faults.check(_arranged, kind, source, split) for key, (source, split) in files.items()}
    tables = {key: table for key, table in read.items() if table is not None}
    train: Examples | None = None
    named = data.text is not None and data.label is not None
    columns, guesses = Columns(tuple(data.text or ()), data.label) if named else None, list[str]()
    if "train" in tables:
        resolved = faults.check(resolve_columns, tables["train"], data.text, data.label, data.group, layout)
        columns, guesses = resolved or (None, [])
        train = None if columns is None else faults.check(read_examples, tables["train"], columns, layout)
    others = {
        key: faults.check(read_other, table, columns, layout)
        for key, table in tables.items()
        if key != "train" and columns is not None
    }
    if train is None or columns is None:
        faults.raise_any()
        raise AssertionError("a check returned nothing and raised nothing")
    splits = faults.check(
        make_splits,
        train,
        selection_fraction=_selection_fraction(recipe, "selection" in files),
        upper_fraction=data.upper_fraction,
        test_fraction=0.0 if "test" in files else data.test_fraction,
        test_seed=data.test_seed,
        fold=None if data.fold is None or data.folds is None else (data.fold, data.folds),
        max_train_rows=data.max_train_rows,
        seed=recipe.seed,
        strata=kind.strata(train),
    )
    task = faults.check(kind.fit, options, train, train if splits is None else train.take(splits.lower))
    for examples in others.values():
        if task is not None and examples is not None:
            faults.check(task.check, examples)
    faults.check(_check_choice, recipe, task)
    faults.raise_any()
    if splits is None or task is None:
        raise AssertionError("a check returned nothing and raised nothing")
    parts = {name: others.get(name) or train.take(getattr(splits, name)) for name in SPLITS}
    hashes = {key: table.sha256 for key, table in tables.items()}
    notes = [*found, *guesses, *kind.notes(options, tokenizer, train), *_repeat_notes(kind, train, parts)]
    used = {name: (kind.learned if name in ("lower", "upper") else kind.scored)(part) for name, part in parts.items()}
    notes += [
        f"{name} split: {counted(len(parts[name]), 'row')} of the file became {counted(len(part), 'row')},"
        f" one a {'reference' if name in ('lower', 'upper') else 'prompt, with all its references'}."
        for name, part in used.items()
        if len(part) != len(parts[name])
    ]
    return Rows(task, columns, used, hashes, notes)


def read_other(table: Table, columns: Columns, layout: Layout) -> Examples:
    """Return the labelled examples of another file than the train file."""
    return read_examples(table, columns_of_other(table, columns, layout), layout)


def _arranged(kind: TaskKind, source: str, split: str) -> Table:
    return kind.arrange(read_table(source, split))


def _check_choice(recipe: Recipe, task: Task | None) -> None:
    if task is None or recipe.select_by is None:
        return
    if not task.has_logits:
        raise RecipeError(
            f"select_by={recipe.select_by}: {recipe.task} chooses its checkpoint by the loss of the selection"
            " rows, for which nothing is generated. Leave it out."
        )
    if recipe.select_by not in task.metrics:
        raise RecipeError(
            f"select_by={recipe.select_by}: expected a metric of {recipe.task}: {', '.join(task.metrics)}."
            f"{suggestion(recipe.select_by, task.metrics)} Name one of them, or leave it out."
        )


def _require_parts(recipe: Recipe, files: Container[str]) -> None:
    """Raise DataError for each split that the run needs and no file or fraction gives."""
    data = recipe.data
    needs = (
        (
            "test" in files or data.test_fraction or data.folds,
            "test rows. Name a file as data.test, or set data.test_fraction.",
        ),
        (
            recipe.method != "bidora" or data.upper_fraction,
            "upper rows, which method=bidora needs. Set data.upper_fraction above 0.",
        ),
        (
            not recipe.select_best or "selection" in files or _selection_fraction(recipe, False),
            "selection rows, which select_best=true needs. Set data.selection_fraction, or select_best=false.",
        ),
    )
    if faults := [f"There are no {what}" for given, what in needs if not given]:
        raise DataError(*faults)


def _selection_fraction(recipe: Recipe, has_file: bool) -> float:
    if has_file:
        return 0.0
    wanted = recipe.data.selection_fraction
    return SELECTION_FRACTION if wanted is None else wanted


def _encoding_notes(kind: TaskKind, rows: Rows, tokenizer: Any, max_length: int) -> list[str]:
    parts = {name: part for name, part in rows.parts.items() if len(part)}
    return [
        note
        for name, part in parts.items()
        for note in kind.encoding_notes(rows.task, tokenizer, max_length, name, part)
    ]


def _repeat_notes(kind: TaskKind, train: Examples, parts: dict[str, Examples]) -> list[str]:
    notes = []
    if repeated := duplicates(train):
        fate = "these stay in one split" if train.groups is None else "in other groups these may be in other splits"
        notes.append(
            f"{counted(repeated, 'row')} of {train.source} {verb(repeated, 'has', 'have')} the text of another one;"
            f" {fate}."
        )
    if kind.strata(train) is None and (contradictory := conflicting(train)):
        occur = verb(contradictory, "occurs", "occur")
        notes.append(f"{counted(contradictory, 'text')} of {train.source} {occur} with more than one label.")
    for held_out, others, where, effect in SHARED:
        if shared := overlap([parts[name] for name in others], parts[held_out]):
            stand = verb(shared, "stands", "stand")
            if where == "training" and shared >= MOSTLY * len(parts[held_out]):
                effect = "they tell nothing of new rows. Name others, or take them out of the train file"
            of = f"{shared:,} of {counted(len(parts[held_out]), f'{held_out} row')}"
            notes.append(f"{of} also {stand} among the {where} rows: {effect}.")
    return notes


def _targets(recipe: Recipe, kind: TaskKind, config: Any) -> list[str]:
    from peft_bidora.adapter.attach import resolve_target_modules

    model = skeleton(config, kind.auto_class(config))
    return [] if recipe.method == "full" else resolve_target_modules(model, recipe.adapter.target_modules)


def _writes(recipe: Recipe, config: Any) -> bool:
    check_writes(recipe.model, recipe.task, config)
    return True


def _max_length(recipe: Recipe, config: Any, tokenizer: Any) -> int:
    limit = min(tokenizer.model_max_length, position_limit(config) or tokenizer.model_max_length)
    wanted = recipe.data.max_length
    if wanted is not None and wanted > limit:
        raise RecipeError(f"data.max_length={wanted}: the model takes at most {limit} tokens. Lower it.")
    return wanted or min(limit, 512)
