"""All that can be known of a run before weights are loaded; every fault of recipe and data at once."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from peft_bidora.data.columns import Columns, Layout, columns_of_other, resolve_columns
from peft_bidora.data.examples import Examples, read_examples
from peft_bidora.data.repeats import conflicting, duplicates, overlap
from peft_bidora.data.source import read_table
from peft_bidora.data.split import make_splits, split_hash
from peft_bidora.data.table import Table
from peft_bidora.data.wording import counted
from peft_bidora.errors import BiDoRAError, DataError, RecipeError
from peft_bidora.recipe.files import data_files, with_glue_defaults
from peft_bidora.recipe.options import task_options
from peft_bidora.recipe.schema import Recipe
from peft_bidora.tasks.base_model import load_config, load_tokenizer, position_limit, resolve_model, skeleton
from peft_bidora.tasks.registry import find_task
from peft_bidora.tasks.task import Task, TaskKind

T = TypeVar("T")
SELECTION_FRACTION = 0.1
SPLITS = ("lower", "upper", "selection", "test")


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


@dataclass
class _Faults:
    """Run independent checks and keep what they raise."""

    found: list[BiDoRAError] = field(default_factory=list)

    def check(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
        try:
            return function(*args, **kwargs)
        except BiDoRAError as error:
            self.found.append(error)
            return None

    def raise_any(self) -> None:
        if self.found:
            kind = type(self.found[0]) if len({type(error) for error in self.found}) == 1 else BiDoRAError
            raise kind(*(fault for error in self.found for fault in error.faults))


def prepare(recipe: Recipe) -> Prepared:
    """Check the recipe against data, model and tokenizer; no weights are loaded.

    Raises:
        BiDoRAError: all faults, one sentence each.
    """
    faults = _Faults()
    settled = faults.check(with_glue_defaults, recipe)
    recipe, notes = settled or (recipe, [])
    kind = faults.check(find_task, recipe.task)
    source = faults.check(resolve_model, recipe.model)
    config = source and faults.check(load_config, source)
    tokenizer = source and faults.check(load_tokenizer, source)
    tokenizer = faults.check(kind.tokenizer, tokenizer) if kind and tokenizer else None
    rows = faults.check(read_rows, recipe, kind, tokenizer, config) if kind and settled else None
    targets = kind and config and faults.check(_targets, recipe, kind, config)
    max_length = config and tokenizer and faults.check(_max_length, recipe, config, tokenizer)
    faults.raise_any()
    if kind is None or rows is None or source is None:
        raise AssertionError("a check returned nothing and raised nothing")
    most = int(max_length or 0)
    rows = replace(rows, notes=[*notes, *rows.notes, *_encoding_notes(kind, rows, tokenizer, most)])
    return Prepared(recipe, kind, source, tokenizer, most, list(targets or []), rows)


def read_rows(recipe: Recipe, kind: TaskKind, tokenizer: Any = None, config: Any = None) -> Rows:
    """Read the files, check their rows, divide them and bind the task to them.

    Raises:
        DataError: a file or a row is at fault.
        SplitError: there are too few rows.
    """
    data, options = recipe.data, task_options(recipe, config)
    layout = kind.layout(options, tokenizer)
    files, found = data_files(recipe)
    tables = {key: kind.arrange(read_table(source, split)) for key, (source, split) in files.items()}
    columns, guesses = resolve_columns(tables["train"], data.text, data.label, data.group, layout)
    train = read_examples(tables["train"], columns, layout)
    faults = _Faults()
    others = {key: faults.check(read_other, table, columns, layout) for key, table in tables.items() if key != "train"}
    splits = faults.check(
        make_splits,
        train,
        selection_fraction=_selection_fraction(recipe, "selection" in tables),
        upper_fraction=data.upper_fraction,
        test_fraction=0.0 if "test" in tables else data.test_fraction,
        max_train_rows=data.max_train_rows,
        seed=recipe.seed,
        strata=kind.strata(train),
    )
    task = faults.check(kind.fit, options, train, train if splits is None else train.take(splits.lower))
    for examples in others.values():
        if task is not None and examples is not None:
            faults.check(task.check, examples)
    _check_choice(recipe, task, faults)
    faults.raise_any()
    if splits is None or task is None:
        raise AssertionError("a check returned nothing and raised nothing")
    parts = {name: others.get(name) or train.take(getattr(splits, name)) for name in SPLITS}
    _require_parts(recipe, parts)
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


def _check_choice(recipe: Recipe, task: Task | None, faults: _Faults) -> None:
    if task is None or recipe.select_by is None:
        return
    if not task.has_logits:
        faults.found.append(
            RecipeError(
                f"select_by={recipe.select_by}: {recipe.task} chooses its checkpoint by the loss of the selection"
                " rows, for which nothing is generated. Leave it out."
            )
        )
    elif recipe.select_by not in task.metrics:
        faults.found.append(
            RecipeError(
                f"select_by={recipe.select_by}: expected a metric of {recipe.task}: {', '.join(task.metrics)}."
                " Name one of them, or leave it out."
            )
        )


def _require_parts(recipe: Recipe, parts: dict[str, Examples]) -> None:
    if not len(parts["test"]):
        raise DataError("There are no test rows. Name a file as data.test, or set data.test_fraction.")
    if recipe.method == "bidora" and not len(parts["upper"]):
        raise DataError("There are no upper rows, which method=bidora needs. Set data.upper_fraction above 0.")
    if recipe.select_best and not len(parts["selection"]):
        raise DataError(
            "There are no selection rows, which select_best=true needs. Set data.selection_fraction, or"
            " select_best=false."
        )


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
        notes.append(f"{repeated} rows of {train.source} repeat another one; repeats stay in one split.")
    if kind.strata(train) is None and (contradictory := conflicting(train)):
        notes.append(f"{contradictory} texts of {train.source} occur with more than one label.")
    for held_out in ("selection", "test"):
        if shared := overlap([parts["lower"], parts["upper"]], parts[held_out]):
            notes.append(f"{shared} {held_out} rows also stand among the training rows: its metrics are a little high.")
    return notes


def _targets(recipe: Recipe, kind: TaskKind, config: Any) -> list[str]:
    from peft_bidora.adapter.attach import resolve_target_modules

    model = skeleton(config, kind.auto_class(config))
    return [] if recipe.method == "full" else resolve_target_modules(model, recipe.adapter.target_modules)


def _max_length(recipe: Recipe, config: Any, tokenizer: Any) -> int:
    limit = min(tokenizer.model_max_length, position_limit(config) or tokenizer.model_max_length)
    wanted = recipe.data.max_length
    if wanted is not None and wanted > limit:
        raise RecipeError(f"data.max_length={wanted}: the model takes at most {limit} tokens. Lower it.")
    return wanted or min(limit, 512)
