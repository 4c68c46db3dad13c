"""Write a first recipe for a data file: its task is recognised by the columns and values that it has."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft_bidora.data.arrow import saved_splits
from peft_bidora.data.columns import LABEL_NAMES
from peft_bidora.data.faults import Fault, is_empty
from peft_bidora.data.fields import name_of
from peft_bidora.data.glue import glue_of_hub, labelled_test
from peft_bidora.data.residues import NUCLEOTIDES, read_residues
from peft_bidora.data.source import find_split_files, read_table
from peft_bidora.data.table import Table
from peft_bidora.data.targets import read_number
from peft_bidora.data.wording import listed_columns
from peft_bidora.data.words import WORDS
from peft_bidora.errors import DataError
from peft_bidora.tasks.prompts import COMPLETION_NAMES, MESSAGES, PROMPT_NAMES

MANY_CLASSES = 50
NEARLY_ALL = 0.9  # of the labels: the others are taken for slips, which `check` names

TEMPLATE = """\
# A recipe for peft-bidora; any key can also be set on the command line: peft-bidora train RECIPE key=value
model: {model}  # a folder, or a name on the hub
task: {task}
method: bidora  # bidora | dora | lora | full
data:
  train: {train}
{data}adapter: {{rank: 8, alpha: 16}}  # target_modules: query and value, or all-linear
search:  # magnitudes on the upper split, directions on the lower one
  steps: 200
  batch_size: 16
  learning_rate: 5.0e-3
  upper_learning_rate: 2.0e-2  # 4 to 10 times the lower one
  lower_steps: 4  # direction steps for each magnitude step
retrain: {{steps: 300, batch_size: 16, learning_rate: 5.0e-3}}  # all that lora, dora and full use
seed: 0
output: {output}
"""


def suggest_recipe(data: str) -> tuple[str, str]:
    """Return a commented recipe for a data file or folder, and the task that was recognised.

    Args:
        data: as in a recipe's `data.train`.

    Raises:
        DataError: the data cannot be read, or their task cannot be recognised.
    """
    table = read_table(data)
    task, hints = recognise(table)
    name = _run_name(Path(data))
    lines = [*_split_lines(data), *(f"  {key}: {value}" for key, value in hints.items())]
    encoder = "facebook/esm2_t6_8M_UR50D" if "sequences" in hints else "builtin:minilm"
    model = encoder
    if task == "text-generation":  # messages need a chat template
        model = "Qwen/Qwen2.5-0.5B-Instruct" if MESSAGES in table.columns else "gpt2"
    text = TEMPLATE.format(
        model=model,
        task=task,
        train=json.dumps(data, ensure_ascii=False),
        data="".join(f"{line}\n" for line in lines),
        output=json.dumps(f"runs/{name}", ensure_ascii=False),
    )
    return text, task


def recognise(table: Table) -> tuple[str, dict[str, Any]]:
    """Return the task that a table is for, and what its recipe says of the data beyond the file.

    Raises:
        DataError: it has no columns that tell.
    """
    if _has_words(table):
        return "token-classification", {}
    completions = set(COMPLETION_NAMES) - set(LABEL_NAMES)
    if MESSAGES in table.columns or (_has(table, PROMPT_NAMES) and _has(table, completions)):
        return "text-generation", {}
    label = next((name for name in (*LABEL_NAMES, "score") if name in table.columns), None)
    if label is None:
        raise DataError(
            f"{table.source} has the columns {listed_columns(table.columns)}; expected a label, tokens, messages, or a"
            " prompt with its completion. Rename a column, or write the recipe by hand."
        )
    values = [row[label] for row in table.rows if not is_empty(row.get(label))]
    hints: dict[str, Any] = {"label": label}
    if _is_protein(table):
        hints["sequences"] = "protein"
    task = "regression" if _are_numbers(values) else "sequence-classification"
    return task, hints


def _run_name(path: Path) -> str:
    """Return the name of the data; that of their folder where the file is only called after its split."""
    generic = path.stem.lower() in ("train", "training", "data")
    return (path.resolve().parent.name if generic else path.stem) or "data"


def _split_lines(data: str) -> list[str]:
    """Name the test and validation files beside the train file; cut test rows if there are none."""
    if glue_of_hub(data) and not Path(data).exists():
        return []
    folder = Path(data) if Path(data).is_dir() else Path(data).parent
    try:
        found = find_split_files(folder) if folder.is_dir() else {}
    except DataError:
        found = {}
    if Path(data).is_dir() and "test" in (*found, *saved_splits(folder)):
        return []
    scored, _, hidden = labelled_test(str(folder))
    if hidden:  # the validation rows stand for the test rows, and cannot choose the checkpoint too
        found = {"test": Path(scored)}
    named = {
        key: json.dumps(str(found[split]), ensure_ascii=False)
        for key, split in (("test", "test"), ("selection", "validation"))
        if folder != Path(data) and split in found and found[split] != Path(data)
    }
    lines = [f"  {key}: {path}" for key, path in named.items()]
    return lines if "test" in named else ["  test_fraction: 0.2  # or name a file as test", *lines]


def _has(table: Table, names: Iterable[str]) -> bool:
    return any(name in table.columns for name in names)


def _has_words(table: Table) -> bool:
    """Whether a column of words holds lists of them: a text may stand under such a name too."""
    first = table.rows[0] if table.rows else {}
    return any(not isinstance(WORDS.text(first.get(name), name), Fault) for name in WORDS.text_names)


def _is_protein(table: Table) -> bool:
    sequences = [row.get("sequence") for row in table.rows]
    if "sequence" not in table.columns or any(isinstance(read_residues(each, ""), Fault) for each in sequences):
        return False
    return not set().union(*map(str, sequences)) <= NUCLEOTIDES


def _are_numbers(values: list[object]) -> bool:
    """Whether labels are quantities: numbers with fractions, or more whole ones than classes are."""
    numbers = [number for value in values if not isinstance(number := read_number(value, ""), Fault)]
    if not numbers or len(numbers) < NEARLY_ALL * len(values):
        return False
    return any(name_of(number) is None for number in numbers) or len(set(numbers)) > MANY_CLASSES
