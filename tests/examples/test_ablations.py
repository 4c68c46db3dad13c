"""Every recipe of an ablation has no faults, and departs from the quickstart in what its first lines say."""

import re
from pathlib import Path

import pytest

from peft_bidora.recipe.load import flat, load_recipe
from peft_bidora.recipe.prepare import prepare

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = sorted((EXAMPLES / "ablations").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_departs_from_the_quickstart_in_what_it_says(path: Path) -> None:
    said = re.findall(r'"bidora,bidora ([^"]+)"', path.read_text(encoding="utf-8"))[0].split()
    quickstart = load_recipe(EXAMPLES / "quickstart.yaml", [*said, f"output=runs/ablations/{path.stem}"])
    recipe = load_recipe(path)

    assert flat(recipe.model_dump(mode="json")) == flat(quickstart.model_dump(mode="json"))
    assert prepare(recipe).rows.parts["upper"].texts


def test_there_are_ablations() -> None:
    assert len(RECIPES) >= 10
