"""Find a task by the name that a recipe uses."""

from peft_bidora.data.wording import listed, suggestion
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
        raise RecipeError(f"task={name}: expected one of {listed(TASKS)}.{suggestion(name, TASKS)}")
    return TASKS[name]
