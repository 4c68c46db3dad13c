"""Find a task by the name that a recipe uses."""

from difflib import get_close_matches

from peft_bidora.errors import RecipeError
from peft_bidora.tasks.regression import REGRESSION
from peft_bidora.tasks.sequence_classification import SEQUENCE_CLASSIFICATION
from peft_bidora.tasks.task import TaskKind
from peft_bidora.tasks.text_generation import TEXT_GENERATION
from peft_bidora.tasks.token_classification import TOKEN_CLASSIFICATION

TASKS: dict[str, TaskKind] = {
    task.name: task for task in (SEQUENCE_CLASSIFICATION, REGRESSION, TOKEN_CLASSIFICATION, TEXT_GENERATION)
}


def find_task(name: str) -> TaskKind:
    """Return the task of this name.

    Raises:
        RecipeError: there is none; the known ones are named.
    """
    if name not in TASKS:
        near = get_close_matches(name, TASKS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise RecipeError(f"task={name}: expected one of {', '.join(map(repr, TASKS))}.{hint}")
    return TASKS[name]
