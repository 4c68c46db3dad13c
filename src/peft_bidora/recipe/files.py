"""Find the rows of each key of a recipe: the files that it names, and those that lie beside the train rows."""

from pathlib import Path

from peft_bidora.data.arrow import is_saved, saved_splits
from peft_bidora.data.glue import find_glue, glue_of_hub, labelled_test
from peft_bidora.data.source import find_split_files
from peft_bidora.errors import RecipeError
from peft_bidora.recipe.schema import Recipe

Part = tuple[str, str]  # what `read_table` takes: source and split
SPLIT_OF = {"train": "train", "test": "test", "selection": "validation"}


def data_files(recipe: Recipe) -> tuple[dict[str, Part], list[str]]:
    """Return where the rows of each key are, and a note for each that the recipe does not name.

    A folder gives its files by split, a saved `DatasetDict` and GLUE on the hub their splits. Where a task of GLUE
    hides its test labels, its validation rows are the test rows, and no selection rows are found.

    Raises:
        DataError: a folder has no data, or two files for a split.
    """
    data = recipe.data
    brings_test = data.test is not None or data.test_fraction > 0 or data.folds is not None
    named = {key: getattr(data, key) for key in SPLIT_OF}
    files = {key: (source, SPLIT_OF[key]) for key, source in named.items() if source is not None}
    notes = []
    if data.test is not None:
        source, split, note = labelled_test(data.test)
        files["test"] = (source, split)
        notes += [note] if note else []
    beside, hidden = _beside(data.train, brings_test=brings_test)
    for key, part in beside.items():
        if key == "train":
            files[key] = part
        elif key == "test" and brings_test:
            continue
        elif key not in files and not getattr(data, f"{key}_fraction") and not _is_same(part, files.get("test")):
            files[key] = part
            where = part[0] if Path(part[0]).is_file() else f"the {part[1]} split of {part[0]}"
            notes.append(hidden if key == "test" and hidden else f"data.{key} is not set: using {where}")
    return files, notes


def with_glue_defaults(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Return the recipe with the columns and the metric of its GLUE task where it names none, and notes of it.

    Raises:
        RecipeError: the recipe's task is not that of the data.
    """
    glue = find_glue(recipe.data.train)
    if glue is None:
        return recipe, []
    if recipe.task != glue.task:
        raise RecipeError(
            f"task={recipe.task}: data.train={recipe.data.train} is {glue.folder} of GLUE, which needs"
            f" task={glue.task}. Set it."
        )
    columns = {"text": recipe.data.text or list(glue.text), "label": recipe.data.label or "label"}
    changes = {"data": recipe.data.model_copy(update=columns), "select_by": recipe.select_by or glue.metric}
    notes = [] if recipe.select_by else [f"select_by is not set: using {glue.metric}, for {glue.folder} of GLUE"]
    return recipe.model_copy(update=changes), notes


def _is_same(part: Part, other: Part | None) -> bool:
    """Return whether two parts are one: a split of one source, or one file that is taken for two splits."""
    if other is None or not Path(part[0]).is_file():
        return part == other
    return Path(part[0]).resolve() == Path(other[0]).resolve()


def _beside(train: str, brings_test: bool) -> tuple[dict[str, Part], str | None]:
    """Return what stands beside the train rows by key, and a note if validation rows must serve as test rows."""
    folder = Path(train).expanduser()
    found: dict[str, Part] = {}
    if folder.is_dir():
        if is_saved(folder):
            splits = saved_splits(folder)
            return {key: (train, split) for key, split in SPLIT_OF.items() if split in splits}, None
        files = find_split_files(folder)
        found = {key: (str(files[split]), split) for key, split in SPLIT_OF.items() if split in files}
    elif not folder.exists() and glue_of_hub(train):
        found = {key: (train, split) for key, split in SPLIT_OF.items()}
    source, split, hidden = labelled_test(train)
    if hidden and not brings_test:
        found["test"] = (source, split)
        found.pop("selection", None)
    return found, None if brings_test else hidden
